"""Are predicted risks true at a horizon, along a smooth curve: slope, integrated calibration index, D-calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import chi2

from ehrtrack.arrays import Floats
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.censoring import MIN_EVENTS, FollowUp, risk_without_interval
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.proportional_hazards import HazardFit, ProportionalHazards
from ehrtrack.survival.time_grid import TimeGrid

KNOT_QUANTILES = (0.1, 0.5, 0.9)
"""Harrell 2015, table 2.3, for three knots."""
MIN_PROBABILITY = 1e-7
"""Risks of 0 and 1 have no log hazard; they are read as this far from it."""
N_CURVE_POINTS = 100


def log_hazard(risk: npt.ArrayLike) -> Floats:
    """log(-log(1 - risk)), the logarithm of the cumulative hazard.

    On this scale a proportional change of the hazard is a shift. Risks of 0 and 1 are moved by `MIN_PROBABILITY`.

    Parameters
    ----------
    risk : any shape, probabilities

    Examples
    --------
    A risk of 1 - 1/e is a cumulative hazard of 1, whose logarithm is 0:

    >>> log_hazard([1 - np.exp(-1), 0.36, 0.2]).round(3).tolist()
    [0.0, -0.807, -1.5]
    """
    clipped = np.clip(np.asarray(risk, dtype=np.float64), MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    transformed: Floats = np.log(-np.log1p(-clipped))
    return transformed


def calibration_slope(risk: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> float:
    """Slope of a Cox regression on log(-log(1 - risk)), with follow-up to the horizon; 1 is right.

    Below 1 the risks are too far apart, as an overfitted model's are; above 1 too close together (van Houwelingen
    2000, Statistics in Medicine 19; Royston & Altman 2013, BMC Medical Research Methodology 13).

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon

    Raises
    ------
    NotMeasurable
        If events are too few, or the risks do not vary.

    Examples
    --------
    The cumulative hazards -log(1 - risk) are .223 and twice that. So are the shares of events, 6 of 30 and 4 of 10:

    >>> risk, event = [0.2] * 30 + [0.36] * 10, [True] * 6 + [False] * 24 + [True] * 4 + [False] * 6
    >>> days = np.where(event, 10, 40)
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> round(calibration_slope(risk, follow_up, horizon_days=30), 3)
    1.0

    Risks of .2 and .488, a cumulative hazard three times as large, are too far apart:

    >>> round(calibration_slope([0.2] * 30 + [0.488] * 10, follow_up, horizon_days=30), 3)
    0.631
    """
    return float(slope_regression(risk, follow_up, horizon_days=horizon_days).fit().beta[0])


def slope_regression(risk: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> ProportionalHazards:
    """The regression of `calibration_slope`, before it is fitted to all subjects or to resamples of them.

    Raises
    ------
    NotMeasurable
        If there are too few events by the horizon, or too few subjects who outlive it.

    Examples
    --------
    >>> risk, event = [0.2] * 30 + [0.36] * 10, [True] * 6 + [False] * 24 + [True] * 4 + [False] * 6
    >>> days = np.where(event, 10, 40)
    >>> regression = slope_regression(risk, FollowUp.of(days, event, days, event), horizon_days=30)
    >>> regression.fit().beta.round(3).tolist()
    [1.0]
    """
    follow_up.require_both(horizon_days)
    return _regression(log_hazard(risk)[:, None], follow_up, horizon_days)


@dataclass(frozen=True)
class CalibrationCurve:
    """Observed risk as a smooth function of predicted risk.

    Attributes
    ----------
    predicted, observed : (B,) of each subject

    Examples
    --------
    >>> curve = CalibrationCurve(predicted=np.array([0.1, 0.2, 0.3]), observed=np.array([0.1, 0.3, 0.5]))
    >>> round(curve.ici, 3), round(curve.quantile(0.5), 3)
    (0.1, 0.1)
    >>> curve.table(365).rows()
    [(365, 0.1, 0.1), (365, 0.2, 0.3), (365, 0.3, 0.5)]
    """

    predicted: Floats
    observed: Floats

    @property
    def errors(self) -> Floats:
        """(B,) distance of each subject's predicted risk from the risk observed at it."""
        distance: Floats = np.abs(self.observed - self.predicted)
        return distance

    @property
    def ici(self) -> float:
        """Integrated calibration index: the mean distance over subjects."""
        return float(self.errors.mean())

    def quantile(self, share: float) -> float:
        """Distance that this share of subjects is within: E50 at 0.5, E90 at 0.9."""
        return float(np.quantile(self.errors, share))

    def table(self, horizon_days: float) -> pl.DataFrame:
        """The curve at `N_CURVE_POINTS` quantiles of predicted risk: columns horizon_days, predicted, observed."""
        order = np.argsort(self.predicted, kind="stable")
        places = order[np.linspace(0, order.size - 1, min(N_CURVE_POINTS, order.size)).astype(int)]
        points = {"predicted": self.predicted[places], "observed": self.observed[places]}
        return pl.DataFrame(points).unique(maintain_order=True).select(pl.lit(horizon_days).alias("horizon_days"), "*")


