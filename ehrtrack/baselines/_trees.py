"""Decision trees as flat arrays, and what models of trees share: they are kept as JSON and never unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.baselines._ages import with_ages
from ehrtrack.baselines._json import names_of, no_such_model
from ehrtrack.baselines.base import Tabular, matrix, used_columns
from ehrtrack.baselines.settings import TreeSettings
from ehrtrack.files import BROKEN, parse_json
from ehrtrack.survival.time_grid import TimeGrid, fit_time_grid

LARGEST = float(np.finfo(np.float64).max)
"""A threshold that parts missing from present: infinity, which JSON does not have, and which no feature reaches."""
ROWS_AT_ONCE = 20_000
"""Subjects whose features are in memory together when predicting."""


def columns_and_grid(config: TreeSettings, train: Tabular) -> tuple[list[str], TimeGrid]:
    """The columns that trees may ask for, and the time grid up to the longest follow-up.

    Raises
    ------
    DataError
        If no column can be used.
    """
    columns = used_by_trees(config, train)
    grid = fit_time_grid(
        train.follow_up_days,
        train.is_event,
        horizon_days=float(train.follow_up_days.max()),
        n_intervals=config.n_intervals,
    )
    return columns, grid


def used_by_trees(config: TreeSettings, train: Tabular) -> list[str]:
    """The columns that trees may ask for.

    Raises
    ------
    DataError
        If no column can be used.
    """
    n_needed = max(config.min_subjects, int(np.ceil(config.min_share * len(train.features))))
    return used_columns(train, min_subjects=n_needed)


@dataclass(frozen=True)
class Trees:
    """Several trees, node after node.

    Attributes
    ----------
    roots : (n_trees,) node at which each begins
    feature : (n_nodes,) column that a node asks for; -1 in a leaf
    threshold : (n_nodes,) go left if the column is at most this
    is_missing_left : (n_nodes,) whether a missing value goes left
    left, right : (n_nodes,) the node that follows
    value : (n_nodes, ...) what a leaf says; inner nodes 0
    """

    roots: Ints
    feature: Ints
    threshold: Floats
    is_missing_left: Bools
    left: Ints
    right: Ints
    value: Floats

    @property
    def n_leaves(self) -> int:
        """Of all trees together."""
        return int((self.feature < 0).sum())

    def leaves(self, x: Floats) -> Iterator[Ints]:
        """Tree by tree, (B,) the leaf that each row of x (B, D) comes to."""
        for root in self.roots:
            node = np.full(len(x), root)
            moving = np.arange(len(x)) if self.feature[root] >= 0 else np.zeros(0, dtype=np.int64)
            while len(moving):
                at = node[moving]
                values = x[moving, self.feature[at]]
                goes_left = np.where(np.isnan(values), self.is_missing_left[at], values <= self.threshold[at])
                node[moving] = np.where(goes_left, self.left[at], self.right[at])
                moving = moving[self.feature[node[moving]] >= 0]
            yield node

    def used(self) -> Ints:
        """The columns that some node asks for, rising."""
        return np.unique(self.feature[self.feature >= 0])

    def with_columns(self, kept: Ints) -> Trees:
        """The same trees for a table of the columns `kept` (rising) alone."""
        feature = np.where(self.feature >= 0, np.searchsorted(kept, self.feature), -1)
        return Trees(**{**vars(self), "feature": feature})

    def to_json(self) -> dict[str, Any]:
        """Plain lists; numbers keep all their digits."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], *, n_columns: int, n_values: int | None = None) -> Trees:
        """The inverse of `to_json`.

        Parameters
        ----------
        n_columns : of the table that the trees ask
        n_values : that a leaf has; None for one number

        Raises
        ------
        KeyError, TypeError, ValueError
            If the fields are not those of trees: a node that leads back would never come to an end.
        """
        kinds = {name: np.int64 for name in ("roots", "feature", "left", "right")}
        types = kinds | {"threshold": np.float64, "is_missing_left": np.bool_, "value": np.float64}
        trees = cls(**{name: np.array(fields[name], dtype=kind) for name, kind in types.items()})
        trees._check(n_columns, () if n_values is None else (n_values,))
        return trees

    def _check(self, n_columns: int, leaf: tuple[int, ...]) -> None:
        """Every node is there with all its fields, and children come after their parent."""
        n_nodes = len(self.feature)
        shapes = {array.shape for name, array in vars(self).items() if name not in ("roots", "value")}
        inner = np.flatnonzero(self.feature >= 0)
        children = np.concatenate([self.left[inner], self.right[inner]])
        is_rising = (children > np.tile(inner, 2)).all() and (children < n_nodes).all()
        is_whole = shapes == {(n_nodes,)} and self.value.shape == (n_nodes, *leaf) and self.roots.ndim == 1
        if (
            not is_whole
            or not is_rising
            or (self.feature >= n_columns).any()
            or not ((self.roots >= 0) & (self.roots < n_nodes)).all()
        ):
            raise ValueError(f"{n_nodes} nodes that make no trees")


