"""What a strategy is to the recipes, and the parameter table that every run shows before it trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import polars as pl
from torch import nn

from ehrtrack.models.behrt import EhrModel


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on.

    Attributes
    ----------
    kind : pretrained, and kept under `uri`, such as ``runs:/ID/model``; or random weights, which are kept nowhere
    fingerprint : of the encoder's weights before the strategy touched them
    """

    kind: Literal["pretrained", "random"]
    uri: str = ""
    fingerprint: str = ""


NO_BASE = Base("random")


class Strategy(Protocol):
    """The functions a strategy module has, beside its `Config`."""

    def refuse(self, config: object, *, is_pretrained: bool, width: int) -> str | None:
        """The reason why this run, with an encoder of width D, could not learn or is misnamed, or None."""

    def starts_anew(self, config: object) -> bool:
        """Whether a pretrained model is of no use to it, even where the configuration names one."""

    def apply(self, model: EhrModel, config: object) -> nn.Module:
        """Choose what trains: sets ``requires_grad``, wraps layers. Returns the model to train."""

    def keeps_encoder(self, config: object) -> bool:
        """Whether the encoder's states of a subject never change in training, and are to be computed once."""

    def merge(self, model: nn.Module) -> EhrModel:
        """A plain model that predicts the same, with nothing wrapped."""

    def save_adapter(self, model: nn.Module, folder: Path, *, base: Base = NO_BASE) -> None:
        """Write the adapter alone, where the strategy has one; it is of no use without its base."""


def parameter_table(model: nn.Module) -> pl.DataFrame:
    """Parameters by part: columns part, total, trainable, frozen; the last row sums them.

    Modules that peft keeps as unused originals beside their trained copies are left out.
    """
    parts: dict[str, tuple[int, int]] = dict.fromkeys(("embedding", "encoder", "adapter", "head"), (0, 0))
    for name, parameter in model.named_parameters():
        if "original_module" in name:
            continue
        part = _part(name)
        total, trainable = parts[part]
        n = parameter.numel()
        parts[part] = (total + n, trainable + n * int(parameter.requires_grad))
    rows = [(part, total, trainable, total - trainable) for part, (total, trainable) in parts.items()]
    total, trainable = (sum(counts) for counts in zip(*parts.values(), strict=True))
    rows.append(("all", total, trainable, total - trainable))
    return pl.DataFrame(rows, schema=["part", "total", "trainable", "frozen"], orient="row")


def _part(name: str) -> str:
    if "lora_" in name:
        return "adapter"
    path = name.split(".")
    if "head" in path:
        return "head"
    return "embedding" if "embeddings" in path else "encoder"
