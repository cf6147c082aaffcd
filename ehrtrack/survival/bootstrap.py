"""Bootstrap intervals over subjects: for a C-index, and for the difference of two models on one test set.

A subject that is drawn brings all its rows along (a bootstrap of clusters, Davison & Hinkley 1997, section 3.8): those
of several prediction times are far from independent, and drawn one by one they make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.calibration_curve import slope_regression
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.concordance import Counts, RankedSubjects
from ehrtrack.survival.discrimination import dynamic_auc, uno_c
from ehrtrack.survival.metrics import BoolArray, FloatArray, c_index, checked_predictions, require_comparable_pair

N_RESAMPLES = 500
FEWER_RESAMPLES = 200
"""Where each of them costs a fit, or there are many groups to score."""
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


def c_index_interval(
    risk: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    *,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    subject: npt.ArrayLike | None = None,
) -> Interval:
    """C-index with its percentile interval over resampled subjects (Efron & Tibshirani 1993, chapter 13).

    Parameters
    ----------
    risk, follow_up_days, is_event : (B,), as in `metrics.c_index`
    n_resamples : number of bootstrap samples
    level : coverage of the interval
    seed : the same seed draws the same subjects
    subject : (B,) whose row each is; None where each is of another subject

    Raises
    ------
    NotMeasurable
        If there is no comparable pair, or too few events for an interval.

    Examples
    --------
    Every subject with a higher risk has the event earlier, in each resample too:

    >>> print(c_index_interval([0.9, 0.7, 0.5, 0.3, 0.1] * 4, [1, 2, 3, 4, 5] * 4, [True] * 20, n_resamples=50))
    1.000 [1.000, 1.000]
    """
    scores, days, event = checked_predictions(risk, follow_up_days, is_event)
    resampled = _resampled_c_indices([scores], days, event, n_resamples=n_resamples, seed=seed, subject=subject)[0]
    return percentile_interval(c_index(scores, days, event), resampled, level)


def paired_difference(
    risk_a: npt.ArrayLike,
    risk_b: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    *,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    subject: npt.ArrayLike | None = None,
) -> Interval:
    """C-index of model a minus that of model b, with a percentile interval over the same resampled subjects.

    Pairing removes the sampling error that both models share: the interval is narrower than the two models' own
    intervals suggest. A difference is claimed only where its interval excludes 0.

    Parameters
    ----------
    risk_a, risk_b : (B,) risks of the two models, with the subjects in the same order
    follow_up_days, is_event : (B,) as in `metrics.c_index`
    n_resamples, level, seed, subject : as in `c_index_interval`

    Raises
    ------
    NotMeasurable
        If there is no comparable pair, or there are too few events for an interval.

    Examples
    --------
    Two models that rank the subjects alike differ by nothing, however wide the interval of each is:

    >>> risk, days = np.array([0.9, 0.1, 0.5, 0.7, 0.3] * 4), [1, 2, 3, 4, 5] * 4
    >>> print(paired_difference(risk, risk / 2, days, [True] * 20, n_resamples=50))
    0.000 [0.000, 0.000]
    >>> print(c_index_interval(risk, days, [True] * 20, n_resamples=50))
    0.600 [0.369, 0.780]
    """
    scores_a, days, event = checked_predictions(risk_a, follow_up_days, is_event)
    scores_b, _, _ = checked_predictions(risk_b, follow_up_days, is_event)
    risks = [scores_a, scores_b]
    c_a, c_b = _resampled_c_indices(risks, days, event, n_resamples=n_resamples, seed=seed, subject=subject)
    estimate = c_index(scores_a, days, event) - c_index(scores_b, days, event)
    return percentile_interval(estimate, c_a - c_b, level)


def uno_c_interval(
    risk: npt.ArrayLike,
    follow_up: FollowUp,
    *,
    horizon_days: float,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Uno's C at a horizon (`discrimination.uno_c`) with its percentile interval over resampled subjects.

    The training subjects, and so the weights for the censored, are the same in every resample.

    Parameters
    ----------
    risk : (B,), higher means an earlier event
    follow_up : of the B subjects
    horizon_days : pairs count whose first event is on or before this day
    n_resamples, level, seed : as in `c_index_interval`

    Raises
    ------
    NotMeasurable
        If there is no comparable pair up to the horizon, or there are too few events for an interval.

    Examples
    --------
    >>> days, event = np.arange(1, 21), [True] * 20
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> print(uno_c_interval(1 / days, follow_up, horizon_days=15, n_resamples=50))
    1.000 [1.000, 1.000]
    """
    estimate = uno_c(risk, follow_up, horizon_days=horizon_days)
    event = follow_up.has_event_by(horizon_days)
    weights = np.zeros(event.size)
    weights[event] = follow_up.under_observation(follow_up.days[event]) ** -2.0
    ranked = RankedSubjects.of(np.asarray(risk, dtype=np.float64), follow_up.days, event)
    resampled = _resampled_shares(ranked, weights, n_resamples=n_resamples, seed=seed, subject=follow_up.subject)
    return percentile_interval(estimate, resampled, level)


