"""Bootstrap intervals over subjects: for a C-index, and for the difference of two models on one test set.

A subject that is drawn brings all its rows along (a bootstrap of clusters, Davison & Hinkley 1997, section 3.8): those
of several prediction times are far from independent, and drawn one by one they make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.calibration_curve import slope_regression
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.concordance import RankedSubjects
from ehrtrack.survival.discrimination import dynamic_auc, uno_c
from ehrtrack.survival.metrics import checked_predictions
from ehrtrack.survival.resampling import (
    LEVEL,
    Interval,
    c_indices_and_resamples,
    drawn_counts,
    percentile_interval,
    resampled_shares,
)

N_RESAMPLES = 500
FEWER_RESAMPLES = 200
"""Where each of them costs a fit, or there are many groups to score."""


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
    scored = c_indices_and_resamples([scores], days, event, n_resamples=n_resamples, seed=seed, subject=subject)
    return percentile_interval(*scored[0], level)


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
    found = paired_differences(
        [risk_a], risk_b, follow_up_days, is_event, n_resamples=n_resamples, level=level, seed=seed, subject=subject
    )
    return found[0]


def paired_differences(
    risks: Sequence[npt.ArrayLike],
    to: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    *,
    n_resamples: int = N_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    subject: npt.ArrayLike | None = None,
) -> list[Interval]:
    """`paired_difference` of several models to the same one, which is scored once for all.

    Parameters
    ----------
    risks : of each model (B,)
    to : (B,) risks of the model that they are compared with
    follow_up_days, is_event, n_resamples, level, seed, subject : as in `paired_difference`

    Raises
    ------
    NotMeasurable
        As `paired_difference`: for all models or for none, since what is comparable is the same for all.

    Examples
    --------
    Of two models one ranks the subjects as the other model does, and one the other way round:

    >>> risk, days = np.array([0.9, 0.7, 0.5, 0.3, 0.1] * 4), [1, 2, 3, 4, 5] * 4
    >>> [str(found) for found in paired_differences([risk / 2, -risk], risk, days, [True] * 20, n_resamples=50)]
    ['0.000 [0.000, 0.000]', '-1.000 [-1.000, -1.000]']
    """
    _, days, event = checked_predictions(to, follow_up_days, is_event)
    scores = [checked_predictions(risk, days, event)[0] for risk in (to, *risks)]
    (estimate_to, resampled_to), *others = c_indices_and_resamples(
        scores, days, event, n_resamples=n_resamples, seed=seed, subject=subject
    )
    return [
        percentile_interval(estimate - estimate_to, resampled - resampled_to, level) for estimate, resampled in others
    ]


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
    resampled = resampled_shares(ranked, weights, n_resamples=n_resamples, seed=seed, subject=follow_up.subject)
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
    resampled = resampled_shares(ranked, weights, n_resamples=n_resamples, seed=seed, subject=follow_up.subject)
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
