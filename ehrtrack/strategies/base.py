"""What a strategy is to the recipes: a class of its own module, which they get by name.
And the parameter table that every run shows before it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import polars as pl
from torch import Tensor, nn

from ehrtrack import plugins
from ehrtrack.models.behrt import EhrModel
from ehrtrack.section import Choice


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on.

    Attributes
    ----------
    kind : pretrained, and kept under `uri`, such as ``runs:/ID/model``; or random weights, which are kept nowhere
    fingerprint : of the encoder's weights before the strategy touched them
    objective : name of the objective that the head is of
    """

    kind: Literal["pretrained", "random"]
    uri: str = ""
    fingerprint: str = ""
    objective: str = "survival"


NO_BASE = Base("random")


class Strategy(ABC):
    """What of a model trains, and how.

    A subclass says its settings as ``Config``, and narrows ``config`` to them.

    Attributes
    ----------
    adapter_prefix : what the names of the modules that its adapter adds begin with; empty where it adds none
    """

    Config: ClassVar[type[Choice]]
    adapter_prefix: ClassVar[str] = ""

    def __init__(self, config: Choice) -> None:
        self.config = config

    @abstractmethod
    def refuse(self, *, is_pretrained: bool, width: int) -> str | None:
        """The reason why this run, with an encoder of width D, could not learn or is misnamed, or None."""

    @abstractmethod
    def apply(self, model: EhrModel) -> nn.Module:
        """Choose what trains: sets ``requires_grad``, wraps layers. Returns the model to train."""

    def begin_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Choose what trains from this epoch on, of what `apply` let train; returns whether that changed anything."""
        return False

    @property
    def starts_anew(self) -> bool:
        """Whether a pretrained model is of no use to it, even where the configuration names one."""
        return False

    @property
    def keeps_encoder(self) -> bool:
        """Whether the encoder's states of a subject never change in training, and are to be computed once."""
        return False

    @property
    def solves_head(self) -> bool:
        """Whether the head is solved for (`training.ridge_head`), and nothing trained."""
        return False

    @property
    def starts_at_solved_head(self) -> bool:
        """Whether the head is solved for before everything that trains learns on from there."""
        return False

    def merge(self, model: nn.Module) -> EhrModel:
        """A plain model that predicts the same, with nothing wrapped."""
        assert isinstance(model, EhrModel), "a strategy that wraps the model says how to unwrap it"
        return model

    def save_adapter(self, model: nn.Module, folder: Path, *, base: Base = NO_BASE) -> None:  # noqa: B027  most have none
        """Write the adapter alone, where the strategy has one; it is of no use without its base."""

    @property
    def loads_adapter(self) -> bool:
        """Whether it says how its adapter is loaded, by a `load_adapter` of its own."""
        return type(self).load_adapter is not Strategy.load_adapter

    def load_adapter(self, model: EhrModel, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The model of which `save_adapter` wrote the adapter, from its base and the adapter's tensors.

        Raises
        ------
        ValueError, RuntimeError
            If the tensors are not those of such an adapter.
        """
        raise ValueError(f"strategy {self.config.name} says of no adapter how it is loaded")


def strategy_of(config: Choice) -> Strategy:
    """The strategy that these settings are of."""
    return plugins.plugin("strategies", config.name, Strategy)(config)


def parameter_table(model: nn.Module, strategy: Strategy | None = None) -> pl.DataFrame:
    """Parameters by part: columns part, total, trainable, frozen; the last row sums them.

    Modules that peft keeps as unused originals beside their trained copies are left out.

    Parameters
    ----------
    strategy : that was applied to the model, which knows its adapter's parameters by name; None in pretraining
    """
    prefix = strategy.adapter_prefix if strategy else ""
    parts: dict[str, tuple[int, int]] = dict.fromkeys(("embedding", "encoder", "adapter", "head"), (0, 0))
    for name, parameter in model.named_parameters():
        if "original_module" in name:
            continue
        part = _part(name.split("."), prefix)
        total, trainable = parts[part]
        n = parameter.numel()
        parts[part] = (total + n, trainable + n * int(parameter.requires_grad))
    rows = [(part, total, trainable, total - trainable) for part, (total, trainable) in parts.items()]
    total, trainable = (sum(counts) for counts in zip(*parts.values(), strict=True))
    rows.append(("all", total, trainable, total - trainable))
    return pl.DataFrame(rows, schema=["part", "total", "trainable", "frozen"], orient="row")


def _part(path: list[str], adapter_prefix: str) -> str:
    if adapter_prefix and any(module.startswith(adapter_prefix) for module in path):
        return "adapter"
    if "head" in path:
        return "head"
    return "embedding" if "embeddings" in path else "encoder"
