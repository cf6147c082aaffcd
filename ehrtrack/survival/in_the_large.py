"""Recalibration in the large: one number that brings the mean predicted risk to the risk that was observed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from ehrtrack.arrays import Floats
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.censoring import FollowUp, risk_without_interval

MOST_SHIFT = 20.0
"""exp(20) is a hazard ratio of 5e8: what lies beyond is no recalibration."""


@dataclass(frozen=True)
class Shift:
    """A change of everybody's cumulative hazard by one factor: S'(t) = S(t) ** exp(a).

    It moves the level of risks and keeps their order and their spread on the scale of log hazards, as an update of the
    intercept does in a logistic model (Steyerberg 2019, Clinical Prediction Models, chapter 20.2).

    Attributes
    ----------
    log_ratio : a; above 0 the risks were too low

    Examples
    --------
    A hazard twice as large makes a survival of one half one quarter:

    >>> Shift(float(np.log(2))).apply([[1.0, 0.5]]).round(3).tolist()
    [[1.0, 0.25]]
    """

    log_ratio: float

    def apply(self, survival: npt.ArrayLike) -> Floats:
        """(B, K + 1) survival at the edges of the grid, from curves of the same grid."""
        shifted: Floats = np.asarray(survival, dtype=np.float64) ** np.exp(self.log_ratio)
        return shifted


def fit_in_the_large(survival: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> Shift:
    """The shift after which the mean risk at the horizon is 1 - Kaplan-Meier there.

    Parameters
    ----------
    survival : (B, K + 1) at the edges of the grid, the last of which is the horizon
    follow_up : of the B subjects

    Raises
    ------
    NotMeasurable
        If there are too few events by the horizon or too few subjects beyond it, or no shift brings the two together.

    Examples
    --------
    One quarter is predicted for everybody, and half of the subjects have the event: log(-log .5) - log(-log .75).

    >>> event = np.array([True, False] * 20)
    >>> days = np.where(event, 10.0, 40.0)
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> shift = fit_in_the_large(np.tile([1.0, 0.75], (40, 1)), follow_up, horizon_days=30)
    >>> round(shift.log_ratio, 3)
    0.879
    """
    follow_up.require_both(horizon_days)
    observed = risk_without_interval(follow_up.days, follow_up.is_event, horizon_days)
    at_horizon = np.asarray(survival, dtype=np.float64)[:, -1:]

    def excess(log_ratio: float) -> float:
        return float(1 - Shift(log_ratio).apply(at_horizon).mean()) - observed

    if excess(-MOST_SHIFT) > 0 or excess(MOST_SHIFT) < 0:
        raise NotMeasurable(
            f"no factor of the hazard brings the mean predicted risk to the {observed:.3f} observed: risks of 0 and 1 "
            "stay what they are"
        )
    return Shift(float(brentq(excess, -MOST_SHIFT, MOST_SHIFT, xtol=1e-12)))
