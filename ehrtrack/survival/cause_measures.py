"""Measures where several causes end a follow-up; nothing here needs torch, as comparisons of runs start without it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Floats, Ints
from ehrtrack.survival.bootstrap import c_index_interval
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.resampling import Interval, resampled_c_index


def cause_c_index(incidence: npt.ArrayLike, follow_up_days: Floats, cause: Ints, *, of: int) -> float:
    """C-index of the cumulative incidence of one cause at the horizon (Wolbers et al. 2014, Biostatistics 15:526-39).

    Who has another cause will never have this one, and so ought to have a lower incidence than those who do: its
    follow-up is without end. The censored count as in `metrics.c_index`.

    Parameters
    ----------
    incidence : (B,) F of the cause at the horizon
    of : number of the cause

    Raises
    ------
    NotMeasurable
        If there is no comparable pair.

    Examples
    --------
    The subject with cause 2 never has cause 1, and so outlives both who have it. The highest incidence is its, so two
    of the three pairs are discordant:

    >>> days, cause = np.array([1.0, 2.0, 3.0]), np.array([2, 1, 1])
    >>> round(cause_c_index([0.9, 0.6, 0.2], days, cause, of=1), 3)
    0.333
    """
    return c_index(incidence, _days_without_end(follow_up_days, cause, of), cause == of)


def cause_c_index_interval(
    incidence: npt.ArrayLike,
    follow_up_days: Floats,
    cause: Ints,
    *,
    of: int,
    seed: int = 0,
    subject: Ints | None = None,
) -> Interval:
    """`cause_c_index` with its percentile interval over resampled subjects; `subject` as in `c_index_interval`.

    Examples
    --------
    >>> days, cause = np.arange(1.0, 41.0), np.tile([1, 2], 20)
    >>> print(cause_c_index_interval(np.where(cause == 1, 1 / days, 0), days, cause, of=1))
    1.000 [1.000, 1.000]
    """
    days = _days_without_end(follow_up_days, cause, of)
    return c_index_interval(incidence, days, cause == of, seed=seed, subject=subject)


def resampled_cause_c_index(
    incidence: npt.ArrayLike,
    follow_up_days: Floats,
    cause: Ints,
    *,
    of: int,
    n_resamples: int,
    seed: int,
    subject: Ints | None = None,
) -> Floats:
    """(S,) `cause_c_index` in each of S resamples of subjects, NaN without a comparable pair.

    Examples
    --------
    >>> days, cause = np.arange(1.0, 41.0), np.tile([1, 2], 20)
    >>> incidence = np.where(cause == 1, 1 / days, 0)
    >>> resampled_cause_c_index(incidence, days, cause, of=1, n_resamples=3, seed=0).tolist()
    [1.0, 1.0, 1.0]
    """
    days = _days_without_end(follow_up_days, cause, of)
    return resampled_c_index(incidence, days, cause == of, n_resamples=n_resamples, seed=seed, subject=subject)


def aalen_johansen(follow_up_days: Floats, cause: Ints, *, of: int, by_day: float) -> float:
    """Observed cumulative incidence of a cause by a day (Aalen & Johansen 1978, Scand J Stat 5:141-50).

    Where an event and a censoring fall on one day, the event came first.

    Examples
    --------
    Of four subjects one has cause 1 on day 10; of the three at risk on day 20 one has cause 2, and one of the two at
    risk on day 30 has cause 1: 1 / 4 + (3 / 4) (2 / 3) (1 / 2) = 1 / 2:

    >>> days, cause = np.array([10.0, 20.0, 30.0, 40.0]), np.array([1, 2, 1, 0])
    >>> aalen_johansen(days, cause, of=1, by_day=35)
    0.5
    """
    days = np.unique(follow_up_days[(cause > 0) & (follow_up_days <= by_day)])
    ordered = np.sort(follow_up_days)
    n_at_risk = len(ordered) - np.searchsorted(ordered, days, side="left")
    n_any, n_of = (_count_by_day(follow_up_days[which], days) for which in (cause > 0, cause == of))
    free_before = np.concatenate([[1.0], np.cumprod(1 - n_any / n_at_risk)[:-1]]) if len(days) else np.empty(0)
    return float((free_before * n_of / n_at_risk).sum())


def _count_by_day(event_days: Floats, days: Floats) -> Ints:
    ordered = np.sort(event_days)
    counts: Ints = np.searchsorted(ordered, days, side="right") - np.searchsorted(ordered, days, side="left")
    return counts


def _days_without_end(follow_up_days: Floats, cause: Ints, of: int) -> Floats:
    is_other = (cause > 0) & (cause != of)
    return np.where(is_other, float(follow_up_days.max()) + 1, follow_up_days)