def auc_interval(
    risk: npt.ArrayLike,
    follow_up: FollowUp,
    *,
    horizon_days: float,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Cumulative/dynamic AUC at a horizon (`discrimination.dynamic_auc`), with its percentile interval.

    The AUC is computed as a C-index of artificial days: subjects with the event by the horizon have day 1, those who
    outlive it day 2, and those censored before it day 0, on which they are compared with nobody.

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon
    follow_up : of the B subjects
    horizon_days : the day at which subjects with and without the event are compared
    n_resamples, level, seed : as in `c_index_interval`

    Raises
    ------
    NotMeasurable
        If nobody had the event by the horizon or nobody outlives it, or there are too few events for an interval.

    Examples
    --------
    >>> days, event = np.arange(1, 21), [True] * 20
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> print(auc_interval(1 / days, follow_up, horizon_days=10, n_resamples=50))
    1.000 [1.000, 1.000]
    """
    estimate = float(dynamic_auc(risk, follow_up, [horizon_days])[0][0])
    event = follow_up.has_event_by(horizon_days)
    days = np.where(event, 1.0, np.where(follow_up.outlives(horizon_days), 2.0, 0.0))
    weights = np.where(event, follow_up.weights_at(horizon_days), 0.0)
    ranked = RankedSubjects.of(np.asarray(risk, dtype=np.float64), days, event)
    resampled = _resampled_shares(ranked, weights, n_resamples=n_resamples, seed=seed, subject=follow_up.subject)
    return percentile_interval(estimate, resampled, level)


def slope_interval(
    risk: npt.ArrayLike,
    follow_up: FollowUp,
    *,
    horizon_days: float,
    n_resamples: int = FEWER_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Calibration slope (`calibration_curve.calibration_slope`), with its percentile interval over resampled subjects.

    The regression is fitted once for each resample.

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon
    follow_up : of the B subjects
    n_resamples, level, seed : as in `c_index_interval`

    Raises
    ------
    NotMeasurable
        If there are too few events, or the risks do not vary.

    Examples
    --------
    Subjects of twice the cumulative hazard, .446 of a risk of .36 and .223 of a risk of .2, have twice the events: 16
    of 40 and 12 of 60. The slope is 1, and with so few events its interval is wide:

    >>> risk = [0.2] * 60 + [0.36] * 40
    >>> event = [True] * 12 + [False] * 48 + [True] * 16 + [False] * 24
    >>> days = np.where(event, 10, 40)
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> slope = slope_interval(risk, follow_up, horizon_days=30, n_resamples=50)
    >>> round(slope.estimate, 3), slope.lower < 1 < slope.upper
    (1.0, True)
    """
    regression = slope_regression(risk, follow_up, horizon_days=horizon_days)
    fitted = regression.fit()
    slopes = np.full(n_resamples, np.nan)
    drawn = drawn_counts(follow_up.days.size, n_resamples=n_resamples, seed=seed, subject=follow_up.subject)
    for rows, counts in drawn:
        for number, row in enumerate(counts, start=rows.start):
            with suppress(NotMeasurable):  # a resample without a fit has no slope; percentile_interval counts them
                slopes[number] = regression.fit(row.astype(np.float64), start=fitted.beta).beta[0]
    return percentile_interval(float(fitted.beta[0]), slopes, level)


def _resampled_shares(
    ranked: RankedSubjects,
    weights: FloatArray,
    *,
    n_resamples: int,
    seed: int,
    subject: npt.ArrayLike | None,
) -> FloatArray:
    """(R,) concordant among comparable pairs, each weighted by its event; NaN without a pair."""
    shares = np.full(n_resamples, np.nan)
    for rows, counts in drawn_counts(weights.size, n_resamples=n_resamples, seed=seed, subject=subject):
        comparable, concordant = ranked.resampled_pairs(counts, weights)
        np.divide(concordant, comparable, out=shares[rows], where=comparable > 0)
    return shares


def resampled_c_index(
    risk: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    *,
    n_resamples: int,
    seed: int,
    subject: npt.ArrayLike | None = None,
) -> FloatArray:
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
    return _resampled_c_indices([scores], days, event, n_resamples=n_resamples, seed=seed, subject=subject)[0]


def resampled_auc(
    risk: npt.ArrayLike,
    is_event: npt.ArrayLike,
    event_weights: npt.ArrayLike,
    *,
    n_resamples: int,
    seed: int,
    subject: npt.ArrayLike | None = None,
) -> FloatArray:
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
    return _resampled_shares(ranked, weights, n_resamples=n_resamples, seed=seed, subject=subject)


def drawn_counts(
    n_rows: int, *, n_resamples: int, seed: int, subject: npt.ArrayLike | None = None
) -> Iterator[tuple[slice, Counts]]:
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
    generator = np.random.default_rng(seed)
    place = None if subject is None else _numbered(subject)
    n_subjects = n_rows if place is None else int(place.max()) + 1
    block = max(1, BLOCK_COUNTS // n_rows)
    for start in range(0, n_resamples, block):
        counts = np.empty((min(block, n_resamples - start), n_subjects), np.float32)
        for row in counts:  # a count a subject of n draws: 0.05 s for 1,000 of 5,000, where multinomial takes 0.34 s
            row[:] = np.bincount(generator.integers(n_subjects, size=n_subjects), minlength=n_subjects)
        yield slice(start, start + len(counts)), counts if place is None else counts[:, place]


def _numbered(subject: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """(B,) subjects by the order in which they come first, so that draws do not depend on what they are called."""
    _, first, inverse = np.unique(np.asarray(subject), return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]


def _resampled_c_indices(
    risks: list[FloatArray],
    days: FloatArray,
    event: BoolArray,
    *,
    n_resamples: int,
    seed: int,
    subject: npt.ArrayLike | None,
) -> list[FloatArray]:
    """For each risk, the C-index in each of R resamples (R,); NaN where a resample has no comparable pair.

    A resample is a count per subject; all models are scored on the same ones, a block of resamples at a time.
    """
    require_comparable_pair(days, event)
    ranked = [RankedSubjects.of(risk, days, event) for risk in risks]
    c_indices = [np.full(n_resamples, np.nan) for _ in risks]
    for rows, counts in drawn_counts(days.size, n_resamples=n_resamples, seed=seed, subject=subject):
        for subjects, scored in zip(ranked, c_indices, strict=True):
            n_comparable, n_concordant = subjects.resampled_pairs(counts)
            np.divide(n_concordant, n_comparable, out=scored[rows], where=n_comparable > 0)
    return c_indices


def standard_error(resampled: FloatArray) -> float | None:
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


def percentile_interval(estimate: float, resampled: FloatArray, level: float = LEVEL) -> Interval:
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


def _are_enough(defined: FloatArray, resampled: FloatArray) -> bool:
    return defined.size >= (1 - MAX_UNDEFINED_SHARE) * resampled.size
