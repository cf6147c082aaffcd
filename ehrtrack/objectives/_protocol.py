"""What an objective is to the training loop, and what it may know of the training subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, Batches, Outcomes
from ehrtrack.models.code_effects import CodeEffects, Levels
from ehrtrack.models.heads import Head
from ehrtrack.models.settings import READOUT_DAYS


@dataclass(frozen=True)
class TrainingFacts:
    """Facts of the training subjects that an objective is fitted to; nothing of validation or test.

    Attributes
    ----------
    token_counts : (V,) how often each vocabulary index occurs
    outcomes : time-to-event labels, or None in pretraining
    horizon_days : end of the time axis of the outcome, or None in pretraining
    records : the training subjects' records, whole ones in pretraining, for what is counted of or fitted to them
    levels : of the tokens' values
    scales_days : of times, those on which the encoder reads the record (`model.readout_days`)
    onsets : what single codes and values say of the onsets of codes, where the base was pretrained to foretell them
    """

    token_counts: npt.NDArray[np.int64]
    outcomes: Outcomes | None = None
    horizon_days: float | None = None
    records: Batches | None = None
    levels: Levels | None = None
    scales_days: tuple[float, ...] = READOUT_DAYS
    onsets: CodeEffects | None = None


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


class BatchLoss(NamedTuple):
    """The loss of a batch, in a form that adds up over the batches of a step and over ranks.

    The gradient of a step is that of the sum of all `total`, divided by the sum of all `weight`: however a step's
    subjects are cut into batches, it is the gradient of their mean loss.
    """

    total: Tensor  # scalar, to be differentiated
    weight: int  # subjects or targets of this batch
    mean: float  # of this batch, for the log


class Objective(Protocol):
    """A loss with its head and its validation metrics."""

    selection: Selection

    def make_head(self, width: int) -> Head:
        """A fresh head for an encoder of width D."""

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        """Training loss of a batch; what is random comes from ``batch.generator()``."""

    def score(self, model: nn.Module, batch: Batch) -> Any:
        """What `metrics` needs to know of a validation batch, as plain values and arrays."""

    def metrics(self, scores: Sequence[Any]) -> dict[str, float]:
        """Validation metrics from the scores of all batches in their order, named ``val/...``.

        Always ``val/loss`` and the selection metric among them.
        """


class PretrainingObjective(Objective, Protocol):
    """An objective that takes its targets from the records themselves.

    Attributes
    ----------
    trivial : validation losses, and beside each the metric that has a trivial predictor's loss on the same targets.
        A model that is not below it has learned nothing
    """

    trivial: Mapping[str, str]
