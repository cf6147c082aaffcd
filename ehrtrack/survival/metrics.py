"""How good predicted risks are, under censoring: equal to the numbers of lifelines and scikit-survival."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sksurv.metrics import integrated_brier_score as sksurv_integrated_brier_score
from sksurv.util import Surv

from ehrtrack.arrays import Bools, Floats
from ehrtrack.errors import DataError, NotMeasurable
from ehrtrack.survival.concordance import RankedSubjects


def c_index(risk: npt.ArrayLike, follow_up_days: npt.ArrayLike, is_event: npt.ArrayLike) -> float:
    """Harrell's C-index: how often, of two subjects, the one with the event first had the higher risk.

    A pair is comparable if the earlier of the two has the event. Tie rules: two events at the same time are
    not comparable; an event and a censoring at the same time are (the censored subject outlived the event);
    equal risks count one half. These are the rules of lifelines and of scikit-survival (which calls risks
    within 1e-8 of each other equal; here only equal risks are).

    Parameters
    ----------
    risk : (B,), higher means an earlier event
    follow_up_days : (B,)
    is_event : (B,) bool

    Raises
    ------
    NotMeasurable
        If no pair is comparable.
    DataError
        If a value is not finite.

    Examples
    --------
    The subject with the event on day 10 is compared with the three others, and that of day 20 with the last; the one
    censored on day 15 is compared with nobody later. In three of these four pairs the earlier event has the higher
    risk:

    >>> round(c_index([0.8, 0.9, 0.4, 0.1], [10, 15, 20, 30], [True, False, True, False]), 3)
    0.75

    Equal risks count one half:

    >>> c_index([0.5, 0.5], [10, 20], [True, True])
    0.5
    """
    scores, days, event = checked_predictions(risk, follow_up_days, is_event)
    require_comparable_pair(days, event)
    return RankedSubjects.of(scores, days, event).c_index()


def checked_predictions(
    risk: npt.ArrayLike, follow_up_days: npt.ArrayLike, is_event: npt.ArrayLike
) -> tuple[Floats, Floats, Bools]:
    """The three as float64, float64 and bool arrays of one length (B,), with finite values.

    Raises
    ------
    DataError
        If lengths differ or a value is not finite; the message says which and where.

    Examples
    --------
    >>> scores, days, event = checked_predictions([1, 0], [10, 20], [1, 0])
    >>> scores.dtype.name, event.tolist()
    ('float64', [True, False])
    >>> checked_predictions([0.5, float("nan")], [10, 20], [1, 0])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ehrtrack.errors.DataError: 1 of 2 values of risk are not finite (first: row 1); look ...
    """
    scores = _finite("risk", risk)
    days = _finite("follow_up_days", follow_up_days)
    event = np.asarray(is_event).astype(bool)
    if not scores.shape == days.shape == event.shape or scores.ndim != 1:
        raise DataError(
            f"risk, follow_up_days and is_event have shapes {scores.shape}, {days.shape} and {event.shape}; "
            "needed is one value per subject in each"
        )
    return scores, days, event


def _finite(name: str, values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {array.size} values of {name} are not finite (first: row {bad[0][0]}); "
            "look for a diverged model or a missing time"
        )
    return array


def require_comparable_pair(days: Floats, event: Bools) -> None:
    """Raise NotMeasurable unless some subject outlives some event.

    Examples
    --------
    >>> require_comparable_pair(np.array([10.0, 20.0]), np.array([True, False]))
    >>> require_comparable_pair(np.array([10.0, 20.0]), np.array([False, True]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ehrtrack.errors.NotMeasurable: no comparable pair among 2 subjects with 1 events; a ...
    """
    first_event = days[event].min(initial=np.inf)
    if not (np.any(days > first_event) or np.any(~event & (days == first_event))):
        raise NotMeasurable(
            f"no comparable pair among {days.size} subjects with {int(event.sum())} events; "
            "a C-index needs one subject with the event and another followed for longer: use a larger split"
        )


def evaluation_times(
    train_follow_up_days: npt.ArrayLike,
    train_is_event: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    *,
    n_times: int = 50,
) -> Floats:
    """Days at which to read the Brier score: evenly spaced over the middle of the TRAINING follow-up.

    The range is the 10th to 90th percentile of the training follow-up. Where nearly every subject is
    followed to the horizon those percentiles fall together; the lower end is then the 10th percentile of
    the training event times. The range is narrowed to what both sets can answer: at or after the shortest
    follow-up evaluated, and below the longest of either set (at the horizon itself everybody has been
    censored and the weights are undefined).

    Parameters
    ----------
    train_follow_up_days, train_is_event : (N,) of the training subjects
    follow_up_days : (B,) of the subjects to be evaluated
    n_times : how many times

    Returns
    -------
    (n_times,) days, strictly increasing.

    Raises
    ------
    NotMeasurable
        If no such range is left.

    Examples
    --------
    Training follow-up runs from 1 to 101 days; its 10th and 90th percentiles are 11 and 91:

    >>> days = np.arange(1, 102)
    >>> evaluation_times(days, days % 2 == 0, days, n_times=5).tolist()
    [11.0, 31.0, 51.0, 71.0, 91.0]
    """
    train_days = np.asarray(train_follow_up_days, dtype=np.float64)
    train_event = np.asarray(train_is_event).astype(bool)
    days = np.asarray(follow_up_days, dtype=np.float64)
    if train_days.size == 0 or days.size == 0:
        raise DataError(f"{train_days.size} training and {days.size} evaluated subjects; both need at least one")
    end = float(np.nextafter(min(train_days.max(), days.max()), 0))
    low, high = (float(value) for value in np.percentile(train_days, [10, 90]))
    high = min(high, end)
    if low >= high and train_event.any():
        low = float(np.percentile(train_days[train_event], 10))
    low = max(low, float(days.min()))
    times = np.linspace(low, high, n_times)
    if low >= high or np.any(np.diff(times) <= 0):
        raise NotMeasurable(
            f"no range to evaluate survival in: training follow-up lies in {train_days.min():g} to "
            f"{train_days.max():g} days (10th to 90th percentile {np.percentile(train_days, 10):g} to "
            f"{np.percentile(train_days, 90):g}), evaluated follow-up in {days.min():g} to {days.max():g}; "
            "needed are overlapping ranges: use larger splits"
        )
    return times


def integrated_brier_score(
    train_follow_up_days: npt.ArrayLike,
    train_is_event: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    survival: npt.ArrayLike,
    times: npt.ArrayLike,
) -> float:
    """Integrated Brier score: squared error of S(t), averaged over `times`, censoring weighted out.

    Computed by scikit-survival. Weights are the inverse probability of still being under observation, by
    Kaplan-Meier on the training subjects (Graf et al. 1999, Statistics in Medicine 18). Evaluated subjects
    followed past the training follow-up are censored at its end: they count as event-free at all of `times`
    either way, so the score is the same, and the weights exist.

    Parameters
    ----------
    train_follow_up_days, train_is_event : (N,) of the training subjects
    follow_up_days, is_event : (B,) of the subjects evaluated
    survival : (B, M) predicted S at `times`
    times : (M,) days, from `evaluation_times`

    Raises
    ------
    DataError
        If shapes disagree, or `times` are not increasing and inside the follow-up of both sets.
    NotMeasurable
        If no event is seen.

    Examples
    --------
    Where nobody is censored, S = .5 for everybody has a squared error of .25 at all times:

    >>> days, event = [10, 20, 30, 40], [True] * 4
    >>> round(integrated_brier_score(days, event, days, event, np.full((4, 3), 0.5), [15, 25, 35]), 3)
    0.25
    """
    train_days = _finite("training follow_up_days", train_follow_up_days)
    train_event = np.asarray(train_is_event).astype(bool)
    days = _finite("follow_up_days", follow_up_days)
    event = np.asarray(is_event).astype(bool)
    predicted = _finite("survival", survival)
    at = _finite("times", times)
    if predicted.shape != (days.size, at.size):
        raise DataError(f"survival has shape {predicted.shape}; {days.size} subjects at {at.size} times are needed")
    train_end = train_days.max()
    end = min(train_end, days.max())
    if at.size < 2 or np.any(np.diff(at) <= 0) or at[0] < days.min() or at[-1] >= end:
        raise DataError(
            f"{at.size} evaluation times from {at.min(initial=np.inf):g} to {at.max(initial=-np.inf):g} "
            f"days; needed are at least 2, increasing, within [{days.min():g}, {end:g}): "
            "take them from evaluation_times"
        )
    is_past_training = days > train_end
    if not (event & ~is_past_training).any():
        raise NotMeasurable(
            f"no event within the training follow-up of {train_end:g} days among {days.size} subjects; a Brier score "
            "needs one: use a larger split"
        )
    score = sksurv_integrated_brier_score(
        Surv.from_arrays(train_event, train_days),
        Surv.from_arrays(event & ~is_past_training, np.minimum(days, train_end)),
        predicted,
        at,
    )
    return float(score)
