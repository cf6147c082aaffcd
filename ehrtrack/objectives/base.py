"""What an objective is to the training loop and the recipes, and what it may know of the training subjects."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from ehrtrack import plugins
from ehrtrack.arrays import Floats, Ints
from ehrtrack.data.batch import Batch, Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.heads import Head
from ehrtrack.models.record_columns import Levels
from ehrtrack.models.settings import READOUT_DAYS
from ehrtrack.runlog import Task
from ehrtrack.section import Choice
from ehrtrack.survival.time_grid import TimeGrid

Score = TypeVar("Score", covariant=True, default=object)
"""What an objective keeps of a validation batch. Scores come from `score` of the same objective alone, so that any may
stand where an `Objective` is asked for, whatever its scores."""

History = Sequence[Mapping[str, float]]
"""The metrics of each epoch, in order."""


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
    mean_age : at the end of the training subjects' records, in years, where there may be subjects of unknown age
    has_classes : labels tell whether the outcome comes, and not when
    onsets : what single codes and values say of the onsets of codes, where the base was pretrained to foretell them
    n_members : of the encoder
    """

    token_counts: Ints
    outcomes: Outcomes | None = None
    horizon_days: float | None = None
    records: Batches | None = None
    levels: Levels | None = None
    scales_days: tuple[float, ...] = READOUT_DAYS
    mean_age: float | None = None
    onsets: CodeEffects | None = None
    has_classes: bool = False
    n_members: int = 1


