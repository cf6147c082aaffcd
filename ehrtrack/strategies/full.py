"""Full fine-tuning: every parameter starts from the pretrained weights and learns."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ehrtrack.models.behrt import EhrModel
from ehrtrack.strategies._settings.full import Config as Config
from ehrtrack.strategies.base import NO_BASE, Base


def refuse(config: Config, *, is_pretrained: bool, width: int) -> str | None:
    if is_pretrained:
        return None
    return (
        "strategy full continues from pretrained weights and there are none: "
        "set init.run to a pretrain run, or say strategy.name=scratch"
    )


def starts_anew(config: Config) -> bool:
    return False


def apply(model: EhrModel, config: Config) -> nn.Module:
    return model.requires_grad_(True)


def keeps_encoder(config: Config) -> bool:
    return False


def merge(model: nn.Module) -> EhrModel:
    assert isinstance(model, EhrModel)
    return model


def save_adapter(model: nn.Module, folder: Path, *, base: Base = NO_BASE) -> None:
    """There is no adapter."""
