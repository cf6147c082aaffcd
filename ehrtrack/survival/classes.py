"""Measures of probabilities of a class that everybody's is known of: nobody is censored, and there are no days.

All intervals are drawn over subjects (`bootstrap.drawn_counts`), so that rows of one subject are drawn together.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.bootstrap import FEWER_RESAMPLES, N_RESAMPLES
from ehrtrack.survival.calibration import risk_groups
from ehrtrack.survival.calibration_curve import MIN_PROBABILITY, CalibrationCurve, spline_columns
from ehrtrack.survival.censoring import MIN_EVENTS
from ehrtrack.survival.resampling import Interval, drawn_counts, percentile_interval, resampled_auc

MAX_STEPS = 50
"""Of Newton's method; a fit that needs more has no solution, as where risks separate the classes."""
STEP_TOLERANCE = 1e-9
LARGEST_COEFFICIENT = 1e3


@dataclass(frozen=True)
class Classes:
    """Probabilities with what came.

    Attributes
    ----------
    risk : (B,) predicted probability of the class
    truth : (B,) bool
    subject : (B,) whose row each is, where subjects have several; None where each is of another

    Examples
    --------
    >>> classes = Classes(np.array([0.1, 0.9]), np.array([False, True]))
    >>> len(classes), classes[np.array([1])].risk.tolist()
    (2, [0.9])
    """

    risk: Floats
    truth: Bools
    subject: Ints | None = None

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, rows: Ints | Bools) -> Classes:
        return Classes(self.risk[rows], self.truth[rows], None if self.subject is None else self.subject[rows])

    @property
    def log_odds(self) -> Floats:
        """(B,) logit of the risks; 0 and 1, which have none, are read as `MIN_PROBABILITY` from there."""
        odds: Floats = logit(np.clip(self.risk, MIN_PROBABILITY, 1 - MIN_PROBABILITY))
        return odds

    def require_both(self, *, least: int = MIN_EVENTS) -> None:
        """Raise NotMeasurable unless so many rows are of the class, and so many are not."""
        n_of, n_not = int(self.truth.sum()), int((~self.truth).sum())
        if min(n_of, n_not) < least:
            raise NotMeasurable(
                f"{n_of} of {len(self)} labels are true and {n_not} are false; needed are {least} of each: use a "
                "larger split"
            )


def auroc(classes: Classes) -> float:
    """Share of the pairs of a true and a false label in which the true one has the higher risk; equal risks count half.

    >>> auroc(Classes(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])))
    0.75
    """
    classes.require_both(least=1)
    return float(roc_auc_score(classes.truth, classes.risk))


def resampled_auroc(classes: Classes, *, n_resamples: int, seed: int) -> Floats:
    """(R,) AUROC in each resample of the subjects; NaN where a resample lacks a class.

    Examples
    --------
    >>> classes = Classes(np.repeat([0.2, 0.8], 20), np.arange(40) % 20 < np.repeat([4, 16], 20))
    >>> resampled_auroc(classes, n_resamples=50, seed=0).shape
    (50,)
    """
    weights = np.ones(len(classes))
    return resampled_auc(
        classes.risk, classes.truth, weights, n_resamples=n_resamples, seed=seed, subject=classes.subject
    )


def auroc_interval(classes: Classes, *, n_resamples: int = N_RESAMPLES, seed: int = 0, level: float = 0.95) -> Interval:
    """AUROC with its percentile interval.

    Raises
    ------
    NotMeasurable
        If a class is missing, or too rare for an interval.

    Examples
    --------
    Of 400 pairs of a true and a false label 256 are in order and 128 are ties:

    >>> classes = Classes(np.repeat([0.2, 0.8], 20), np.arange(40) % 20 < np.repeat([4, 16], 20))
    >>> round(auroc_interval(classes, n_resamples=100).estimate, 6)
    0.8
    """
    return percentile_interval(auroc(classes), resampled_auroc(classes, n_resamples=n_resamples, seed=seed), level)


