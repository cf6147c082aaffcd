"""Decision curve: what acting on a predicted risk is worth, against acting on everybody or on nobody."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.errors import DataError
from ehrtrack.survival.censoring import FollowUp, risk_without_interval

N_THRESHOLDS = 50


def default_thresholds(follow_up: FollowUp, *, horizon_days: float) -> Floats:
    """Thresholds of risk at which a decision might be made: evenly spaced up to three times the observed risk.

    Returns
    -------
    (M,) at most 99 %

    Examples
    --------
    Half of the subjects have the event by day 30; three times that is cut at 99 %:

    >>> days, event = [10, 20, 40, 40], [True, True, False, False]
    >>> thresholds = default_thresholds(FollowUp.of(days, event, days, event), horizon_days=30)
    >>> len(thresholds), round(float(thresholds[-1]), 3)
    (50, 0.99)
    """
    observed = risk_without_interval(follow_up.days, follow_up.is_event, horizon_days)
    thresholds: Floats = np.linspace(0, min(0.99, 3 * observed), N_THRESHOLDS + 1)[1:]
    return thresholds


def decision_curve(
    risk: npt.ArrayLike,
    follow_up: FollowUp,
    *,
    horizon_days: float,
    thresholds: npt.ArrayLike | None = None,
) -> pl.DataFrame:
    """Net benefit of acting on subjects at or above each threshold of risk.

    Net benefit = P(event, called) - P(no event, called) x threshold / (1 - threshold): true positives a subject, less
    the false ones at the price the threshold sets on them. With censoring, the share of events among the called is
    1 - Kaplan-Meier in them (Vickers, Cronin, Elkin & Gonen 2008, BMC Medical Informatics and Decision Making 8).

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon
    thresholds : (M,) in (0, 1); `default_thresholds` if None

    Returns
    -------
    Table with columns threshold, n_called, net_benefit, treat_all, treat_none.

    Raises
    ------
    DataError
        If there are too few events, or a threshold is not in (0, 1).

    Examples
    --------
    Ten subjects have the event by day 30 and ten outlive it. At a threshold of .5 a model that tells them apart calls
    the ten right ones, a net benefit of 10 / 20; to treat all is worth 10 / 20 - 10 / 20 x 1:

    >>> days, event = [10] * 10 + [40] * 10, [True] * 10 + [False] * 10
    >>> follow_up, risk = FollowUp.of(days, event, days, event), [0.8] * 10 + [0.2] * 10
    >>> decision_curve(risk, follow_up, horizon_days=30, thresholds=[0.5]).rows(named=True)
    [{'threshold': 0.5, 'n_called': 10, 'net_benefit': 0.5, 'treat_all': 0.0, 'treat_none': 0.0}]
    """
    follow_up.require_both(horizon_days)
    scores = np.asarray(risk, dtype=np.float64)
    at = np.asarray(
        default_thresholds(follow_up, horizon_days=horizon_days) if thresholds is None else thresholds, dtype=np.float64
    )
    if at.size == 0 or at.min() <= 0 or at.max() >= 1:
        raise DataError(f"thresholds {at}; a decision curve needs risks between 0 and 1, both excluded")
    overall = risk_without_interval(follow_up.days, follow_up.is_event, horizon_days)
    odds = at / (1 - at)
    benefits, n_called = np.zeros(at.size), np.zeros(at.size, dtype=np.int64)
    for number, threshold in enumerate(at):
        called = scores >= threshold
        n_called[number] = called.sum()
        if n_called[number]:
            share = n_called[number] / scores.size
            among = risk_without_interval(follow_up.days[called], follow_up.is_event[called], horizon_days)
            benefits[number] = share * among - share * (1 - among) * odds[number]
    return pl.DataFrame(
        {
            "threshold": at,
            "n_called": n_called,
            "net_benefit": benefits,
            "treat_all": overall - (1 - overall) * odds,
            "treat_none": np.zeros(at.size),
        }
    )
