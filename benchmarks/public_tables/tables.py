"""The public tables, and how their columns become numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sksurv import datasets

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

LOADERS: dict[str, tuple[Callable[[], tuple[pd.DataFrame, np.ndarray]], tuple[str, ...]]] = {
    "gbsg2": (datasets.load_gbsg2, ()),
    # The stay ends with an in-hospital death: its length is not known when follow-up begins.
    "whas500": (datasets.load_whas500, ("los",)),
    # The chapter of the cause of death is known of the dead only.
    "flchain": (datasets.load_flchain, ("chapter",)),
    "veterans": (datasets.load_veterans_lung_cancer, ()),
}
"""By name: the loader, and columns that tell of the outcome and are left out."""

NUMBERS_AS_CATEGORIES = {"sample.yr", "flc.grp", "tgrade"}
"""Ordered categories: their order is kept, as one number each."""


@dataclass(frozen=True)
class Table:
    """Columns and follow-up of N subjects."""

    name: str
    columns: pd.DataFrame
    days: Array
    is_event: Bools

    def __len__(self) -> int:
        return len(self.days)


def load_table(name: str) -> Table:
    """A table by name. A follow-up of 0 days (3 subjects of flchain) becomes half a day, for every model."""
    load, left_out = LOADERS[name]
    columns, outcome = load()
    event, days = outcome.dtype.names
    return Table(
        name,
        columns.drop(columns=list(left_out)),
        np.maximum(outcome[days].astype(np.float64), 0.5),
        outcome[event].astype(bool),
    )


@dataclass(frozen=True)
class Preprocessing:
    """Imputation, logarithm of long tails, one-hot columns and scales, fitted on training subjects.

    Attributes
    ----------
    medians : of each number, put where it is missing; whether it was missing is a column of its own
    logged : numbers of which log(1 + x) is taken: none negative, skewness over 2
    levels : of each category, without the first
    mean, scale : (D,) of the columns made
    """

    medians: dict[str, float]
    logged: tuple[str, ...]
    levels: dict[str, tuple[str, ...]]
    mean: Array
    scale: Array

    def __call__(self, columns: pd.DataFrame) -> Array:
        """(B, D) standardised columns."""
        return (_columns(columns, self.medians, self.logged, self.levels) - self.mean) / self.scale


def fit_preprocessing(columns: pd.DataFrame) -> Preprocessing:
    """Fit on the rows given, which are the training subjects'."""
    numeric = columns.select_dtypes("number").columns.union(list(NUMBERS_AS_CATEGORIES & set(columns)))
    medians, logged = {}, []
    for name in columns.columns[columns.columns.isin(numeric)]:
        values = _numbers(columns[name])
        medians[name] = float(values.median())
        if values.min() >= 0 and values.skew() > 2:
            logged.append(name)
    levels = {
        name: tuple(sorted(columns[name].dropna().unique().astype(str))[1:]) for name in columns if name not in medians
    }
    made = _columns(columns, medians, tuple(logged), levels)
    scale = made.std(axis=0)
    return Preprocessing(medians, tuple(logged), levels, made.mean(axis=0), np.where(scale > 0, scale, 1.0))


def _columns(
    columns: pd.DataFrame, medians: dict[str, float], logged: tuple[str, ...], levels: dict[str, tuple[str, ...]]
) -> Array:
    made = []
    for name, median in medians.items():
        values = _numbers(columns[name])
        filled = values.fillna(median).to_numpy(np.float64)
        made.append(np.log1p(np.maximum(filled, 0)) if name in logged else filled)
        made.append(values.isna().to_numpy(np.float64))
    for name, known in levels.items():
        made += [(columns[name].astype(str) == level).to_numpy(np.float64) for level in known]
    return np.column_stack(made)


def _numbers(column: pd.Series) -> pd.Series:
    """The column as numbers; ordered categories by their place."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = column.cat.codes.astype(float)
        return codes.where(codes >= 0)
    return column.astype(float)