def auroc_difference(
    classes: Classes, other_risk: Floats, *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Interval:
    """AUROC minus that of another model's risks (B,) for the same rows, over the same resampled subjects.

    Examples
    --------
    >>> classes = Classes(np.repeat([0.2, 0.8], 20), np.arange(40) % 20 < np.repeat([4, 16], 20))
    >>> auroc_difference(classes, classes.risk, n_resamples=100)
    Interval(estimate=0.0, lower=0.0, upper=0.0)
    """
    other = Classes(other_risk, classes.truth, classes.subject)
    mine, theirs = (resampled_auroc(of, n_resamples=n_resamples, seed=seed) for of in (classes, other))
    return percentile_interval(auroc(classes) - auroc(other), mine - theirs)


def auprc_interval(classes: Classes, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Interval:
    """Average precision, the area under precision by recall in steps, with its percentile interval.

    Risks without meaning come to the prevalence, so a resample of another prevalence has another floor.

    Examples
    --------
    Calling the higher risk finds .8 of the true labels with precision .8, calling everybody the rest with .5:

    >>> classes = Classes(np.repeat([0.2, 0.8], 20), np.arange(40) % 20 < np.repeat([4, 16], 20))
    >>> round(auprc_interval(classes, n_resamples=100).estimate, 6)
    0.74
    """
    classes.require_both(least=1)
    order = np.argsort(-classes.risk, kind="stable")
    truth, risk = classes.truth[order], classes.risk[order]
    last = np.append(np.flatnonzero(np.diff(risk)), len(risk) - 1)  # of rows with one risk all are called together
    resampled = np.full(n_resamples, np.nan)
    for rows, counts in drawn_counts(len(classes), n_resamples=n_resamples, seed=seed, subject=classes.subject):
        drawn = counts[:, order].astype(np.float64)
        found = np.cumsum(drawn * truth, axis=1)[:, last]
        called = np.cumsum(drawn, axis=1)[:, last]
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        area = (np.diff(found, axis=1, prepend=0) * precision).sum(axis=1)
        np.divide(area, found[:, -1], out=resampled[rows], where=found[:, -1] > 0)
    return percentile_interval(float(average_precision_score(classes.truth, classes.risk)), resampled)


def ratio_interval(
    over: npt.ArrayLike,
    under: npt.ArrayLike,
    classes: Classes,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """One sum over another, with its percentile interval: any mean or share of some of the rows.

    Parameters
    ----------
    over, under : (B,) what each row adds to either sum

    Examples
    --------
    >>> ratio_interval([1, 0, 1, 0], [1, 1, 1, 1], Classes(np.zeros(4), np.ones(4, dtype=bool)), seed=1).estimate
    0.5
    """
    sums = np.column_stack([np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64)])
    total_over, total_under = sums.sum(axis=0)
    if total_under <= 0:
        raise NotMeasurable("there is no row to take the share of; use a larger split")
    resampled = np.full(n_resamples, np.nan)
    for rows, counts in drawn_counts(len(classes), n_resamples=n_resamples, seed=seed, subject=classes.subject):
        drawn = counts @ sums
        np.divide(drawn[:, 0], drawn[:, 1], out=resampled[rows], where=drawn[:, 1] > 0)
    return percentile_interval(float(total_over / total_under), resampled)


def calibration_slope(classes: Classes) -> float:
    """The slope of `calibration_slope_interval` alone.

    Examples
    --------
    Risks of .2 and .8, of which .2 and .8 came:

    >>> classes = Classes(np.repeat([0.2, 0.8], 20), np.arange(40) % 20 < np.repeat([4, 16], 20))
    >>> round(calibration_slope(classes), 6)
    1.0
    """
    classes.require_both()
    return float(logistic_fit(_with_constant(classes.log_odds[:, None]), classes.truth)[1])


def calibration_slope_interval(classes: Classes, *, n_resamples: int = FEWER_RESAMPLES, seed: int = 0) -> Interval:
    """Slope of a logistic regression of the label on logit risk; 1 is right (Cox 1958, Biometrika 45:562-565).

    Below 1 the risks are too far apart, above 1 too close together.

    Raises
    ------
    NotMeasurable
        If a class is too rare, the risks do not vary, or they separate the classes.

    Examples
    --------
    >>> classes = Classes(np.repeat([0.2, 0.8], 20), np.arange(40) % 20 < np.repeat([4, 16], 20))
    >>> round(calibration_slope_interval(classes, n_resamples=50).estimate, 6)
    1.0
    """
    classes.require_both()
    x = _with_constant(classes.log_odds[:, None])
    fitted = logistic_fit(x, classes.truth)
    slopes = np.full(n_resamples, np.nan)
    for rows, counts in drawn_counts(len(classes), n_resamples=n_resamples, seed=seed, subject=classes.subject):
        for number, weights in enumerate(counts, start=rows.start):
            with suppress(NotMeasurable):  # a resample without a fit has no slope; percentile_interval counts them
                slopes[number] = logistic_fit(x, classes.truth, weights.astype(np.float64), start=fitted)[1]
    return percentile_interval(float(fitted[1]), slopes)


def calibration_intercept(classes: Classes) -> float:
    """By how much all log odds are too low, the slope being held at 1; 0 is right (calibration in the large).

    Examples
    --------
    >>> classes = Classes(np.repeat([0.2, 0.8], 20), np.arange(40) % 20 < np.repeat([4, 16], 20))
    >>> abs(calibration_intercept(classes)) < 1e-9
    True
    """
    classes.require_both()
    return float(logistic_fit(np.ones((len(classes), 1)), classes.truth, offset=classes.log_odds)[0])


def smooth_calibration(classes: Classes) -> CalibrationCurve:
    """Logistic regression of the label on a restricted cubic spline of logit risk (Harrell 2015, section 10.11).

    Raises
    ------
    NotMeasurable
        As `calibration_slope_interval`.

    Examples
    --------
    Risks on an even scale, each of which came as often as it says:

    >>> risk = np.repeat(np.linspace(0.1, 0.9, 9), 10)
    >>> classes = Classes(risk, np.arange(90) % 10 < np.round(risk * 10))
    >>> smooth_calibration(classes).ici < 0.01
    True
    """
    classes.require_both()
    x = _with_constant(spline_columns(classes.log_odds))
    observed: Floats = expit(x @ logistic_fit(x, classes.truth))
    return CalibrationCurve(np.asarray(classes.risk, dtype=np.float64), observed)


def calibration_groups(classes: Classes, *, n_groups: int = 10) -> pl.DataFrame:
    """Mean predicted risk and the share of true labels, with Wilson's 95 % interval, for groups of rising risk.

    Returns
    -------
    group (from 1), n_subjects, n_events (different subjects, and those with a true label), predicted, observed, lower,
    upper

    Examples
    --------
    >>> classes = Classes(np.repeat([0.2, 0.8], 20), np.arange(40) % 20 < np.repeat([4, 16], 20))
    >>> calibration_groups(classes, n_groups=2)["observed"].to_list()
    [0.2, 0.8]
    """
    classes.require_both()
    group = risk_groups(classes.risk, min(n_groups, len(classes) // 2))
    person = np.arange(len(classes)) if classes.subject is None else classes.subject
    lines = []
    for number in range(group.max() + 1):
        members, n_true = classes[group == number], int(classes.truth[group == number].sum())
        bounds = binomtest(n_true, len(members)).proportion_ci(method="wilson")
        lines.append(
            {
                "group": number + 1,
                "n_subjects": len(np.unique(person[group == number])),
                "n_events": len(np.unique(person[(group == number) & classes.truth])),
                "predicted": float(members.risk.mean()),
                "observed": n_true / len(members),
                "lower": float(bounds.low),
                "upper": float(bounds.high),
            }
        )
    return pl.DataFrame(lines)


def logistic_fit(
    x: Floats,
    truth: Bools,
    weights: Floats | None = None,
    *,
    offset: Floats | None = None,
    start: Floats | None = None,
) -> Floats:
    """(D,) coefficients of a logistic regression without a penalty, by Newton's method.

    Parameters
    ----------
    x : (B, D), a column of ones among them where there is to be an intercept
    weights : (B,) how often each row counts
    offset : (B,) what log odds have beside x

    Raises
    ------
    NotMeasurable
        If it has no solution: columns do not vary, or they separate the classes.

    Examples
    --------
    With a constant alone it is the log odds of the share, here log(3 / 1):

    >>> logistic_fit(np.ones((4, 1)), np.array([True, True, True, False])).round(4).tolist()
    [1.0986]
    """
    count, beside = np.ones(len(x)) if weights is None else weights, 0.0 if offset is None else offset
    beta: Floats = np.zeros(x.shape[1]) if start is None else start.copy()
    for _ in range(MAX_STEPS):
        p = expit(x @ beta + beside)
        curvature = (x * (count * p * (1 - p))[:, None]).T @ x
        try:
            step = np.linalg.solve(curvature, x.T @ (count * (truth - p)))
        except np.linalg.LinAlgError:
            break
        beta = beta + step
        if not np.isfinite(beta).all() or np.abs(beta).max() > LARGEST_COEFFICIENT:
            break
        if np.abs(step).max() < STEP_TOLERANCE:
            return beta
    raise NotMeasurable(
        "the logistic regression on predicted risk has no solution: the risks do not vary, or they separate the "
        "classes; use a larger split"
    )


def _with_constant(x: Floats) -> Floats:
    return np.column_stack([np.ones(len(x)), x])
