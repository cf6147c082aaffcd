"""Frozen encoder: only the head learns, on features that pretraining made."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ehrtrack.models.behrt import EhrModel
from ehrtrack.strategies._settings.frozen import Config as Config
from ehrtrack.strategies.base import NO_BASE, Base


def refuse(config: Config, *, is_pretrained: bool, width: int) -> str | None:
    if is_pretrained:
        return None
    return (
        "strategy frozen has no pretrained encoder: its features would be random projections for ever; "
        "set init.run to a pretrain run, or use strategy.name=scratch"
    )


def starts_anew(config: Config) -> bool:
    return False


def apply(model: EhrModel, config: Config) -> nn.Module:
    model.encoder.requires_grad_(False)
    model.encoder.embeddings.requires_grad_(config.embeddings)
    return model


def keeps_encoder(config: Config) -> bool:
    return config.cache and not config.embeddings


def merge(model: nn.Module) -> EhrModel:
    assert isinstance(model, EhrModel)
    return model


def save_adapter(model: nn.Module, folder: Path, *, base: Base = NO_BASE) -> None:
    """There is no adapter."""
