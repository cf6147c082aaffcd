"""What is evaluated: predictions of one split with what came, and all that measures take beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import polars as pl
from pydantic import Field

from ehrtrack.arrays import Bools, Floats
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.objectives.survival import baseline_survival, survival_ibs
from ehrtrack.section import Section
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.metrics import evaluation_times
from ehrtrack.survival.time_grid import TimeGrid


class EvaluationConfig(Section):
    """Settings of the evaluation of a fitted model.

    Attributes
    ----------
    n_resamples : number of bootstrap samples of subjects; within groups, and for the calibration slope, at most 200
    recalibration : how the hazards are recalibrated on validation subjects. Recalibrated curves are reported apart from
        the raw ones
    conformal_coverage : share of subjects for whom lower bounds on the time to the event should hold; 0 computes none

    Examples
    --------
    >>> EvaluationConfig(recalibration="isotonic").n_resamples
    500
    """

    n_resamples: int = Field(500, ge=20)
    recalibration: Literal["none", "platt", "isotonic"] = "platt"
    conformal_coverage: float = Field(0.9, ge=0, lt=1)


@dataclass(frozen=True)
class Split:
    """The predictions of a model for the B subjects of a split, and their outcomes.

    Attributes
    ----------
    survival : (B, K + 1) predicted S at the edges of the grid
    grid : the time grid of the model
    training : outcomes of the training subjects, from which the censoring weights and the days of evaluation follow
    outcomes : outcomes of the B subjects
    incidence : (B, R, K + 1) cumulative incidence of each of R causes, or None where there is one

    Examples
    --------
    Two subjects with the event on days 10 and 20, and risks of .6 and .2 up to day 30:

    >>> import numpy as np
    >>> outcomes = Outcomes(np.array([10.0, 20.0]), np.array([True, True]))
    >>> split = Split(np.array([[1.0, 0.4], [1.0, 0.8]]), TimeGrid((0, 30)), training=outcomes, outcomes=outcomes)
    >>> split.risk.round(3).tolist(), split.population.tolist()
    ([0.6, 0.2], [1.0, 0.0])
    """

    survival: Floats
    grid: TimeGrid
    training: Outcomes
    outcomes: Outcomes
    incidence: Floats | None = None

    @property
    def horizon_days(self) -> float:
        return self.grid.horizon_days

    @property
    def risk(self) -> Floats:
        """(B,) probability of the event up to the horizon."""
        risk: Floats = 1 - self.survival[:, -1]
        return risk

    @property
    def observed(self) -> tuple[Floats, Floats, Bools]:
        """(B,) risk, follow-up in days as recorded, and whether the event was seen: what a C-index takes."""
        return self.risk, self.outcomes.follow_up_days, self.outcomes.is_event

    @cached_property
    def follow_up(self) -> FollowUp:
        """Follow-up by the rule for ties, and no longer than that of the training subjects."""
        training, outcomes = self.training, self.outcomes
        return FollowUp.of(
            *(training.follow_up_days, training.is_event, outcomes.follow_up_days, outcomes.is_event),
            subject=outcomes.subject,
        )

    @cached_property
    def population(self) -> Floats:
        """(K + 1,) survival curve of the training subjects, the same for everybody."""
        return baseline_survival(self.training, self.grid)

    @cached_property
    def ibs(self) -> float:
        """Integrated Brier score."""
        return survival_ibs(self.survival, self.grid, self.training, self.outcomes)

    def evaluation_times(self) -> Floats:
        """Within the 10th to 90th percentile of training follow-up."""
        follow_up = self.follow_up
        return evaluation_times(follow_up.train_days, follow_up.train_is_event, follow_up.days)


@dataclass(frozen=True)
class Context:
    """What a measure is computed from, besides the split.

    Attributes
    ----------
    config : settings of the evaluation
    seed : seed of the bootstrap
    validation : the validation split, on which recalibration and lower bounds are fitted; None where it is itself
        evaluated
    groups : attribute -> (B,) the group of each subject
    true_risk : (B,) true risk of simulated subjects, or None
    threshold : risk from which the outcome is called, where labels are classes; None for the training prevalence

    Examples
    --------
    >>> Context(EvaluationConfig(n_resamples=100), seed=1).resampling
    {'n_resamples': 100, 'seed': 1}
    """

    config: EvaluationConfig
    seed: int
    validation: Split | None = None
    groups: Mapping[str, pl.Series] = field(default_factory=dict)
    true_risk: Floats | None = None
    threshold: float | None = None

    @property
    def resampling(self) -> dict[str, int]:
        return {"n_resamples": self.config.n_resamples, "seed": self.seed}
