"""Groups of subjects for which a model is scored apart: sex, race where recorded, age and length of history."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np
import polars as pl

from ehrtrack.arrays import Float32s, Ints
from ehrtrack.data.store import TokenStore
from ehrtrack.data.visits import DAYS_PER_YEAR
from ehrtrack.data.vocabulary import Vocabulary

CODED = {"sex": "GENDER//", "race": "RACE//"}
"""Attribute -> prefix of its codes. Codes of too few training subjects have no token and count as not recorded."""
MAX_CODED_GROUPS = 6
NOT_RECORDED, OTHER, UNKNOWN = "not recorded", "other", "unknown"
AGE_EDGES_YEARS = (18, 40, 55, 65, 75, 85)
HISTORY_EDGES_YEARS = (1, 3, 5, 10)


def subject_groups(store: TokenStore, vocabulary: Vocabulary, rows: Ints) -> dict[str, pl.Series]:
    """Attribute -> (B,) group of each subject, as an Enum in the order to be shown; only attributes that divide them.

    Age is that at the index date; history runs from the first visit to the index date.

    Examples
    --------
    Two subjects of 39 and 70 years at the index date, without a visit before it:

    >>> zeros = np.zeros(2, np.float32)
    >>> store = TokenStore(
    ...     subject_ids=np.array([4, 7]),
    ...     offsets=np.array([0, 1, 2]),
    ...     token=np.array([0, 1]),
    ...     age_years=zeros,
    ...     visit=np.array([0, 0]),
    ...     gap_days=zeros,
    ...     end_age_years=np.array([39.0, 70.0], np.float32),
    ...     end_gap_days=zeros,
    ...     fingerprint="s",
    ... )
    >>> groups = subject_groups(store, Vocabulary(("GENDER//F", "GENDER//M"), {}), np.array([0, 1]))
    >>> {attribute: of_subject.to_list() for attribute, of_subject in groups.items()}
    {'sex': ['F', 'M'], 'age_years': ['18–39', '65–74']}
    """
    groups = {name: _by_code(store, vocabulary, rows, prefix) for name, prefix in CODED.items()}
    groups["age_years"] = _bands(store.end_age_years[rows], AGE_EDGES_YEARS)
    groups["history_years"] = _bands(_history_years(store, rows), HISTORY_EDGES_YEARS)
    return {name: of_subject for name, of_subject in groups.items() if of_subject.n_unique() > 1}


def _by_code(store: TokenStore, vocabulary: Vocabulary, rows: Ints, prefix: str) -> pl.Series:
    """What follows the prefix in a subject's first token of it; the rarest of many groups are put together."""
    names = [token.removeprefix(prefix) if token.startswith(prefix) else None for token in vocabulary.tokens]
    is_wanted = np.array([name is not None for name in names])
    found = []
    for row in rows:
        tokens = store.token[store.offsets[row] : store.offsets[row + 1]]
        wanted = tokens[is_wanted[tokens]]
        found.append(names[wanted[0]] if wanted.size else None)
    values = pl.Series(found, dtype=pl.String).replace("", None)  # a bare prefix names no group
    common = values.drop_nulls().value_counts(sort=True).to_series()[:MAX_CODED_GROUPS].to_list()
    other, not_recorded = (_apart_from(common, label) for label in (OTHER, NOT_RECORDED))
    kept = pl.select(
        pl.when(values.is_null())
        .then(pl.lit(not_recorded))
        .when(values.is_in(common))
        .then(values)
        .otherwise(pl.lit(other))
    ).to_series()
    return kept.cast(pl.Enum([*sorted(common), other, not_recorded]))


def _apart_from(names: Collection[str], label: str) -> str:
    """The label, in as many brackets as it takes to be no name of a group that the data have themselves."""
    while label in names:
        label = f"({label})"
    return label


def _bands(years: Float32s, edges: Sequence[int]) -> pl.Series:
    """Bands that are closed below: 40 belongs to 40-54. What is not known (NaN) is a band of its own, the last."""
    between = [f"{low}–{high - 1}" if high - low > 1 else f"{low}" for low, high in itertools.pairwise(edges)]
    labels = [f"under {edges[0]}", *between, f"{edges[-1]} and over"]
    is_unknown = np.isnan(years)
    place = np.where(is_unknown, len(labels), np.searchsorted(edges, years, side="right"))
    labels += [UNKNOWN] if is_unknown.any() else []
    return pl.Series([labels[i] for i in place], dtype=pl.Enum(labels))


def _history_years(store: TokenStore, rows: Ints) -> Float32s:
    """(B,) from the first visit to the index date; 0 without a visit."""
    years = np.zeros(len(rows), dtype=np.float32)
    for number, row in enumerate(rows):
        tokens = slice(store.offsets[row], store.offsets[row + 1])
        is_dated = store.visit[tokens] > 0
        opens = np.diff(store.visit[tokens], prepend=0) > 0  # of a visit, its first token
        if is_dated.any():
            years[number] = (store.gap_days[tokens][opens].sum() + store.end_gap_days[row]) / DAYS_PER_YEAR
    return years
