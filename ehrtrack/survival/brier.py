"""Squared error of the risk at a horizon, and its skill against knowing the population's risk alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sksurv.metrics import brier_score

from ehrtrack.survival.censoring import FollowUp


def brier_at(risk: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> float:
    """Brier score at the horizon: the mean squared error of the predicted risk, weighted for the censoring.

    Lower is better. It is computed by scikit-survival, with inverse probability of censoring weights (Graf et al. 1999,
    Statistics in Medicine 18:2529-45).

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon, or one number for everybody
    follow_up : of the B subjects
    horizon_days : the horizon of the prediction

    Raises
    ------
    NotMeasurable
        If nobody had the event by the horizon, or nobody outlives it.

    Examples
    --------
    With everybody followed to the horizon it is the mean squared error, (.2² + .1² + .4² + .1²) / 4 = .055:

    >>> days, event = [10, 20, 40, 40], [True, True, False, False]
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> round(brier_at([0.8, 0.9, 0.4, 0.1], follow_up, horizon_days=30), 3)
    0.055
    """
    follow_up.require_both(horizon_days, least=1)
    survival = 1 - np.broadcast_to(np.asarray(risk, dtype=np.float64), follow_up.days.shape)
    at = np.array([horizon_days])
    return float(brier_score(follow_up.train_surv, follow_up.surv, survival[:, None], at)[1][0])
