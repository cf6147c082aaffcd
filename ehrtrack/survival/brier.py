"""Squared error of the risk at a horizon, and its skill against knowing the population's risk alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sksurv.metrics import brier_score

from ehrtrack.survival.censoring import FollowUp


def brier_at(risk: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> float:
    """Brier score at the horizon, the censored weighted out (Graf et al. 1999). By scikit-survival; lower is better.

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon, or one for everybody

    Raises
    ------
    DataError
        If nobody had the event by the horizon, or nobody outlives it.
    """
    follow_up.require_both(horizon_days, least=1)
    survival = 1 - np.broadcast_to(np.asarray(risk, dtype=np.float64), follow_up.days.shape)
    at = np.array([horizon_days])
    return float(brier_score(follow_up.train_surv, follow_up.surv, survival[:, None], at)[1][0])