def join(trees: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Trees:
    """One `Trees` from the node arrays of several, each of which counts its nodes from 0 and begins with its root."""
    sizes = [len(tree["feature"]) for tree in trees]
    roots = np.cumsum([0, *sizes])[:-1].astype(np.int64)

    def column(name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        return np.concatenate([tree[name] for tree in trees]).astype(dtype) if trees else np.zeros(0, dtype=dtype)

    shift = np.repeat(roots, sizes)
    feature = column("feature", np.int64)
    is_inner = feature >= 0
    return Trees(
        roots=roots,
        feature=feature,
        threshold=np.minimum(column("threshold", np.float64), LARGEST),
        is_missing_left=column("is_missing_left", np.bool_),
        left=np.where(is_inner, column("left", np.int64) + shift, 0),
        right=np.where(is_inner, column("right", np.int64) + shift, 0),
        value=column("value", np.float64),
    )


@dataclass(frozen=True, kw_only=True)
class TreeModel:
    """A fitted model of trees.

    Attributes
    ----------
    columns : the columns that the trees ask for
    facts : what `describe` says beside the size
    mean_age : in years, what stands for an age that is unknown; None where every age has to be known
    """

    what: ClassVar[str]

    columns: tuple[str, ...]
    trees: Trees
    facts: dict[str, float | int | str]
    mean_age: float | None = None

    def mean_of_leaves(self, features: pl.DataFrame) -> Floats:
        """(B, ...) the mean over the trees of what their leaves say."""
        found = [self._mean(features[first : first + ROWS_AT_ONCE]) for first in range(0, len(features), ROWS_AT_ONCE)]
        return np.concatenate(found) if found else np.zeros((0, *self.trees.value.shape[1:]))

    def _mean(self, features: pl.DataFrame) -> Floats:
        # The libraries of forests compare in single precision.
        x = matrix(with_ages(features, self.mean_age), self.columns).astype(np.float32).astype(np.float64)
        total = np.zeros((len(x), *self.trees.value.shape[1:]))
        for leaf in self.trees.leaves(x):
            total += self.trees.value[leaf]
        return total / len(self.trees.roots)

    def to_json(self) -> str:
        """The model as JSON text."""
        fields = {**self.own_fields(), "columns": self.columns, "facts": self.facts, "trees": self.trees.to_json()}
        return json.dumps(fields if self.mean_age is None else fields | {"mean_age": self.mean_age})

    def own_fields(self) -> dict[str, Any]:
        """What the model keeps beside its trees, as JSON has it."""
        return {}

    @classmethod
    def read_own(cls, fields: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
        """The trees, and what `own_fields` wrote."""
        return {"trees": Trees.from_json(fields["trees"], n_columns=len(columns))}

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The model back from `to_json`.

        Raises
        ------
        CheckpointError
            If the text is not such a model.
        """
        try:
            fields = parse_json(text)
            columns = names_of(fields["columns"])
            mean_age = None if fields.get("mean_age") is None else float(fields["mean_age"])
            own = cls.read_own(fields, columns)
            return cls(columns=columns, facts=dict(fields["facts"]), mean_age=mean_age, **own)
        except BROKEN as error:
            raise no_such_model(text, cls.what, cls, error) from error
