"""Gradient boosted trees on counts of codes, or on their timing too: the hazard of each interval as a classification.

    logit h_k(x) = F(x, k),      S(t_k | x) = prod_{j <= k} (1 - h_j(x))

A subject is a row for each interval of the time grid that it entered, with the number of the interval as a column, the
event as the label (person-periods: Singer & Willett 1993, J Educ Stat 18:155-195; as a landmark for other models: Craig
et al. 2021, arXiv:2104.12002), and the share of the interval that it was seen through as the weight. F is
scikit-learn's histogram gradient boosting, which reads missing values as they are. Trees are added until the validation
subjects' loss no longer falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier

from ehrtrack.arrays import Bools, Floats
from ehrtrack.baselines._trees import ROWS_AT_ONCE, TreeModel, Trees, columns_and_grid, join
from ehrtrack.baselines.base import (
    Baseline,
    Setting,
    Tabular,
    TokenHistories,
    check_events,
    matrix,
    read_counts,
    read_timing,
    seen_within,
    tune,
    with_ages,
    with_ages_filled,
)
from ehrtrack.baselines.settings import GradientBoostingConfig
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.time_grid import TimeGrid

PATIENCE_TREES = 15
"""Trees without a better validation loss after which no more are added."""


@dataclass(frozen=True, kw_only=True)
class BoostingModel(TreeModel):
    """Fitted trees; after the columns that they ask for comes the number of the interval.

    Attributes
    ----------
    start : F before the first tree
    """

    what = "a gradient boosting model"

    grid: TimeGrid
    start: float

    def hazard(self, features: pl.DataFrame) -> Floats:
        """(B, K) probability of the event in each interval, given that it was entered."""
        parts = [
            self._hazard(features[first : first + ROWS_AT_ONCE]) for first in range(0, len(features), ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.grid.n_intervals))

    def _hazard(self, features: pl.DataFrame) -> Floats:
        x = matrix(with_ages(features, self.mean_age), self.columns, allows_missing=True)
        k = np.arange(self.grid.n_intervals)
        periods = np.column_stack([np.repeat(x, len(k), axis=0), np.tile(k, len(x))])  # (B K, D + 1)
        return expit(raw_score(self.trees, self.start, periods)).reshape(len(x), len(k))  # type: ignore[no-any-return]

    def survival(self, features: pl.DataFrame, times: npt.ArrayLike) -> Floats:
        """(B, M) S(t | x), by straight lines between the edges of the grid, and constant after the last."""
        hazard = self.hazard(features)
        curve = np.cumprod(np.column_stack([np.ones(len(hazard)), 1 - hazard]), axis=1)  # (B, K + 1)
        days = np.atleast_1d(np.asarray(times, dtype=np.float64))
        return interpolate_survival(curve, self.grid, np.minimum(days, self.grid.horizon_days))

    def risk(self, features: pl.DataFrame, horizon_days: float) -> Floats:
        """(B,) probability of an event up to the horizon."""
        return 1 - self.survival(features, [horizon_days])[:, 0]

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log; parameters are the leaves' values."""
        return {"n_parameters": self.trees.n_leaves, "n_trees": len(self.trees.roots), **self.facts}

    def own_fields(self) -> dict[str, Any]:
        return {"grid": self.grid.to_json(), "start": self.start}

    @classmethod
    def read_own(cls, fields: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
        trees = Trees.from_json(fields["trees"], n_columns=len(columns) + 1)
        return {"grid": TimeGrid.from_json(fields["grid"]), "start": float(fields["start"]), "trees": trees}


class GradientBoosting(Baseline[pl.DataFrame]):
    """Boosted trees on counts of codes, or on counts and timing."""

    Config = GradientBoostingConfig
    config: GradientBoostingConfig

    def read(self, histories: TokenHistories) -> pl.DataFrame:
        return read_timing(histories) if self.config.has_timing else read_counts(histories)

    def fit(self, train: Tabular, validation: Tabular) -> BoostingModel:
        """Fit on the training subjects; settings and number of trees are chosen on the validation subjects.

        Raises
        ------
        DataError
            If there is no training event, no usable feature, an infinite value, or no comparable validation pair.
        """
        check_events(train)
        train, validation, mean_age = with_ages_filled(train, validation)
        columns, grid = columns_and_grid(self.config, train)
        of_train = person_periods(train, columns, grid)
        of_validation = person_periods(seen_within(validation, grid.horizon_days), columns, grid)

        def fit_one(setting: Setting) -> BoostingModel:
            library = _library_model(self.config, setting)
            library.fit(
                of_train.x,
                of_train.is_event,
                of_train.weight,
                X_val=of_validation.x,
                y_val=of_validation.is_event,
                sample_weight_val=of_validation.weight,
            )
            n_trees = int(np.argmax(library.validation_score_))  # the score before the first tree is the first
            return replace(_from_library(library, n_trees, columns, grid), mean_age=mean_age)

        space = {
            "learning_rate": self.config.learning_rates,
            "max_leaf_nodes": self.config.max_leaves,
            "min_samples_leaf": self.config.min_rows,
            "l2_regularization": self.config.penalties,
            "max_features": self.config.feature_shares,
        }
        best = tune(self.config, space, fit_one, validation)
        best.model.facts.update({"n_features": len(columns), **best.facts()})
        return best.model

    @classmethod
    def for_classes(cls) -> type[GradientBoosting]:
        """Itself: with one interval, person-periods are the labels, and the hazard is their probability."""
        return cls

    @classmethod
    def from_json(cls, text: str) -> BoostingModel:
        return BoostingModel.from_json(text)


class PersonPeriods(NamedTuple):
    """Rows of subjects and intervals.

    Attributes
    ----------
    x : (R, D + 1) features and number of the interval
    is_event : (R,) whether the event fell in it
    weight : (R,) share of the interval that the subject was seen through; 1 with the event
    """

    x: Floats
    is_event: Bools
    weight: Floats


def person_periods(subjects: Tabular, columns: list[str], grid: TimeGrid) -> PersonPeriods:
    """Intervals that a subject survived, and the one in which its event fell, or it was censored after some part."""
    x = matrix(subjects.features, columns, allows_missing=True)
    survived = grid.survived(subjects.follow_up_days, subjects.is_event)  # (B,)
    n_rows = np.ceil(survived).astype(np.int64) + subjects.is_event
    row = np.repeat(np.arange(len(x)), n_rows)
    k = np.arange(n_rows.sum()) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    is_event = subjects.is_event[row] & (k == survived[row])
    return PersonPeriods(np.column_stack([x[row], k]), is_event, np.clip(survived[row] - k, 0, 1) + is_event)


def _library_model(config: GradientBoostingConfig, setting: Setting) -> HistGradientBoostingClassifier:
    parameters: dict[str, Any] = dict(setting)
    return HistGradientBoostingClassifier(
        max_iter=config.max_trees,
        early_stopping=True,
        scoring="loss",
        n_iter_no_change=PATIENCE_TREES,
        tol=0,
        random_state=config.seed,
        **parameters,
    )


def _from_library(
    library: HistGradientBoostingClassifier, n_trees: int, columns: list[str], grid: TimeGrid
) -> BoostingModel:
    """The first `n_trees` trees, over the columns that they ask for.

    The library has no public door to its trees; a test holds these to its own predictions.
    """
    nodes = [stage[0].nodes for stage in library._predictors[:n_trees]]
    trees = join(
        [
            {
                "feature": np.where(tree["is_leaf"], -1, tree["feature_idx"]),
                "threshold": tree["num_threshold"],
                "is_missing_left": tree["missing_go_to_left"],
                "left": tree["left"],
                "right": tree["right"],
                "value": np.where(tree["is_leaf"], tree["value"], 0.0),
            }
            for tree in nodes
        ]
    )
    kept = np.union1d(trees.used(), [len(columns)]).astype(np.int64)  # the last column is the interval
    return BoostingModel(
        grid=grid,
        columns=tuple(columns[j] for j in kept[:-1]),
        trees=trees.with_columns(kept),
        start=float(library._baseline_prediction[0, 0]),
        facts={},
    )


def raw_score(trees: Trees, start: float, x: Floats) -> Floats:
    """(R,) F: the start and what each tree adds, in the order in which they were fitted."""
    score = np.full(len(x), start)
    for leaf in trees.leaves(x):
        score += trees.value[leaf]
    return score
