"""Random survival forest (Ishwaran et al. 2008, Ann Appl Stat 2:841-860; scikit-survival's) on counts of codes.

Where labels are classes, a random forest of classification trees stands in its place, with the same settings.

A leaf of scikit-survival's trees keeps a curve with a step for each distinct follow-up time, and a split compares
curves step by step: on days, 3,000 subjects and 100 trees are hundreds of MB. Here times are numbers of intervals of
the time grid, and a tree sees `max_rows` subjects at most, which bounds both, whatever the cohort's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.ensemble import RandomForestClassifier
from sksurv.ensemble import RandomSurvivalForest
from sksurv.util import Surv

from ehrtrack.arrays import Bools, Float32s, Floats
from ehrtrack.baselines._classes import ClassModel
from ehrtrack.baselines._trees import TreeModel, Trees, columns_and_grid, join, used_by_trees
from ehrtrack.baselines.base import (
    Baseline,
    FittedBaseline,
    Setting,
    Tabular,
    TokenHistories,
    check_events,
    matrix,
    read_counts,
    tune,
    with_ages_filled,
)
from ehrtrack.baselines.settings import RandomSurvivalForestConfig
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.time_grid import TimeGrid


@dataclass(frozen=True, kw_only=True)
class ForestModel(TreeModel):
    """A fitted forest; a leaf's value is its Kaplan-Meier curve at the K + 1 edges of the grid."""

    what = "a random survival forest"

    grid: TimeGrid

    def survival(self, features: pl.DataFrame, times: npt.ArrayLike) -> Floats:
        """(B, M) the mean of the trees' curves, by straight lines between the edges, and constant after the last."""
        days = np.minimum(np.atleast_1d(np.asarray(times, dtype=np.float64)), self.grid.horizon_days)
        return interpolate_survival(self.mean_of_leaves(features), self.grid, days)

    def risk(self, features: pl.DataFrame, horizon_days: float) -> Floats:
        """(B,) probability of an event up to the horizon."""
        return 1 - self.survival(features, [horizon_days])[:, 0]

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log; parameters are the leaves' values."""
        n_leaves = self.trees.n_leaves
        return {"n_parameters": n_leaves * self.grid.n_intervals, "n_leaves": n_leaves, **self.facts}

    def own_fields(self) -> dict[str, Any]:
        return {"grid": self.grid.to_json()}

    @classmethod
    def read_own(cls, fields: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
        grid = TimeGrid.from_json(fields["grid"])
        trees = Trees.from_json(fields["trees"], n_columns=len(columns), n_values=grid.n_intervals + 1)
        return {"grid": grid, "trees": trees}


@dataclass(frozen=True, kw_only=True)
class ClassForestModel(TreeModel, ClassModel[pl.DataFrame]):
    """A fitted forest of classification trees; a leaf's value is the share of the class in it."""

    what = "a random forest of classes"

    def probability(self, features: pl.DataFrame) -> Floats:
        """(B,) the mean of the trees' shares."""
        return self.mean_of_leaves(features)

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log; parameters are the leaves' values."""
        return {"n_parameters": self.trees.n_leaves, "n_leaves": self.trees.n_leaves, **self.facts}


AnyForest = TypeVar("AnyForest", ForestModel, ClassForestModel)


class Forest(Baseline[pl.DataFrame]):
    """A random survival forest on counts of codes."""

    Config = RandomSurvivalForestConfig
    config: RandomSurvivalForestConfig

    def read(self, histories: TokenHistories) -> pl.DataFrame:
        return read_counts(histories)

    def fit(self, train: Tabular, validation: Tabular) -> FittedBaseline[pl.DataFrame]:
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
            library = RandomSurvivalForest(**self._settings(round(weight.sum())), **setting)
            return replace(from_library(library.fit(x, y, drawn_by), columns, grid), mean_age=mean_age)

        return self._best(fit_one, columns, validation)

    def _settings(self, n_rows: int) -> dict[str, Any]:
        """Those that are not tuned, as both libraries call them."""
        return {
            "n_estimators": self.config.n_trees,
            "max_samples": min(self.config.max_rows, n_rows),
            "random_state": self.config.seed,
        }

    def _best(self, fit_one: Callable[[Setting], AnyForest], columns: Sequence[str], validation: Tabular) -> AnyForest:
        space = {"min_samples_leaf": self.config.min_rows, "max_features": self.config.feature_shares}
        best = tune(self.config, space, fit_one, validation)
        best.model.facts.update({"n_features": len(columns), "n_trees": self.config.n_trees, **best.facts()})
        return best.model

    @classmethod
    def for_classes(cls) -> type[Baseline]:
        """A forest of classification trees by the same settings."""
        return ClassForest

    @classmethod
    def from_json(cls, text: str) -> FittedBaseline[pl.DataFrame]:
        return ForestModel.from_json(text)


class ClassForest(Forest):
    """A random forest of classification trees (Breiman 2001, Mach Learn 45:5-32; scikit-learn's) on counts of codes."""

    title = "random-forest"

    def fit(self, train: Tabular, validation: Tabular) -> ClassForestModel:
        """Fit on the training subjects; settings are chosen by AUROC on the validation subjects.

        Raises
        ------
        DataError
            If a class is missing, there is no usable feature, or a value is missing.
        """
        check_events(train)
        train, validation, mean_age = with_ages_filled(train, validation)
        columns = used_by_trees(self.config, train)
        x = matrix(train.features, columns).astype(np.float32)

        def fit_one(setting: Setting) -> ClassForestModel:
            library = RandomForestClassifier(**self._settings(len(x)), **setting).fit(x, train.is_event)
            of_class = list(library.classes_).index(True)
            trees, kept = _trees_of(library.estimators_, columns, lambda tree: tree.value[:, 0, of_class])
            return ClassForestModel(columns=kept, trees=trees, facts={}, mean_age=mean_age)

        return self._best(fit_one, columns, validation)

    @classmethod
    def from_json(cls, text: str) -> ClassForestModel:
        return ClassForestModel.from_json(text)


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


def from_library(library: RandomSurvivalForest, columns: Sequence[str], grid: TimeGrid) -> ForestModel:
    """The forest's trees, over the columns that they ask for."""
    # The last step at or before each edge: intervals in which nobody left have none of their own.
    step = np.searchsorted(library.unique_times_, np.arange(grid.n_intervals + 1), side="right")

    def curve(tree: Any) -> Floats:
        # Six digits: half the size, and far finer than what a leaf of some subjects can tell.
        return np.round(np.column_stack([np.ones(tree.node_count), tree.value[:, :, 1]])[:, step], 6)

    trees, kept = _trees_of(library.estimators_, columns, curve)
    return ForestModel(columns=kept, trees=trees, facts={}, grid=grid)


def _trees_of(
    estimators: Sequence[Any], columns: Sequence[str], value: Callable[[Any], Floats]
) -> tuple[Trees, tuple[str, ...]]:
    """The trees of a library's forest with the columns that they ask for.

    Parameters
    ----------
    value : (n_nodes, ...) what each node of a tree would say as a leaf
    """
    nodes = []
    for estimator in estimators:
        tree = estimator.tree_
        is_leaf: Bools = tree.children_left < 0
        of_leaf = value(tree).copy()
        of_leaf[~is_leaf] = 0.0
        nodes.append(
            {
                "feature": np.where(is_leaf, -1, tree.feature),
                "threshold": tree.threshold,
                "is_missing_left": np.zeros(tree.node_count, dtype=bool),
                "left": tree.children_left,
                "right": tree.children_right,
                "value": of_leaf,
            }
        )
    trees = join(nodes)
    kept = trees.used()
    return trees.with_columns(kept), tuple(columns[j] for j in kept)
