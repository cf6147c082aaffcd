"""Contributions of codes over a cohort, and how well they point at codes that are known to matter."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Bools, Floats
from ehrtrack.privacy import LEAST_COUNT
from ehrtrack.survival.resampling import LEVEL, Interval, drawn_counts, percentile_interval

N_RESAMPLES = 1000
SPREAD, SIZE, EFFECT = "spread", "mean_size", "mean_contribution"
"""Columns: standard deviation and mean size over all records, 0 for those without the code; mean of those with it."""


class Hits(NamedTuple):
    """Codes that matter among those with the largest contributions to the risk of one subject.

    Attributes
    ----------
    n_found : how many there are
    n_by_chance : how many of as many codes drawn from the record would be there on average

    Examples
    --------
    >>> Hits(n_found=3, n_by_chance=1.5).n_found
    3
    """

    n_found: int
    n_by_chance: float


def hits(contribution: npt.ArrayLike, matters: npt.ArrayLike, n_top: int) -> Hits:
    """Of the codes of a record, those that matter among the `n_top` with the largest contributions of either sign.

    Parameters
    ----------
    contribution : (C,)
    matters : (C,) bool

    Examples
    --------
    Of four codes two matter; the largest contribution is one of theirs, and a code that was drawn would be so half of
    the time:

    >>> hits([0.9, -0.1, 0.2, 0.0], [True, False, False, True], n_top=1)
    Hits(n_found=1, n_by_chance=0.5)
    """
    size, is_there = np.abs(np.asarray(contribution, dtype=np.float64)), np.asarray(matters, dtype=bool)
    n_top = min(n_top, len(size))
    top = np.argsort(-size, kind="stable")[:n_top]
    return Hits(int(is_there[top].sum()), float(n_top * is_there.mean()))


def share_interval(part: Floats, whole: Floats, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Interval:
    """The ratio of two sums over subjects, with its bootstrap interval over subjects.

    Examples
    --------
    >>> print(share_interval(np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0])))
    0.500 [0.500, 0.500]
    """
    ratios = np.empty(n_resamples)
    for rows, counts in drawn_counts(len(part), n_resamples=n_resamples, seed=seed):
        ratios[rows] = (counts @ part) / (counts @ whole)
    return percentile_interval(float(part.sum() / whole.sum()), ratios)


def summarise_contributions(
    contributions: pl.DataFrame, subject: npt.ArrayLike, *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> pl.DataFrame:
    """Which codes carry the risk over a cohort: a row a code that at least `LEAST_COUNT` of its subjects have.

    Parameters
    ----------
    contributions : a row for each code of each record: row (0 to N - 1), code, contribution
    subject : (N,) whose records they are, by which resamples are drawn

    Returns
    -------
    code, n_subjects (who have it), share_subjects; over all records spread, the standard deviation of contributions,
    and mean_size, their mean without signs; mean_contribution, of those who have it; these with bounds (``_lower``,
    ``_upper``) of their bootstrap intervals; and share_raising, of those who have it, where it is above 0. The largest
    spread comes first: what all have alike tells nobody apart, however large it is.

    Examples
    --------
    >>> of_all = pl.DataFrame({"row": range(20), "code": ["A"] * 20, "contribution": [0.5, -0.3] * 10})
    >>> table = summarise_contributions(of_all, subject=range(20))
    >>> table.select("code", "n_subjects", pl.col("spread", "mean_size", "mean_contribution").round(3)).rows()
    [('A', 20, 0.4, 0.4, 0.1)]
    """
    person = np.asarray(subject)
    people = contributions.with_columns(person=pl.Series(person[contributions["row"].to_numpy()]))
    shown = people.group_by("code").agg(n_subjects=pl.col("person").n_unique().cast(pl.Int64))
    shown = shown.filter(pl.col("n_subjects") >= LEAST_COUNT).sort("code")
    place = {code: number for number, code in enumerate(shown["code"])}
    kept = contributions.filter(pl.col("code").is_in(list(place)))
    row, column = kept["row"].to_numpy(), np.array([place[code] for code in kept["code"]], dtype=np.int64)
    effect, has = (np.zeros((len(person), len(place))) for _ in range(2))
    effect[row, column], has[row, column] = kept["contribution"].to_numpy(), 1.0
    bounds = _bounds(effect, has, person, n_resamples=n_resamples, seed=seed)
    n_with = has.sum(axis=0)
    table = shown.with_columns(
        pl.lit(shown["n_subjects"] / len(np.unique(person))).alias("share_subjects"),
        pl.Series(SPREAD, effect.std(axis=0)),
        pl.Series(SIZE, np.abs(effect).mean(axis=0)),
        pl.Series(EFFECT, effect.sum(axis=0) / n_with),
        *bounds,
        pl.Series("share_raising", (effect > 0).sum(axis=0) / n_with),
    )
    columns = ["code", "n_subjects", "share_subjects"]
    columns += [f"{name}{bound}" for name in (SPREAD, SIZE, EFFECT) for bound in ("", "_lower", "_upper")]
    return table.select(*columns, "share_raising").sort(SPREAD, "code", descending=[True, False])


def _bounds(
    effect: Floats, has: Floats, person: npt.NDArray[np.generic], *, n_resamples: int, seed: int
) -> list[pl.Series]:
    """Bounds of the intervals over subjects."""
    spreads, sizes, effects = (np.empty((n_resamples, effect.shape[1])) for _ in range(3))
    for rows, counts in drawn_counts(len(person), n_resamples=n_resamples, seed=seed, subject=person):
        n_drawn = counts.sum(axis=1, keepdims=True)
        sizes[rows] = counts @ np.abs(effect) / n_drawn
        variance = counts @ effect**2 / n_drawn - (counts @ effect / n_drawn) ** 2
        spreads[rows] = np.sqrt(np.maximum(variance, 0))
        drawn: Floats = counts @ has
        is_drawn: Bools = drawn > 0
        effects[rows] = np.where(is_drawn, counts @ effect / np.where(is_drawn, drawn, 1), np.nan)
    tail = (1 - LEVEL) / 2
    found = []
    for name, resampled in ((SPREAD, spreads), (SIZE, sizes), (EFFECT, effects)):
        lower, upper = (
            np.nanquantile(resampled, q, axis=0) if effect.shape[1] else np.zeros(0) for q in (tail, 1 - tail)
        )
        found += [pl.Series(f"{name}_lower", lower), pl.Series(f"{name}_upper", upper)]
    return found
