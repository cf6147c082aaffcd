"""Resamples of subjects with all their rows, and what becomes of an estimate over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Bools, Float32s, Floats, Ints
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.concordance import MOST_CELLS, ComparablePairs, RankedSubjects
from ehrtrack.survival.metrics import checked_predictions, require_comparable_pair

LEVEL = 0.95


MAX_UNDEFINED_SHARE = 0.05
"""No interval is given if more resamples than this lack a comparable pair: below about 3 events."""


BLOCK_COUNTS = 4_000_000
"""Counts (resamples x subjects) held at once: 16 MB, and about 100 MB of work arrays, whatever is asked for."""


@dataclass(frozen=True)
class Interval:
    """An estimate on the subjects as they are, with the bounds of its bootstrap percentile interval.

    Examples
    --------
    >>> interval = Interval(estimate=0.71, lower=0.65, upper=0.77)
    >>> print(interval)
    0.710 [0.650, 0.770]
    >>> interval.to_metrics("c_index")
    {'c_index': 0.71, 'c_index_lower': 0.65, 'c_index_upper': 0.77}
    """

    estimate: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.lower:.3f}, {self.upper:.3f}]"

    def to_metrics(self, name: str) -> dict[str, float]:
        """``name``, ``name_lower`` and ``name_upper``."""
        return {name: self.estimate, f"{name}_lower": self.lower, f"{name}_upper": self.upper}


def resampled_shares(
    ranked: RankedSubjects,
    weights: Floats,
    *,
    n_resamples: int,
    seed: int,
    subject: npt.ArrayLike | None,
) -> Floats:
    """(R,) concordant among comparable pairs, each weighted by its event; NaN without a pair.

    Examples
    --------
    >>> ranked = RankedSubjects.of(np.array([0.9, 0.1]), np.array([1.0, 2.0]), np.array([True, False]))
    >>> resampled_shares(ranked, np.ones(2), n_resamples=4, seed=1, subject=None).tolist()
    [1.0, nan, nan, nan]
    """
    shares = np.empty(n_resamples)
    for rows, counts in drawn_counts(weights.size, n_resamples=n_resamples, seed=seed, subject=subject):
        shares[rows] = ranked.c_indices(counts, weights)
    return shares


def resampled_c_index(
    risk: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    *,
    n_resamples: int,
    seed: int,
    subject: npt.ArrayLike | None = None,
) -> Floats:
    """Harrell's C in each of R resamples, for differences between independent groups.

    Parameters
    ----------
    risk, follow_up_days, is_event, n_resamples, seed, subject : as in `c_index_interval`

    Returns
    -------
    (R,), NaN where a resample has no comparable pair.

    Examples
    --------
    A resample that draws one subject three times has no comparable pair:

    >>> resampled_c_index([0.9, 0.5, 0.1], [1, 2, 3], [True] * 3, n_resamples=3, seed=0).tolist()
    [1.0, nan, nan]
    """
    scores, days, event = checked_predictions(risk, follow_up_days, is_event)
    scored = c_indices_and_resamples([scores], days, event, n_resamples=n_resamples, seed=seed, subject=subject)
    return scored[0][1]


def resampled_auc(
    risk: npt.ArrayLike,
    is_event: npt.ArrayLike,
    event_weights: npt.ArrayLike,
    *,
    n_resamples: int,
    seed: int,
    subject: npt.ArrayLike | None = None,
) -> Floats:
    """Share of the pairs of an event and a non-event in which the event has the higher risk, in each of R resamples.

    Parameters
    ----------
    risk : (B,)
    is_event : (B,) bool
    event_weights : (B,) weight of the pairs of each event; non-events all have the same weight
    n_resamples, seed, subject : as in `c_index_interval`

    Returns
    -------
    (R,), NaN where a resample has no pair.

    Examples
    --------
    The one event has a higher risk than all others, in each resample that draws it:

    >>> risk, is_event = [0.9, 0.5, 0.3, 0.1], [True, False, False, False]
    >>> resampled_auc(risk, is_event, [1, 1, 1, 1], n_resamples=4, seed=1).tolist()
    [nan, 1.0, 1.0, nan]
    """
    event = np.asarray(is_event).astype(bool)
    ranked = RankedSubjects.of(np.asarray(risk, dtype=np.float64), np.where(event, 1.0, 2.0), event)
    weights = np.where(event, np.asarray(event_weights, dtype=np.float64), 0.0)
    return resampled_shares(ranked, weights, n_resamples=n_resamples, seed=seed, subject=subject)


def drawn_counts(
    n_rows: int, *, n_resamples: int, seed: int, subject: npt.ArrayLike | None = None
) -> Iterator[tuple[slice, Float32s]]:
    """The bootstrap samples of B rows, a block of samples at a time.

    Parameters
    ----------
    n_rows : B
    n_resamples, seed : as in `c_index_interval`
    subject : (B,) the subject of each row; None where each row is of another subject. The draws depend on the order in
        which the subjects first occur, and not on their identifiers

    Yields
    ------
    The slice of the samples, and (samples of the block, B) how often the subject of each row was drawn in each.

    Examples
    --------
    Four rows, of which the first two are of one subject and so are drawn together:

    >>> rows, counts = next(drawn_counts(4, n_resamples=3, seed=0, subject=[7, 7, 8, 9]))
    >>> counts.astype(int).tolist()
    [[0, 0, 2, 1], [3, 3, 0, 0], [3, 3, 0, 0]]
    """
    place = None if subject is None else _numbered(subject)
    n_subjects = n_rows if place is None else int(place.max()) + 1
    block = max(1, BLOCK_COUNTS // n_rows)
    if n_resamples <= block:
        blocks: Iterator[Float32s] = iter([_one_block(n_subjects, n_resamples, seed)])
    else:
        generator = np.random.default_rng(seed)
        sizes = (min(block, n_resamples - start) for start in range(0, n_resamples, block))
        blocks = (_draw(n_subjects, size, generator) for size in sizes)
    start = 0
    for counts in blocks:
        yield slice(start, start + len(counts)), counts if place is None else counts[:, place]
        start += len(counts)


@lru_cache(maxsize=2)
def _one_block(n_subjects: int, n_resamples: int, seed: int) -> Float32s:
    """As `_draw`, and kept: the measures of a cohort, and its runs one after the other, draw the same samples."""
    counts = _draw(n_subjects, n_resamples, np.random.default_rng(seed))
    counts.setflags(write=False)
    return counts


def _draw(n_subjects: int, n_resamples: int, generator: np.random.Generator) -> Float32s:
    """(R, subjects): a count a subject of n draws; 0.05 s for 1,000 of 5,000, where multinomial takes 0.34 s."""
    counts = np.empty((n_resamples, n_subjects), np.float32)
    for row in counts:
        row[:] = np.bincount(generator.integers(n_subjects, size=n_subjects), minlength=n_subjects)
    return counts


def _numbered(subject: npt.ArrayLike) -> Ints:
    """(B,) subjects by the order in which they come first, so that draws do not depend on what they are called."""
    _, first, inverse = np.unique(np.asarray(subject), return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]


def c_indices_and_resamples(
    risks: Sequence[Floats],
    days: Floats,
    event: Bools,
    *,
    n_resamples: int,
    seed: int,
    subject: npt.ArrayLike | None,
) -> list[tuple[float, Floats]]:
    """For each risk, the C-index of the subjects as they are, and that in each of R resamples.

    A resample is a count per subject; all models are scored on the same ones, a block of resamples at a time.

    Returns
    -------
    Of each risk the C-index, and (R,), NaN where a resample has no comparable pair.

    Raises
    ------
    NotMeasurable
        If there is no comparable pair.

    Examples
    --------
    >>> risks = [np.array([0.9, 0.5, 0.1]), np.array([0.1, 0.5, 0.9])]
    >>> days, event = np.array([1.0, 2.0, 3.0]), np.array([True, True, True])
    >>> right, wrong = c_indices_and_resamples(risks, days, event, n_resamples=1, seed=0, subject=None)
    >>> right[0], wrong[0], right[1].tolist(), wrong[1].tolist()
    (1.0, 0.0, [1.0], [0.0])
    """
    require_comparable_pair(days, event)
    score = _scorer(risks, days, event)
    resampled = [np.empty(n_resamples) for _ in risks]
    for rows, counts in drawn_counts(days.size, n_resamples=n_resamples, seed=seed, subject=subject):
        for of_all, of_block in zip(resampled, score(counts), strict=True):
            of_all[rows] = of_block
    as_they_are = score(np.ones((1, days.size), np.float32))
    return [(float(one[0]), of_one) for one, of_one in zip(as_they_are, resampled, strict=True)]


def _scorer(risks: Sequence[Floats], days: Floats, event: Bools) -> Callable[[Float32s], list[Floats]]:
    """What gives the C-indices (R,) of each risk for counts (R, B), by the way that is faster for so many subjects."""
    pairs = ComparablePairs.of(days, event)
    if pairs.n_cells <= MOST_CELLS:
        return partial(pairs.c_indices, risks)
    ranked = [RankedSubjects.of(risk, days, event) for risk in risks]
    return lambda counts: [of.c_indices(counts) for of in ranked]


def standard_error(resampled: Floats) -> float | None:
    """The standard error of an estimate: the standard deviation of its resampled values.

    Parameters
    ----------
    resampled : (R,), NaN where a resample has no value

    Returns
    -------
    None if more than `MAX_UNDEFINED_SHARE` of the resamples have no value.

    Examples
    --------
    >>> round(standard_error(np.array([0.6, 0.7, 0.8])), 3)
    0.1
    >>> standard_error(np.array([0.6, np.nan, np.nan])) is None
    True
    """
    defined = resampled[np.isfinite(resampled)]
    return float(defined.std(ddof=1)) if _are_enough(defined, resampled) else None


def percentile_interval(estimate: float, resampled: Floats, level: float = LEVEL) -> Interval:
    """The estimate with its percentile interval: the range of the middle share `level` of the resampled values.

    Parameters
    ----------
    estimate : of the subjects as they are
    resampled : (R,), NaN where a resample has no value
    level : coverage of the interval

    Raises
    ------
    NotMeasurable
        If more than `MAX_UNDEFINED_SHARE` of them have no value.

    Examples
    --------
    Of the values 0 to 100, the middle 90 % lie from 5 to 95:

    >>> print(percentile_interval(50, np.arange(101.0), 0.9))
    50.000 [5.000, 95.000]
    """
    defined = resampled[np.isfinite(resampled)]
    if not _are_enough(defined, resampled):
        raise NotMeasurable(
            f"{resampled.size - defined.size} of {resampled.size} resamples have no value: "
            "too few events for an interval, which needs about 4; use a larger split"
        )
    tail = (1 - level) / 2
    lower, upper = np.quantile(defined, [tail, 1 - tail])
    return Interval(estimate=estimate, lower=float(lower), upper=float(upper))


def _are_enough(defined: Floats, resampled: Floats) -> bool:
    return defined.size >= (1 - MAX_UNDEFINED_SHARE) * resampled.size
