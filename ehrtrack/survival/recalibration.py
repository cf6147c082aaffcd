"""Recalibrating hazards on validation subjects: Platt scaling or isotonic regression of each interval's hazard.

The raw curves are what the model says; recalibrated ones are a second model made from it and from the validation
subjects, and are always reported apart.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgWarning
from sklearn.exceptions import ConvergenceWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from ehrtrack.arrays import Bools, Floats
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.censoring import MIN_EVENTS
from ehrtrack.survival.time_grid import TimeGrid

Method = Literal["platt", "isotonic"]
MIN_HAZARD = 1e-9
"""Hazards of 0 and 1 have no logit; they are read as this far from it."""


class Recalibration:
    """A rising function from a predicted hazard to the hazard seen at it.

    Examples
    --------
    Three quarters survive where the model says one half:

    >>> grid, days = TimeGrid((0, 30)), np.array([10.0] * 10 + [30.0] * 30)
    >>> fitted = fit_recalibration("isotonic", np.tile([1.0, 0.5], (40, 1)), grid, days, days < 30)
    >>> fitted.apply([[1.0, 0.5]]).round(3).tolist()
    [[1.0, 0.75]]
    """

    def __init__(self, method: Method, model: LogisticRegression | IsotonicRegression) -> None:
        self.method = method
        self._model = model

    def apply(self, survival: npt.ArrayLike) -> Floats:
        """(B, K + 1) survival at the edges of the grid, from curves of the same grid."""
        hazard = _hazards(survival)
        flat = hazard.reshape(-1)
        if self.method == "platt":
            seen = self._model.predict_proba(_logit(flat)[:, None])[:, 1]
        else:
            seen = self._model.predict(flat)
        recalibrated: Floats = np.cumprod(1 - seen.reshape(hazard.shape), axis=1)
        return np.column_stack([np.ones(len(hazard)), recalibrated])


def fit_recalibration(
    method: Method, survival: npt.ArrayLike, grid: TimeGrid, follow_up_days: npt.ArrayLike, is_event: npt.ArrayLike
) -> Recalibration:
    """Fit a recalibration of the hazards on the VALIDATION subjects.

    Each interval in which a subject was at risk is one observation; its weight is the share of it that the subject was
    followed through.

    Platt's scaling is logit h' = a + b logit h by maximum likelihood (Platt 1999), isotonic regression the rising step
    function with the least squared error (Zadrozny & Elkan 2002). By scikit-learn.

    Parameters
    ----------
    survival : (B, K + 1) at the edges of the grid
    follow_up_days, is_event : (B,)

    Raises
    ------
    NotMeasurable
        If there are too few events.

    Examples
    --------
    A risk of one half is predicted for everybody, and a quarter have the event:

    >>> grid, days = TimeGrid((0, 30)), np.array([10.0] * 10 + [30.0] * 30)
    >>> fitted = fit_recalibration("isotonic", np.tile([1.0, 0.5], (40, 1)), grid, days, days < 30)
    >>> fitted.apply([[1.0, 0.5]]).round(3).tolist()
    [[1.0, 0.75]]
    """
    event = np.asarray(is_event, dtype=bool)
    if event.sum() < MIN_EVENTS:
        raise NotMeasurable(
            f"{event.sum()} events among {event.size} validation subjects; recalibration needs at least {MIN_EVENTS}"
        )
    hazard, failed, weight = at_risk_intervals(survival, grid, follow_up_days, event)
    if method == "platt":
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model.fit(_logit(hazard)[:, None], failed, sample_weight=weight)
        except (LinAlgWarning, ConvergenceWarning) as warning:
            raise NotMeasurable(
                f"Platt scaling of {event.size} validation subjects has no solution ({str(warning).split('.')[0]}): "
                "the predicted hazards do not vary, or they separate the events from the rest; use a larger split"
            ) from warning
        if model.coef_[0, 0] <= 0:
            raise NotMeasurable(
                f"Platt scaling has slope {model.coef_[0, 0]:.2g}: validation subjects of higher predicted hazard have "
                "fewer events, and recalibration would turn the order of risks round"
            )
    else:
        model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(hazard, failed, sample_weight=weight)
    return Recalibration(method, model)


def at_risk_intervals(
    survival: npt.ArrayLike, grid: TimeGrid, follow_up_days: npt.ArrayLike, is_event: npt.ArrayLike
) -> tuple[Floats, Bools, Floats]:
    """Predicted hazard of each interval a subject was at risk in, whether the event came in it, and its weight.

    As in the likelihood (`TimeGrid.survived`): an event in interval k gives intervals 0 .. k, the last of them with
    the event; a subject censored in k gives 0 .. k - 1, and k with the share of it that the subject was seen through.

    Examples
    --------
    One subject with the event in the second interval, and one censored halfway through the first:

    >>> curves, grid = [[1.0, 0.8, 0.4], [1.0, 0.9, 0.9]], TimeGrid((0, 10, 30))
    >>> hazard, failed, weight = at_risk_intervals(curves, grid, [20, 5], [True, False])
    >>> hazard.round(3).tolist(), failed.tolist(), weight.tolist()
    ([0.2, 0.5, 0.1], [False, True, False], [1.0, 1.0, 0.5])
    """
    hazard = _hazards(survival)
    event = np.asarray(is_event, dtype=bool)
    survived = grid.survived(follow_up_days, event)[:, None]
    interval = np.arange(grid.n_intervals)
    failed = (interval == survived) & event[:, None]
    weight = np.clip(survived - interval, 0, 1) + failed
    at_risk = weight > 0
    return hazard[at_risk], failed[at_risk], weight[at_risk]


def _hazards(survival: npt.ArrayLike) -> Floats:
    """(B, K) share of those at risk who leave in each interval; 1 where nobody is left."""
    curves = np.asarray(survival, dtype=np.float64)
    before, after = curves[:, :-1], curves[:, 1:]
    hazards: Floats = 1 - np.divide(after, before, out=np.zeros_like(after), where=before > 0)
    return np.clip(hazards, 0, 1)


def _logit(hazard: Floats) -> Floats:
    clipped = np.clip(hazard, MIN_HAZARD, 1 - MIN_HAZARD)
    logit: Floats = np.log(clipped / (1 - clipped))
    return logit
