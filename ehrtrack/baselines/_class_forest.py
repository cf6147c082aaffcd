"""Random forest of classification trees (Breiman 2001, Mach Learn 45:5-32; scikit-learn's) on counts of codes.

It stands in the place of `random-survival-forest` where labels are classes, with the same settings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from sklearn.ensemble import RandomForestClassifier

from ehrtrack.arrays import Floats
from ehrtrack.baselines._classes import ClassModel
from ehrtrack.baselines._trees import Trees, join, used_by_trees
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

ROWS_AT_ONCE = 20_000
"""Subjects whose features are in memory together when predicting."""


@dataclass(frozen=True)
class ClassForestModel(ClassModel[pl.DataFrame]):
    """A fitted forest; a leaf's value is the share of the class in it.

    `mean_age`, in years, stands for an age that is unknown; it is None where every age has to be known.
    """

    columns: tuple[str, ...]
    trees: Trees
    facts: dict[str, float | int | str]
    mean_age: float | None = None

    def probability(self, features: pl.DataFrame) -> Floats:
        """(B,) the mean of the trees' shares."""
        parts = [self._mean(features[i : i + ROWS_AT_ONCE]) for i in range(0, len(features), ROWS_AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _mean(self, features: pl.DataFrame) -> Floats:
        # The library compares in single precision.
        x = matrix(with_ages(features, self.mean_age), self.columns).astype(np.float32).astype(np.float64)
        total = np.zeros(len(x))
        for leaf in self.trees.leaves(x):
            total += self.trees.value[leaf]
        return total / len(self.trees.roots)

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log; parameters are the leaves' values."""
        return {"n_parameters": self.trees.n_leaves, "n_leaves": self.trees.n_leaves, **self.facts}

    def to_json(self) -> str:
        """The model as JSON text."""
        fields: dict[str, object] = {"columns": self.columns, "facts": self.facts, "trees": self.trees.to_json()}
        fields |= {} if self.mean_age is None else {"mean_age": self.mean_age}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> ClassForestModel:
        """The model back from `to_json`.

        Raises
        ------
        CheckpointError
            If the text is not such a model.
        """
        try:
            fields = parse_json(text)
            columns = names_of(fields["columns"])
            trees = Trees.from_json(fields["trees"], n_columns=len(columns))
            mean_age = None if fields.get("mean_age") is None else float(fields["mean_age"])
            return cls(columns, trees, dict(fields["facts"]), mean_age)
        except BROKEN as error:
            raise CheckpointError(
                f"{text[:60]!r} is not a random forest of classes ({error!r}); give what ClassForestModel.to_json wrote"
            ) from error


class ClassForest(Baseline[pl.DataFrame]):
    """A random forest on counts of codes."""

    Config = RandomSurvivalForestConfig
    config: RandomSurvivalForestConfig
    title = "random-forest"

    def read(self, histories: TokenHistories) -> pl.DataFrame:
        return read_counts(histories)

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
            library = RandomForestClassifier(
                n_estimators=self.config.n_trees,
                max_samples=min(self.config.max_rows, len(x)),
                random_state=self.config.seed,
                **setting,
            )
            return replace(_from_library(library.fit(x, train.is_event), columns), mean_age=mean_age)

        space = {"min_samples_leaf": self.config.min_rows, "max_features": self.config.feature_shares}
        best = tune(self.config, space, fit_one, validation)
        best.model.facts.update({"n_features": len(columns), "n_trees": self.config.n_trees, **best.facts()})
        return best.model

    @classmethod
    def from_json(cls, text: str) -> ClassForestModel:
        return ClassForestModel.from_json(text)


def _from_library(library: RandomForestClassifier, columns: list[str]) -> ClassForestModel:
    """The forest's trees, over the columns that they ask for."""
    of_class = list(library.classes_).index(True)
    nodes = []
    for estimator in library.estimators_:
        tree = estimator.tree_
        is_leaf = tree.children_left < 0
        nodes.append(
            {
                "feature": np.where(is_leaf, -1, tree.feature),
                "threshold": tree.threshold,
                "is_missing_left": np.zeros(tree.node_count, dtype=bool),
                "left": tree.children_left,
                "right": tree.children_right,
                "value": np.where(is_leaf, tree.value[:, 0, of_class], 0.0),
            }
        )
    trees = join(nodes)
    kept = trees.used()
    return ClassForestModel(tuple(columns[j] for j in kept), trees.with_columns(kept), {})
