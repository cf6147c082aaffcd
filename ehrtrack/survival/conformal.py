"""Lower bounds on survival time that hold for a stated share of subjects, whatever the model is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Floats
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.calibration_curve import own_survival
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.time_grid import TimeGrid


@dataclass(frozen=True)
class LowerBounds:
    """Lower bounds on the time to the event: the day on which a subject's survival curve falls to a fixed level.

    Attributes
    ----------
    coverage : wanted share of subjects who live (without the event) at least as long as their bound
    survival_level : the bound of a subject is the day on which its curve falls to this

    Examples
    --------
    A curve that falls evenly from 1 to 0 over 100 days reaches .9 on day 10; one that stays above .9 gives the horizon:

    >>> bounds = LowerBounds(coverage=0.9, survival_level=0.9)
    >>> bounds.days([[1.0, 0.0], [1.0, 0.95]], TimeGrid((0, 100))).round(3).tolist()
    [10.0, 100.0]
    """

    coverage: float
    survival_level: float

    def days(self, survival: npt.ArrayLike, grid: TimeGrid) -> Floats:
        """(B,) days before which no event is expected at this coverage; the horizon where the curve stays above."""
        curves = np.asarray(survival, dtype=np.float64)
        edges = np.asarray(grid.edges_days)
        is_above = curves > self.survival_level
        right = np.clip(is_above.sum(axis=1), 1, edges.size - 1)  # curves fall: the first edge at or below the level
        rows = np.arange(len(curves))
        high, low = curves[rows, right - 1], curves[rows, right]
        fall = np.divide(high - self.survival_level, high - low, out=np.zeros(len(curves)), where=high > low)
        crossing = edges[right - 1] + np.clip(fall, 0, 1) * (edges[right] - edges[right - 1])
        bounds: Floats = np.where(is_above.all(axis=1), edges[-1], crossing)
        return bounds


def fit_lower_bounds(
    survival: npt.ArrayLike, grid: TimeGrid, follow_up: FollowUp, *, coverage: float = 0.9
) -> LowerBounds:
    """Split-conformal bounds: the level of S is chosen on VALIDATION subjects, none of whom trained the model.

    An event is missed by a bound if it comes before it, that is if S(t_i) > level. The level is the lowest at which
    the share of missed events, with 1 / G for the censored, is at most 1 - coverage; the subject to come counts as
    missed (Candès, Lei & Ren 2023, JRSS B 85, and Gui, Hore, Ren & Barber 2024, Biometrika 111, with weights that do
    not depend on the subject). Bounds end at the horizon, past which nothing is seen.

    Parameters
    ----------
    survival : (B, K + 1) at the edges of the grid
    coverage : in (0, 1)

    Raises
    ------
    NotMeasurable
        If the coverage is not a share, or there are too few subjects for it.

    Examples
    --------
    One hundred validation subjects have the event on days 1 to 100. Of them and the subject to come, who counts as
    missed, at most a tenth may be missed, 10.1 of 101. So nine may have the event before their bound, which is day 10:

    >>> days, event = np.arange(1, 101), np.full(100, True)
    >>> curves, grid = np.tile([1.0, 0.0], (100, 1)), TimeGrid((0, 100))
    >>> bounds = fit_lower_bounds(curves, grid, FollowUp.of(days, event, days, event), coverage=0.9)
    >>> round(bounds.survival_level, 3), bounds.days(curves, grid)[:1].round(3).tolist()
    (0.9, [10.0])
    """
    n = follow_up.days.size
    if not 0 < coverage < 1 or (1 - coverage) * (n + 1) < 1:
        raise NotMeasurable(
            f"bounds for a share of {coverage:g} from {n} validation subjects; needed are a share between 0 and 1 "
            f"and at least {1 / max(1 - coverage, 1e-9) - 1:.0f} subjects"
        )
    event = follow_up.has_event_by(grid.horizon_days)
    own = own_survival(survival, grid, follow_up)[event]
    weights = follow_up.weights_at(grid.horizon_days)[event]
    levels, inverse = np.unique(own, return_inverse=True)
    at_level = np.bincount(inverse, weights=weights, minlength=levels.size)
    n_missed = np.append(at_level.sum() - np.cumsum(at_level), at_level.sum())  # above each level; then above 0
    is_enough = (n_missed + max(1.0, weights.max(initial=0.0))) / (n + 1) <= 1 - coverage
    allowed = np.append(levels, 0.0)[is_enough]
    return LowerBounds(coverage, float(allowed.min(initial=1.0)))


def covered_share(bounds_days: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> float:
    """Share of subjects without an event before their bound, weighted for the censored by 1 / G.

    If the bounds are right it is near their coverage.

    Parameters
    ----------
    bounds_days : (B,) from `LowerBounds.days`
    follow_up : of the B subjects
    horizon_days : where the bounds end

    Examples
    --------
    One of four subjects has the event before the bound of 15 days:

    >>> days, event = [10, 20, 40, 40], [True, True, False, False]
    >>> covered_share([15] * 4, FollowUp.of(days, event, days, event), horizon_days=30)
    0.75
    """
    missed = follow_up.has_event_by(horizon_days) & (follow_up.days < np.asarray(bounds_days, dtype=np.float64))
    return 1 - float((follow_up.weights_at(horizon_days) * missed).sum() / follow_up.days.size)
