"""A table of features as linear models read it: on one scale, without outliers, and with what is missing told apart.

    z = (clip(g(x), low, high) - mean) / scale,      0 where x is missing

g is log(1 + x) of counts and x of all else. Recorded values are cut off at their 5th and 95th percentile in training:
else a single typing error outweighs all that is told by the others. The mean stands for a value that is missing, and a
column beside it, one for all columns with the same gaps, is 1 where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from ehrtrack.arrays import Bools, Floats
from ehrtrack.baselines._linear import STRICT
from ehrtrack.baselines.base import Tabular, matrix, n_people_with
from ehrtrack.data.value_features import SUMMARIES, with_absent_values
from ehrtrack.errors import DataError

CUT_OFF = 0.05
"""Share of a column's training values on either side that are taken for the value at its edge."""

Kind = Literal["number", "count", "missing"]


@dataclass(frozen=True)
class Term:
    """How one column enters a model: z of this module, times beta.

    Attributes
    ----------
    kind : a number as it is, a count, or whether the column is missing
    low, high : between which g(x) is cut off
    """

    __pydantic_config__ = STRICT

    name: str
    kind: Kind
    low: float
    high: float
    mean: float
    scale: float
    beta: float = 0.0

    def z(self, x: Floats) -> Floats:
        """(B,) of the column (B,)."""
        if self.kind == "missing":
            g = np.isnan(x).astype(np.float64)
        else:
            g = np.clip(np.log1p(np.maximum(x, 0)) if self.kind == "count" else x, self.low, self.high)
        z: Floats = np.nan_to_num((g - self.mean) / self.scale)
        return z


def design(train: Tabular, *, min_subjects: int) -> list[Term]:
    """The terms of the columns that vary, and that are there in at least `min_subjects` training subjects.

    A count is there where it is not 0, anything else where it is not missing.

    Raises
    ------
    DataError
        If there is none.
    """
    names = train.features.columns
    x = matrix(train.features, names, allows_missing=True)
    is_missing = np.isnan(x)
    is_count = _are_counts(names, x)
    is_there = n_people_with(np.where(is_count, np.nan_to_num(x) != 0, ~is_missing), train.subject) >= min_subjects
    may_be_missing = n_people_with(is_missing, train.subject) >= min_subjects
    terms, told = [], set()
    for j in np.flatnonzero(is_there):
        found = _term(names[j], x[~is_missing[:, j], j], is_count=bool(is_count[j]))
        terms += [] if found is None else [found]
        if may_be_missing[j] and (gaps := is_missing[:, j].tobytes()) not in told:
            told.add(gaps)
            share = float(is_missing[:, j].mean())
            terms.append(Term(names[j], "missing", 0.0, 1.0, share, float(np.sqrt(share * (1 - share)))))
    if not terms:
        raise DataError(
            f"none of {len(names)} features varies and is there in at least {min_subjects} training subjects; lower "
            "baseline.min_subjects or use a larger cohort"
        )
    return terms


def _are_counts(names: Sequence[str], x: Floats) -> Bools:
    """(D,) which columns hold whole numbers from 0 on and are no recorded values."""
    is_value = np.array([is_recorded(name) for name in names], dtype=bool)
    whole = np.nan_to_num(x)
    are: Bools = ~is_value & (whole >= 0).all(axis=0) & (whole == np.round(whole)).all(axis=0)
    return are


def is_recorded(name: str) -> bool:
    """Whether a column holds values as they were recorded, and not how many there are.

    >>> is_recorded("lowest_value LAB//sodium"), is_recorded("n_values LAB//sodium"), is_recorded("age_years")
    (True, False, False)
    """
    return name.split(" ", 1)[0] in SUMMARIES[:-1]


def _term(name: str, known: Floats, *, is_count: bool) -> Term | None:
    """The term of a column's known values; None if they do not vary."""
    g = np.log1p(np.maximum(known, 0)) if is_count else known
    low, high = g.min(), g.max()
    if is_recorded(name):
        inner = np.quantile(g, [CUT_OFF, 1 - CUT_OFF])
        low, high = inner if inner[0] < inner[1] else (low, high)
    g = np.clip(g, low, high)
    if not low < high or not g.std() > 0:
        return None
    return Term(name, "count" if is_count else "number", float(low), float(high), float(g.mean()), float(g.std()))


def z_of(terms: Sequence[Term], table: pl.DataFrame) -> Floats:
    """(B, D) the terms of a table's subjects.

    Raises
    ------
    DataError
        If a column is missing, or has infinite values. A column of values that nobody in the table has may be missing.
    """
    names = list(dict.fromkeys(term.name for term in terms))
    x = matrix(with_absent_values(table, names), names, allows_missing=True)
    place = {name: j for j, name in enumerate(names)}
    z = np.empty((len(x), len(terms)))
    for j, term in enumerate(terms):
        z[:, j] = term.z(x[:, place[term.name]])
    return z


def weighted(terms: Sequence[Term], table: pl.DataFrame) -> Floats:
    """(B,) z beta."""
    total: Floats = z_of(terms, table) @ np.array([term.beta for term in terms])
    return total
