"""Calibration: predicted risk against the share of subjects in whom the event is seen, by groups of risk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
from sksurv.nonparametric import kaplan_meier_estimator

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.errors import DataError, NotMeasurable
from ehrtrack.survival.metrics import checked_predictions

MIN_GROUP_SUBJECTS = 2


def risk_groups(risk: npt.ArrayLike, n_groups: int) -> Ints:
    """Group of each subject by quantiles of risk, 0 the lowest; equal risks always share a group.

    Ties can leave fewer groups than asked for: a model that gives everybody the same risk makes one group.

    Parameters
    ----------
    risk : (B,)
    n_groups : the most groups wanted

    Returns
    -------
    (B,) int64, numbered without gaps.

    Examples
    --------
    >>> risk_groups([0.1, 0.2, 0.8, 0.9], 2).tolist()
    [0, 0, 1, 1]
    >>> risk_groups([0.5] * 4, 2).tolist()
    [0, 0, 0, 0]
    """
    scores = np.asarray(risk, dtype=np.float64)
    inner = np.quantile(scores, np.arange(1, n_groups) / n_groups)
    numbers = np.searchsorted(inner, scores, side="right")
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def observed_risk(follow_up_days: Floats, is_event: Bools, horizon_days: float) -> tuple[float, float, float]:
    """1 - Kaplan-Meier survival at the horizon with its log-log 95 % interval: (estimate, lower, upper).

    Where follow-up ends before the horizon, the last estimate is carried forward. A group without events
    has risk 0 and an upper bound by the rule of three (Hanley & Lippman-Hand 1983, JAMA 249): 3 / n, at
    most 1.

    Examples
    --------
    Two of four subjects have the event by day 30, and nobody is censored before it:

    >>> risk, lower, upper = observed_risk(np.array([10, 20, 40, 40]), np.array([True, True, False, False]), 30)
    >>> round(risk, 3), lower < 0.5 < upper
    (0.5, True)
    """
    is_early = follow_up_days <= horizon_days
    event = is_event & is_early
    if not event.any():
        return 0.0, 0.0, min(1.0, 3 / follow_up_days.size)
    days = np.minimum(follow_up_days, horizon_days)
    _, survival, bounds = kaplan_meier_estimator(event, days, conf_type="log-log")
    if survival[-1] == 0:  # everybody had the event: the same rule, turned round
        return 1.0, max(0.0, 1 - 3 / follow_up_days.size), 1.0
    lower_survival, upper_survival = bounds[:, -1]
    return float(1 - survival[-1]), float(1 - upper_survival), float(1 - lower_survival)


def calibration_table(
    risk: npt.ArrayLike,
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    *,
    horizon_days: float,
    n_groups: int = 10,
    subject: Ints | None = None,
) -> pl.DataFrame:
    """Mean predicted risk and observed Kaplan-Meier risk at the horizon, for groups of rising predicted risk.

    Parameters
    ----------
    risk : (B,) predicted probability of an event up to the horizon
    follow_up_days, is_event : (B,)
    horizon_days : the horizon of the prediction
    n_groups : the most groups; tied risks stay together, so there can be fewer
    subject : (B,) the subject of each row, where subjects have several rows; the counts are then of different subjects

    Returns
    -------
    Table with columns group (from 1), n_subjects, n_events, predicted, observed, lower, upper; by rising risk.

    Raises
    ------
    DataError
        If a risk is not a probability, or there are too few subjects for one group.

    Examples
    --------
    >>> days, event = [40, 10, 40, 40, 10, 20, 30, 40], [False, True, False, False, True, True, True, False]
    >>> risk = [0.1, 0.3, 0.2, 0.2, 0.7, 0.7, 0.8, 0.8]
    >>> table = calibration_table(risk, days, event, horizon_days=30, n_groups=2)
    >>> table.select("group", "n_subjects", "n_events", pl.col("predicted", "observed").round(3)).rows()
    [(1, 4, 1, 0.2, 0.25), (2, 4, 3, 0.75, 0.75)]
    """
    scores, days, event = checked_predictions(risk, follow_up_days, is_event)
    if scores.size < MIN_GROUP_SUBJECTS:
        raise NotMeasurable(f"{scores.size} subjects; a calibration table needs at least {MIN_GROUP_SUBJECTS}")
    if scores.min() < 0 or scores.max() > 1:
        raise DataError(
            f"risks from {scores.min():g} to {scores.max():g}; calibration needs probabilities of "
            "an event by the horizon, not scores"
        )
    # Groups of about one subject would have no Kaplan-Meier estimate worth the name.
    group = risk_groups(scores, min(n_groups, scores.size // MIN_GROUP_SUBJECTS))
    person, rows = np.arange(scores.size) if subject is None else subject, []
    for number in range(group.max() + 1):
        members = group == number
        observed, lower, upper = observed_risk(days[members], event[members], horizon_days)
        rows.append(
            {
                "group": number + 1,
                "n_subjects": len(np.unique(person[members])),
                "n_events": len(np.unique(person[members & event & (days <= horizon_days)])),
                "predicted": float(scores[members].mean()),
                "observed": observed,
                "lower": lower,
                "upper": upper,
            }
        )
    return pl.DataFrame(rows)
