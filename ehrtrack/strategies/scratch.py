"""From scratch: every parameter learns, from random weights. The control that pretraining has to beat."""

from __future__ import annotations

from torch import nn

from ehrtrack.models.behrt import EhrModel
from ehrtrack.strategies._settings.scratch import Config as Config
from ehrtrack.strategies.full import merge, save_adapter

__all__ = ["Config", "apply", "keeps_encoder", "merge", "refuse", "save_adapter", "starts_anew"]


def refuse(config: Config, *, is_pretrained: bool, width: int) -> str | None:
    return None


def starts_anew(config: Config) -> bool:
    return True


def apply(model: EhrModel, config: Config) -> nn.Module:
    return model.requires_grad_(True)


def keeps_encoder(config: Config) -> bool:
    return False
