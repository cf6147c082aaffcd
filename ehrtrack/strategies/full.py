"""Full fine-tuning: every parameter starts from the pretrained weights and learns."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ehrtrack.models.behrt import EhrModel
from ehrtrack.strategies._settings.full import Config as Config


def refuse(config: Config, *, is_pretrained: bool) -> str | None:
    if is_pretrained:
        return None
    return (
        "strategy full continues from pretrained weights and there are none: "
        "set init.run to a pretrain run, or say strategy.name=scratch"
    )


def apply(model: EhrModel, config: Config) -> nn.Module:
    return model.requires_grad_(True)


def keeps_encoder(config: Config) -> bool:
    return False


def merge(model: nn.Module) -> EhrModel:
    assert isinstance(model, EhrModel)
    return model


def save_adapter(model: nn.Module, folder: Path, *, base: str = "") -> None:
    """There is no adapter."""
