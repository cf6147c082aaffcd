"""Random survival forest (Ishwaran et al. 2008, Ann Appl Stat 2:841-860; scikit-survival's) on counts of codes.

A leaf of scikit-survival's trees keeps a curve with a step for each distinct follow-up time, and a split compares
curves step by step: on days, 3,000 subjects and 100 trees are hundreds of MB. Here times are numbers of intervals of
the time grid, and a tree sees `max_rows` subjects at most, which bounds both, whatever the cohort's size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
from sksurv.ensemble import RandomSurvivalForest
from sksurv.util import Surv

from ehrtrack.arrays import Float32s, Floats
from ehrtrack.baselines._class_forest import ClassForest
from ehrtrack.baselines._trees import Trees, columns_and_grid, join
from ehrtrack.baselines.base import (
    Baseline,
    Setting,
    Tabular,
    TokenHistories,
    check_events,
    matrix,
    names_of,
    read_counts,
    tune,
    with_ages,
    with_ages_filled,
)
from ehrtrack.baselines.settings import RandomSurvivalForestConfig
from ehrtrack.errors import CheckpointError
from ehrtrack.files import BROKEN, parse_json
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.time_grid import TimeGrid

ROWS_AT_ONCE = 20_000
"""Subjects whose features are in memory together when predicting."""


@dataclass(frozen=True)
class ForestModel:
    """A fitted forest; a leaf's value is its Kaplan-Meier curve at the K + 1 edges of the grid.

    `mean_age`, in years, stands for an age that is unknown; it is None where every age has to be known.
    """

    grid: TimeGrid
    columns: tuple[str, ...]
    trees: Trees
    facts: dict[str, float | int | str]
    mean_age: float | None = None

    def survival(self, features: pl.DataFrame, times: npt.ArrayLike) -> Floats:
        """(B, M) the mean of the trees' curves, by straight lines between the edges, and constant after the last."""
        days = np.minimum(np.atleast_1d(np.asarray(times, dtype=np.float64)), self.grid.horizon_days)
        parts = [self._curve(features[i : i + ROWS_AT_ONCE]) for i in range(0, len(features), ROWS_AT_ONCE)]
        curve = np.concatenate(parts) if parts else np.zeros((0, self.grid.n_intervals + 1))
        return interpolate_survival(curve, self.grid, days)

    def _curve(self, features: pl.DataFrame) -> Floats:
        # The library compares in single precision.
        x = matrix(with_ages(features, self.mean_age), self.columns).astype(np.float32).astype(np.float64)
        total = np.zeros((len(x), self.grid.n_intervals + 1))
        for leaf in self.trees.leaves(x):
            total += self.trees.value[leaf]
        return total / len(self.trees.roots)

    def risk(self, features: pl.DataFrame, horizon_days: float) -> Floats:
        """(B,) probability of an event up to the horizon."""
        return 1 - self.survival(features, [horizon_days])[:, 0]

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log; parameters are the leaves' values."""
        n_leaves = self.trees.n_leaves
        return {"n_parameters": n_leaves * self.grid.n_intervals, "n_leaves": n_leaves, **self.facts}

    def to_json(self) -> str:
        """The model as JSON text."""
        fields: dict[str, object] = {"grid": self.grid.to_json(), "columns": self.columns, "facts": self.facts}
        fields |= {} if self.mean_age is None else {"mean_age": self.mean_age}
        return json.dumps(fields | {"trees": self.trees.to_json()})

    @classmethod
    def from_json(cls, text: str) -> ForestModel:
        """The model back from `to_json`.

        Raises
        ------
        CheckpointError
            If the text is not such a model.
        """
        try:
            fields = parse_json(text)
            grid = TimeGrid.from_json(fields["grid"])
            columns = names_of(fields["columns"])
            return cls(
                grid=grid,
                columns=columns,
                trees=Trees.from_json(fields["trees"], n_columns=len(columns), n_values=grid.n_intervals + 1),
                facts=dict(fields["facts"]),
                mean_age=None if fields.get("mean_age") is None else float(fields["mean_age"]),
            )
        except BROKEN as error:
            raise CheckpointError(
                f"{text[:60]!r} is not a random survival forest ({error!r}); give what ForestModel.to_json wrote"
            ) from error