@dataclass(frozen=True)
class Selection:
    """The validation metrics that early stopping and the choice of the checkpoint go by.

    The epoch with the best `metric` is kept, or, where `among` is named, one is kept by the rule of one standard error
    (Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3): of the epochs whose `metric` lies
    within one standard error of the best, the one with the lowest `among`. Epochs that the C-index cannot tell apart
    are told apart by how right their risks are. Patience counts from the best, or from the kept one where it is later.

    Attributes
    ----------
    error : metric that is the standard error of `metric`; epochs that have none are all within it
    among : metric of which a low value is better
    """

    metric: str
    is_higher_better: bool
    error: str = ""
    among: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that every epoch must have."""
        return (self.metric, self.among) if self.among else (self.metric,)

    def best_epoch(self, history: History) -> int:
        """The first epoch (from 1) with the best `metric`; 0 before there is one."""
        return max(_numbers(history), key=lambda n: (self._gain(history, n), -n), default=0)

    def kept_epoch(self, history: History) -> int:
        """The epoch (from 1) whose weights are to be kept; 0 before there is one."""
        best = self.best_epoch(history)
        if not self.among or not best:
            return best
        least = self._gain(history, best) - history[best - 1].get(self.error, math.inf)
        within = [n for n in _numbers(history) if self._gain(history, n) >= least]
        return min(within, key=lambda n: (history[n - 1][self.among], -self._gain(history, n), n))

    def last_progress(self, history: History) -> int:
        """The epoch (from 1) that patience counts from; 0 before there is one.

        While the kept epoch moves on, the best `metric` may be the lucky draw of an early epoch.
        """
        return max(self.best_epoch(history), self.kept_epoch(history))

    def candidates(self, history: History) -> list[int]:
        """The epochs of which one is, or may come to be, the kept one.

        An epoch that another equals or surpasses in `metric` and in `among` is never kept, whatever comes.
        """
        if not self.among:
            return [self.best_epoch(history)] if history else []
        epochs = _numbers(history)
        return [n for n in epochs if not any(self._makes_needless(history, m, n) for m in epochs)]

    def _makes_needless(self, history: History, one: int, other: int) -> bool:
        """Whether one epoch is at least as good as another in both metrics, and better or earlier."""
        gains, lows = zip(*((self._gain(history, n), history[n - 1][self.among]) for n in (one, other)), strict=True)
        is_as_good = gains[0] >= gains[1] and lows[0] <= lows[1]
        return is_as_good and (one < other or (gains[0], lows[0]) != (gains[1], lows[1]))

    def _gain(self, history: History, epoch: int) -> float:
        value = history[epoch - 1][self.metric]
        return value if self.is_higher_better else -value


def _numbers(history: History) -> range:
    return range(1, len(history) + 1)


class BatchLoss(NamedTuple):
    """The loss of a batch, in a form that adds up over the batches of a step and over ranks.

    The gradient of a step is that of the sum of all `total`, divided by the sum of all `weight`: however a step's
    subjects are cut into batches, it is the gradient of their mean loss.
    """

    total: Tensor  # scalar, to be differentiated
    weight: int  # subjects or targets of this batch
    mean: float  # of this batch, for the log


class Prepared(NamedTuple):
    """A batch with all that its loss needs beside the model: what is random is drawn, and labels are tensors.

    Attributes
    ----------
    batch : with its targets hidden, where the objective hides some
    labels : (B,) of the subjects, or (M,) of the targets where the batch has some, by name
    weight : subjects or targets
    """

    batch: Batch
    labels: dict[str, Tensor]
    weight: int


@dataclass(frozen=True)
class Predictions:
    """The survival curves that a model predicts for N subjects.

    Attributes
    ----------
    rows : (N,) rows of the token store
    survival : (N, K + 1) S at the edges of the time grid
    incidence : (N, R, K + 1) cumulative incidence of each of R causes there, or None where there is one
    """

    rows: Ints
    survival: Floats
    incidence: Floats | None = None

    @property
    def risk(self) -> Floats:
        """(N,) probability of the outcome up to the horizon."""
        return 1 - self.survival[:, -1]


@dataclass(frozen=True)
class Rebuilt:
    """What it takes to predict with weights that were kept.

    Attributes
    ----------
    head : of the shapes of the weights, which are still to be loaded
    predict : from a model with this head, batches and a device to predictions in the order of the batches
    n_causes : R, causes of which the incidence is told; 1 where there is one outcome, or any of several
    """

    head: Head
    predict: Callable[[nn.Module, Iterable[Batch], torch.device], Predictions]
    n_causes: int = 1


class Objective(ABC, Generic[Score]):
    """A loss with its head and its validation metrics; `Score` is what it keeps of a validation batch.

    A subclass says its settings as ``Config``, and is made of these and of facts of the training subjects.
    """

    Config: ClassVar[type[Choice]]
    selection: Selection
    task: Task
    fillers: Mapping[str, float] = {}
    """Labels of a subject or target that only fills up a batch to a fixed shape, and adds nothing to its loss; empty
    where the loss has no fixed shape. An objective that has them says `prepare` and `total` too, and `score` asks of
    the model only what it returns when it is called with a batch."""

    @abstractmethod
    def __init__(self, config: Choice, facts: TrainingFacts) -> None:
        """Fit what the objective knows of the training subjects, such as a time grid or the rates of codes."""

    @abstractmethod
    def make_head(self, width: int) -> Head:
        """A fresh head for an encoder of width D."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        """Training loss of a batch; what is random comes from ``batch.generator()``."""

    def prepare(self, batch: Batch) -> Prepared:
        """A batch for `total`."""
        raise NotImplementedError

    def total(self, model: nn.Module, batch: Batch, labels: Mapping[str, Tensor], weight: int | Tensor) -> Tensor:
        """`BatchLoss.total` of a prepared batch, by operations whose shapes do not depend on values."""
        raise NotImplementedError

    def most_targets(self, n_tokens: int) -> int:
        """How many targets a batch of so many tokens hardly ever has more of; 0 where it has none."""
        return 0

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> Score:
        """What `metrics` needs to know of a validation batch, as plain values and arrays."""

    @abstractmethod
    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        """Validation metrics from the scores of all batches in their order, named ``val/...``.

        Always ``val/loss`` and the metrics of the selection among them.
        """


class PretrainingObjective(Objective[Score]):
    """An objective that takes its targets from the records themselves; its settings are `PretrainingSettings`.

    Attributes
    ----------
    trivial : validation losses, and beside each the metric that has a trivial predictor's loss on the same targets.
        A model that is not below it has learned nothing
    """

    task: Task = "pretraining"
    trivial: Mapping[str, str]


class OutcomeObjective(Objective[Score]):
    """An objective that learns the outcome of a cohort, read as survival curves; its settings are `OutcomeSettings`.

    Attributes
    ----------
    task : what its models are judged for
    grid : time axis of the curves, fitted to the training subjects
    threshold : risk from which it calls the outcome; None where it calls none
    """

    task: Task = "survival"
    grid: TimeGrid
    threshold: float | None = None

    @abstractmethod
    def baseline_logits(self) -> Tensor:
        """(K,) or (K, R) of the population: where a head begins, and what effects of codes are added to."""

    @abstractmethod
    def likelihood(self, logits: Tensor, outcomes: Outcomes) -> Tensor:
        """Mean loss of logits (B, K) or (B, K R), without what is no likelihood."""

    @abstractmethod
    def rehearse(self, outcomes: Outcomes) -> None:
        """Score a model without inputs on the validation subjects, to fail before training where they are too few.

        Raises
        ------
        NotMeasurable
            If a measure that every epoch needs cannot be had of these subjects.
        """

    @abstractmethod
    def predict(self, model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Predictions:
        """Survival curves at the edges of the grid, with dropout off, in the order of the batches."""

    @classmethod
    @abstractmethod
    def rebuild(cls, weights: Mapping[str, Tensor], *, width: int, n_intervals: int | None = None) -> Rebuilt:
        """The head that some weights are of, to be loaded with them, and how a model with it predicts.

        Parameters
        ----------
        weights : of the head, by name
        width : D, of the encoder
        n_intervals : K of the time grid that was kept beside the weights, or None where none was

        Raises
        ------
        CheckpointError
            If the weights are of no such head, or do not fit the grid: before memory is taken for a large one.
        """


def pretraining_objective(config: Choice, facts: TrainingFacts) -> PretrainingObjective:
    """The objective that these settings are of, for these training subjects."""
    return plugins.plugin("objectives", config.name, PretrainingObjective)(config, facts)


def outcome_objective(config: Choice, facts: TrainingFacts) -> OutcomeObjective:
    """The objective that these settings are of, for these training subjects."""
    return plugins.plugin("objectives", config.name, OutcomeObjective)(config, facts)
