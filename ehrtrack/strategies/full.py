"""Full fine-tuning: every parameter learns, from the pretrained weights, or from random ones (`scratch`)."""

from __future__ import annotations

from torch import nn

from ehrtrack.models.behrt import EhrModel
from ehrtrack.strategies.base import Strategy
from ehrtrack.strategies.settings import FullConfig


class Full(Strategy):
    """Every parameter."""

    Config = FullConfig
    config: FullConfig

    def refuse(self, *, is_pretrained: bool, width: int) -> str | None:
        if is_pretrained or self.starts_anew:
            return None
        return (
            "strategy full continues from pretrained weights and there are none: "
            "set init.run to a pretrain run, or say strategy.name=scratch"
        )

    @property
    def starts_anew(self) -> bool:
        return self.config.is_from_random

    @property
    def starts_at_solved_head(self) -> bool:
        return self.config.head == "ridge"

    def apply(self, model: EhrModel) -> nn.Module:
        return model.requires_grad_(True)
