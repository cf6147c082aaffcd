"""What an objective is to the training loop, and what it may know of the training subjects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, Outcomes


@dataclass(frozen=True)
class TrainingFacts:
    """Facts of the training subjects that an objective is fitted to; nothing of validation or test.

    Attributes
    ----------
    token_counts : (V,) how often each vocabulary index occurs
    outcomes : time-to-event labels, or None in pretraining
    horizon_days : end of the time axis of the outcome, or None in pretraining
    """

    token_counts: npt.NDArray[np.int64]
    outcomes: Outcomes | None = None
    horizon_days: float | None = None


@dataclass(frozen=True)
class Selection:
    """The validation metric that early stopping and the choice of the checkpoint go by."""

    metric: str
    is_higher_better: bool

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than the best so far."""
        if best is None:
            return True
        return value > best if self.is_higher_better else value < best


class Objective(Protocol):
    """A loss with its head and its validation metrics."""

    selection: Selection

    def make_head(self, width: int) -> nn.Module:
        """A fresh head for an encoder of width D."""

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Scalar training loss of a batch."""

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
        """Validation metrics, named ``val/...``; always ``val/loss`` and the selection metric among them."""
