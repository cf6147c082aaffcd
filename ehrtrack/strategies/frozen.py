"""Frozen encoder: only the head learns, on features that pretraining made."""

from __future__ import annotations

from torch import nn

from ehrtrack.models.behrt import EhrModel
from ehrtrack.strategies.base import Strategy
from ehrtrack.strategies.settings import FrozenConfig


class Frozen(Strategy):
    """The head, and where the settings say so the embeddings of codes."""

    Config = FrozenConfig
    config: FrozenConfig

    def refuse(self, *, is_pretrained: bool, width: int) -> str | None:
        if is_pretrained:
            return None
        return (
            "strategy frozen has no pretrained encoder: its features would be random projections for ever; "
            "set init.run to a pretrain run, or use strategy.name=scratch"
        )

    def apply(self, model: EhrModel) -> nn.Module:
        model.encoder.requires_grad_(False)
        model.encoder.embeddings.requires_grad_(self.config.embeddings)
        return model

    @property
    def keeps_encoder(self) -> bool:
        return self.config.cache and not self.config.embeddings

    @property
    def solves_head(self) -> bool:
        return self.config.head == "ridge"
