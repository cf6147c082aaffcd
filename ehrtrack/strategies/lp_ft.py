"""LP-FT (Kumar et al. 2022, arXiv:2202.10054): first the head alone, then everything.

A head that begins at random pulls the encoder towards what suits that head. Where the head has been fitted to the
pretrained states before, full fine-tuning distorts them less.
"""

from __future__ import annotations

from torch import nn

from ehrtrack.models.behrt import EhrModel
from ehrtrack.strategies.base import Strategy
from ehrtrack.strategies.settings import LpFtConfig


class LpFt(Strategy):
    """The head for the first epochs, and then every parameter."""

    Config = LpFtConfig
    config: LpFtConfig

    def refuse(self, *, is_pretrained: bool, width: int) -> str | None:
        if is_pretrained:
            return None
        return (
            "strategy lp-ft fits a head to pretrained states first, and there are none: "
            "set init.run to a pretrain run, or use strategy.name=scratch"
        )

    def apply(self, model: EhrModel) -> nn.Module:
        return model.requires_grad_(True)

    def begin_epoch(self, model: nn.Module, epoch: int) -> bool:
        encoder = model.get_submodule("encoder")
        learns = epoch > self.config.head_epochs
        has_learnt = any(parameter.requires_grad for parameter in encoder.parameters())
        encoder.requires_grad_(learns)
        return learns != has_learnt