def calibration_curve(risk: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> CalibrationCurve:
    """Smooth calibration: Cox regression on a restricted cubic spline of log(-log(1 - risk)), read at the horizon.

    The spline has three knots (Austin, Harrell & van Klaveren 2020, Statistics in Medicine 39:2714-42). Where so many
    risks are tied that the knots coincide, the curve is a straight line.

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon
    follow_up : of the B subjects
    horizon_days : the horizon of the prediction

    Raises
    ------
    NotMeasurable
        If events are too few, or the risks do not vary.

    Examples
    --------
    With two risks the curve is a line. Ten events among 30 + 10 x 2 hazards are a baseline hazard of .2, and so risks
    of 1 - exp(-.2) and 1 - exp(-.4):

    >>> risk, event = [0.2] * 30 + [0.36] * 10, [True] * 6 + [False] * 24 + [True] * 4 + [False] * 6
    >>> days = np.where(event, 10, 40)
    >>> curve = calibration_curve(risk, FollowUp.of(days, event, days, event), horizon_days=30)
    >>> np.unique(curve.observed.round(3)).tolist(), round(curve.ici, 3)
    ([0.181, 0.33], 0.022)
    """
    follow_up.require_both(horizon_days)
    x = spline_columns(log_hazard(risk))
    fit: HazardFit = _regression(x, follow_up, horizon_days).fit()
    return CalibrationCurve(np.asarray(risk, dtype=np.float64), fit.risk(x, horizon_days))


def spline_columns(x: Floats) -> Floats:
    """(B, 2) restricted cubic spline in three knots (Harrell 2015, eq. 2.25), centred; (B, 1) if knots fall together.

    Between the outer knots it is cubic, beyond them straight: few subjects cannot bend the ends.

    Examples
    --------
    >>> spline_columns(np.arange(11.0)).shape, spline_columns(np.array([0.0] * 10 + [1.0])).shape
    ((11, 2), (11, 1))
    """
    low, middle, high = np.quantile(x, KNOT_QUANTILES)
    if not low < middle < high:
        centred: Floats = (x - x.mean())[:, None]
        return centred

    def cubed(knot: float) -> Floats:
        above: Floats = np.maximum(x - knot, 0) ** 3
        return above

    width = high - low
    bend = cubed(low) - cubed(middle) * width / (high - middle) + cubed(high) * (middle - low) / (high - middle)
    columns = np.column_stack([x, bend / width**2])
    result: Floats = columns - columns.mean(axis=0)
    return result


def observed_to_expected(risk: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> float:
    """Calibration in the large: the observed risk (Kaplan-Meier) over the mean predicted risk at the horizon.

    1 is right; above 1 the predicted risks are too low.

    Parameters
    ----------
    risk : (B,) predicted probability of the event up to the horizon

    Raises
    ------
    NotMeasurable
        If nobody had the event by the horizon or nobody outlives it, or every predicted risk is 0.

    Examples
    --------
    Two of four subjects have the event, and .25 on average was predicted:

    >>> days, event = [10, 20, 40, 40], [True, True, False, False]
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> round(observed_to_expected([0.4, 0.4, 0.1, 0.1], follow_up, horizon_days=30), 3)
    2.0
    """
    follow_up.require_both(horizon_days, least=1)
    expected = float(np.mean(np.asarray(risk, dtype=np.float64)))
    if expected <= 0:
        raise NotMeasurable("every predicted risk is 0: observed over expected has no value")
    return risk_without_interval(follow_up.days, follow_up.is_event, horizon_days) / expected


def d_calibration(
    survival: npt.ArrayLike, grid: TimeGrid, follow_up: FollowUp, *, n_bins: int = 10
) -> tuple[float, Floats]:
    """P-value of D-calibration, and the share of subjects in each bin of S(t_i).

    If the curves are right, S at a subject's own event day is uniform. A subject censored with S(c) left is spread
    evenly over the bins below S(c), and so are those followed to the horizon (Haider, Hoehn, Davis & Greiner 2020, JMLR
    21(85), section 3.5). The test is Pearson's chi-squared with n_bins - 1 degrees of freedom. With much censoring it
    is conservative: a small p-value is evidence against the curves, and a large one is no evidence for them.

    Parameters
    ----------
    survival : (B, K + 1) at the edges of the grid
    n_bins : bins of [0, 1] of equal width

    Returns
    -------
    p-value, (n_bins,) shares from S = 0 to 1; all 1 / n_bins if right

    Raises
    ------
    NotMeasurable
        If there are fewer than 5 subjects a bin, or too few events.

    Examples
    --------
    One hundred subjects have the event, one a day. A curve that falls evenly to 0 puts ten of them into each bin:

    >>> days, event = np.arange(100) + 0.5, np.full(100, True)
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> curves = np.tile([1.0, 0.0], (100, 1))
    >>> p_value, shares = d_calibration(curves, TimeGrid((0, 100)), follow_up)
    >>> round(p_value, 3), shares.round(2).tolist()
    (1.0, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    """
    n = follow_up.days.size
    is_event = follow_up.has_event_by(grid.horizon_days)
    if n < 5 * n_bins or is_event.sum() < MIN_EVENTS:
        raise NotMeasurable(
            f"{n} subjects with {is_event.sum()} events for D-calibration in {n_bins} bins; needed are {5 * n_bins} "
            f"subjects and {MIN_EVENTS} events: use a larger split"
        )
    at = own_survival(survival, grid, follow_up)
    edges = np.linspace(0, 1, n_bins + 1)
    own_bin = np.clip(np.searchsorted(edges, at, side="left") - 1, 0, n_bins - 1)
    shares = np.bincount(own_bin[is_event], minlength=n_bins).astype(np.float64)
    left = at[~is_event][:, None]
    inside = np.clip(left - edges[:-1], 0, 1 / n_bins)  # (censored, bins): how much of each bin lies below S(c)
    spread = np.divide(inside, left, out=np.zeros_like(inside), where=left > 0)
    shares += spread.sum(axis=0)
    shares[0] += (left == 0).sum()
    statistic = float(((shares - n / n_bins) ** 2 / (n / n_bins)).sum())
    return float(chi2.sf(statistic, n_bins - 1)), shares / n


def own_survival(survival: npt.ArrayLike, grid: TimeGrid, follow_up: FollowUp) -> Floats:
    """(B,) S of each subject at the end of its own follow-up, or at the horizon if that is earlier.

    Examples
    --------
    >>> follow_up = FollowUp.of([5, 10], [True, False], [5, 10], [True, False])
    >>> own_survival([[1.0, 0.6], [1.0, 0.6]], TimeGrid((0, 10)), follow_up).round(3).tolist()
    [0.8, 0.6]
    """
    curves = np.asarray(survival, dtype=np.float64)
    edges = np.asarray(grid.edges_days)
    days = np.minimum(follow_up.days, grid.horizon_days)
    right = np.clip(np.searchsorted(edges, days, side="left"), 1, edges.size - 1)
    rows = np.arange(days.size)
    weight = (days - edges[right - 1]) / (edges[right] - edges[right - 1])
    own: Floats = curves[rows, right - 1] * (1 - weight) + curves[rows, right] * weight
    return own


def risk_at(survival: npt.ArrayLike, grid: TimeGrid, day: float) -> Floats:
    """(B,) predicted probability of the event up to a day.

    Examples
    --------
    >>> risk_at([[1.0, 0.6], [1.0, 0.2]], TimeGrid((0, 10)), 5).round(3).tolist()
    [0.2, 0.4]
    """
    risk: Floats = 1 - interpolate_survival(survival, grid, [day])[:, 0]
    return risk


def _regression(x: Floats, follow_up: FollowUp, horizon_days: float) -> ProportionalHazards:
    event = follow_up.has_event_by(horizon_days)
    days = np.where(event, follow_up.days, np.minimum(follow_up.days, np.nextafter(horizon_days, np.inf)))
    return ProportionalHazards(x, days, event)
