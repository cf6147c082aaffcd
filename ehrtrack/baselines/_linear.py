"""What linear models on counts of codes share: which columns they use, and on which scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from pydantic import ConfigDict

from ehrtrack.arrays import Bools, Floats
from ehrtrack.baselines.base import Tabular, matrix, used_columns
from ehrtrack.baselines.settings import CoxConfig

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Feature:
    """How one column enters the model: z = (g(x) - mean) / scale with g = log1p for counts, times beta."""

    __pydantic_config__ = STRICT

    name: str
    is_count: bool
    mean: float
    scale: float
    beta: float


@dataclass(frozen=True)
class Columns:
    """The D columns that take part in a fit.

    Attributes
    ----------
    is_count, mean, scale : (D,) as in `Feature`
    """

    names: Sequence[str]
    is_count: Bools
    mean: Floats
    scale: Floats

    def z(self, table: pl.DataFrame) -> Floats:
        """(B, D) as the model reads them."""
        return _standardised(matrix(table, self.names), self.is_count, self.mean, self.scale)

    def features(self, beta: Floats) -> tuple[Feature, ...]:
        """Those whose coefficient (D,) is not zero."""
        found = zip(self.names, self.is_count, self.mean, self.scale, beta, strict=True)
        return tuple(Feature(n, bool(c), float(m), float(s), float(b)) for n, c, m, s, b in found if b)


def standardise(train: Tabular, config: CoxConfig) -> tuple[Columns, Floats]:
    """The columns to use, and (B, D) the training subjects' values on their scale.

    Raises
    ------
    DataError
        If none can be used, or a value is missing.
    """
    matrix(train.features, train.features.columns)  # nothing may be missing
    names = used_columns(train, min_subjects=config.min_subjects)
    x = matrix(train.features, names)
    is_count = config.log_counts & (x >= 0).all(axis=0) & (x == np.round(x)).all(axis=0)
    _take_log(x, is_count)
    columns = Columns(names, is_count, x.mean(axis=0), x.std(axis=0))
    return columns, (x - columns.mean) / columns.scale


def weighted_sum(features: Sequence[Feature], table: pl.DataFrame) -> Floats:
    """(B,) z beta.

    Raises
    ------
    DataError
        If a column that the model uses is missing, or a value is.
    """
    if not features:
        return np.zeros(table.height)
    z = _standardised(
        matrix(table, [feature.name for feature in features]),
        is_count=np.array([feature.is_count for feature in features]),
        mean=np.array([feature.mean for feature in features]),
        scale=np.array([feature.scale for feature in features]),
    )
    return np.asarray(z @ np.array([feature.beta for feature in features]), dtype=np.float64)


def _take_log(x: Floats, is_count: Bools) -> None:
    """log(1 + x) in place, in the columns that hold counts."""
    x[:, is_count] = np.log1p(np.maximum(x[:, is_count], 0))


def _standardised(x: Floats, is_count: Bools, mean: Floats, scale: Floats) -> Floats:
    """Features as the model reads them; changes x, which is as large as all subjects by all codes."""
    _take_log(x, is_count)
    return (x - mean) / scale
