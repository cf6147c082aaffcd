"""From scratch: every parameter learns, from random weights. The control that pretraining has to beat."""

from __future__ import annotations

from torch import nn

from ehrtrack.models.behrt import EhrModel
from ehrtrack.strategies._settings.scratch import Config as Config
from ehrtrack.strategies.full import merge, save_adapter

__all__ = ["Config", "apply", "keeps_encoder", "merge", "refuse", "save_adapter"]


def refuse(config: Config, *, is_pretrained: bool) -> str | None:
    if not is_pretrained:
        return None
    return "strategy scratch starts from random weights, but init.run is set: remove it, or say strategy.name=full"


def apply(model: EhrModel, config: Config) -> nn.Module:
    return model.requires_grad_(True)


def keeps_encoder(config: Config) -> bool:
    return False