class Forest(Baseline[pl.DataFrame]):
    """A random survival forest on counts of codes."""

    Config = RandomSurvivalForestConfig
    config: RandomSurvivalForestConfig

    def read(self, histories: TokenHistories) -> pl.DataFrame:
        return read_counts(histories)

    def fit(self, train: Tabular, validation: Tabular) -> ForestModel:
        """Fit on the training subjects; settings are chosen on the validation subjects.

        Raises
        ------
        DataError
            If there is no training event, no usable feature, a missing value, or no comparable validation pair.
        """
        check_events(train)
        train, validation, mean_age = with_ages_filled(train, validation)
        columns, grid = columns_and_grid(self.config, train)
        x, y, weight = _on_grid(train, columns, grid)
        drawn_by = None if (weight == 1).all() else weight  # bootstrap samples drawn by weights of 1 are other samples

        def fit_one(setting: Setting) -> ForestModel:
            library = RandomSurvivalForest(
                n_estimators=self.config.n_trees,
                max_samples=min(self.config.max_rows, round(weight.sum())),
                random_state=self.config.seed,
                **setting,
            )
            return replace(from_library(library.fit(x, y, drawn_by), columns, grid), mean_age=mean_age)

        space = {"min_samples_leaf": self.config.min_rows, "max_features": self.config.feature_shares}
        best = tune(self.config, space, fit_one, validation)
        best.model.facts.update(
            {
                "n_features": len(columns),
                "n_trees": self.config.n_trees,
                **best.facts(),
            }
        )
        return best.model

    @classmethod
    def for_classes(cls) -> type[Baseline]:
        """A forest of classification trees by the same settings."""
        return ClassForest

    @classmethod
    def from_json(cls, text: str) -> ForestModel:
        return ForestModel.from_json(text)


def _on_grid(subjects: Tabular, columns: list[str], grid: TimeGrid) -> tuple[Float32s, npt.NDArray[np.void], Floats]:
    """Features, (event, time) with the number of the interval, from 1, as the time, and the weight of each row.

    A censored subject's time is the last interval that it was seen through. One that was seen through the share f of
    the next is two rows: with the weight f it was seen through that as well, and with 1 - f it was not. A row that was
    not seen through the first interval tells nothing, and is left out.
    """
    survived = grid.survived(subjects.follow_up_days, subjects.is_event)
    whole = np.floor(survived)
    share = survived - whole
    row = np.tile(np.arange(len(survived)), 2)
    time, weight = np.concatenate([whole + subjects.is_event, whole + 1]), np.concatenate([1 - share, share])
    seen = (time > 0) & (weight > 0)
    x = matrix(subjects.features, columns)[row[seen]].astype(np.float32)
    return x, Surv.from_arrays(subjects.is_event[row[seen]], time[seen]), weight[seen]


def from_library(library: RandomSurvivalForest, columns: list[str], grid: TimeGrid) -> ForestModel:
    """The forest's trees, over the columns that they ask for."""
    # The last step at or before each edge: intervals in which nobody left have none of their own.
    step = np.searchsorted(library.unique_times_, np.arange(grid.n_intervals + 1), side="right")
    nodes = []
    for estimator in library.estimators_:
        tree = estimator.tree_
        is_leaf = tree.children_left < 0
        curve = np.column_stack([np.ones(tree.node_count), tree.value[:, :, 1]])[:, step]
        nodes.append(
            {
                "feature": np.where(is_leaf, -1, tree.feature),
                "threshold": tree.threshold,
                "is_missing_left": np.zeros(tree.node_count, dtype=bool),
                "left": tree.children_left,
                "right": tree.children_right,
                # Six digits: half the size, and far finer than what a leaf of some subjects can tell.
                "value": np.where(is_leaf[:, None], np.round(curve, 6), 0.0),
            }
        )
    trees = join(nodes)
    kept = trees.used()
    return ForestModel(grid, tuple(columns[j] for j in kept), trees.with_columns(kept), {})
