"""Who is ahead of whom, under censoring: Uno's C, Antolini's C, cumulative/dynamic AUC, ROC and precision-recall."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.metrics import precision_recall_curve, roc_curve
from sksurv.metrics import concordance_index_ipcw, cumulative_dynamic_auc

from ehrtrack.arrays import Bools, Floats
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.metrics import require_comparable_pair
from ehrtrack.survival.time_grid import TimeGrid

BLOCK_VALUES = 4_000_000
"""Survival values (subjects x event days) held at once: 32 MB, whatever the cohort's size."""


def uno_c(risk: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> float:
    """Uno's C at a horizon: Harrell's C of events by the horizon, each weighted by 1 / G(t)**2. By scikit-survival.

    It does not depend on the censoring, as Harrell's C does (Uno et al. 2011, Statistics in Medicine 30, eq. 6). An
    event on the horizon's day counts; a subject censored on the day of an event outlives it; two events on one day are
    not compared; equal risks count one half.

    Parameters
    ----------
    risk : (B,), higher means an earlier event
    horizon_days : pairs count whose first event is on or before this day

    Raises
    ------
    NotMeasurable
        If no pair is comparable up to the horizon.

    Examples
    --------
    Without censoring it is Harrell's C of the events by the horizon. Five of the six pairs are ranked right:

    >>> days, event = [10, 20, 30, 40], [True] * 4
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> round(uno_c([0.9, 0.4, 0.5, 0.1], follow_up, horizon_days=35), 3)
    0.833
    """
    event = follow_up.has_event_by(horizon_days)
    require_comparable_pair(follow_up.days, event)
    # scikit-survival takes events before tau; an event on the horizon's day counts here.
    tau = np.nextafter(horizon_days, np.inf)
    scores = np.asarray(risk, dtype=np.float64)
    return float(concordance_index_ipcw(follow_up.train_surv, follow_up.surv, scores, tau=tau)[0])


def antolini_c(survival: npt.ArrayLike, grid: TimeGrid, follow_up: FollowUp) -> float:
    """Antolini's time-dependent C: at the day of each event, was the subject's survival below that of who outlives it?

    Where curves of two subjects cross, no single risk ranks them at all times; this compares S(t_i) of both at the
    day of the earlier event (Antolini, Boracchi & Biganzoli 2005, Statistics in Medicine 24, eq. 5). Equal values
    count one half, as in pycox's adjusted form; the tie rules for days are those of Harrell's C. Pairs are not
    weighted for the censoring. No library in use here has it: O(events x B), own code.

    Parameters
    ----------
    survival : (B, K + 1) at the edges of the grid
    grid : whose horizon ends the comparison

    Raises
    ------
    NotMeasurable
        If no pair is comparable up to the horizon.

    Examples
    --------
    The curves of two subjects cross. At day 5, when the first has the event, its survival is the lower one:

    >>> follow_up = FollowUp.of([5, 20], [True, True], [5, 20], [True, True])
    >>> antolini_c([[1.0, 0.4, 0.4], [1.0, 0.9, 0.1]], TimeGrid((0, 10, 20)), follow_up)
    1.0
    """
    curves = np.asarray(survival, dtype=np.float64)
    event = follow_up.has_event_by(grid.horizon_days)
    require_comparable_pair(follow_up.days, event)
    order = np.lexsort((~event, follow_up.days))  # of one day, the events first
    curves, days, event = curves[order], follow_up.days[order], event[order]
    event_days, n_events = np.unique(days[event], return_counts=True)
    first = np.searchsorted(days, event_days, side="left")
    later = first + n_events
    block = max(1, BLOCK_VALUES // days.size)
    n_concordant = n_comparable = 0.0
    for start in range(0, event_days.size, block):
        part = slice(start, start + block)
        at_events = interpolate_survival(curves, grid, event_days[part]).T  # (event days, B)
        for row, (i, j) in enumerate(zip(first[part], later[part], strict=True)):
            outliving = np.sort(at_events[row, j:])
            own = at_events[row, i:j]
            above = outliving.size - np.searchsorted(outliving, own, side="right")
            ties = outliving.size - np.searchsorted(outliving, own, side="left") - above
            n_concordant += float(above.sum() + ties.sum() / 2)
        n_comparable += float((n_events[part] * (days.size - later[part])).sum())
    return n_concordant / n_comparable


def dynamic_auc(risk: npt.ArrayLike, follow_up: FollowUp, times: npt.ArrayLike) -> tuple[Floats, float]:
    """Cumulative/dynamic AUC at some days, and its mean. By scikit-survival.

    At day t, subjects with the event by t are told from those who outlive t (Uno et al. 2007, JASA 102); the censored
    are weighted for. The mean weights days by the fall of the Kaplan-Meier curve (Lambert & Chevret 2014).

    Parameters
    ----------
    risk : (B,), or (B, M) the risk by each of the days
    times : (M,) days, increasing

    Returns
    -------
    (M,) AUC, mean

    Raises
    ------
    NotMeasurable
        If at some day nobody had the event, or nobody outlives it.

    Examples
    --------
    At day 15 the subject with the event has the highest risk of all. At day 25, of the four pairs of an event and a
    survivor one is discordant:

    >>> days, event = [10, 20, 40, 50], [True, True, False, False]
    >>> follow_up = FollowUp.of(days, event, days, event)
    >>> auc, mean = dynamic_auc([0.9, 0.3, 0.5, 0.1], follow_up, [15, 25])
    >>> auc.round(3).tolist()
    [1.0, 0.75]
    """
    at = np.atleast_1d(np.asarray(times, dtype=np.float64))
    for day in (at[0], at[-1]):
        follow_up.require_both(float(day), least=1)
    auc, mean = cumulative_dynamic_auc(follow_up.train_surv, follow_up.surv, np.asarray(risk, dtype=np.float64), at)
    return np.asarray(auc, dtype=np.float64), float(mean)


def times_with_events(times: npt.ArrayLike, follow_up: FollowUp, *, least: int = 1) -> Floats:
    """Those of the evaluation times by which so many have had the event and which so many outlive.

    Raises
    ------
    NotMeasurable
        If fewer than two are left.

    Examples
    --------
    >>> days, event = [10, 20, 30, 40], [True, True, True, False]
    >>> times_with_events([5, 15, 25, 45], FollowUp.of(days, event, days, event)).tolist()
    [15.0, 25.0]
    """
    at = np.asarray(times, dtype=np.float64)
    event_days = np.sort(follow_up.days[follow_up.is_event])
    n_events = np.searchsorted(event_days, at, side="right")
    n_beyond = follow_up.days.size - np.searchsorted(np.sort(follow_up.days), at, side="right")
    kept: Floats = at[(n_events >= least) & (n_beyond >= least)]
    if kept.size < 2:
        raise NotMeasurable(
            f"{kept.size} of {at.size} evaluation times have {least} events before and {least} subjects after them; "
            "needed are 2 such times: use a larger split"
        )
    return kept


def roc_table(risk: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> pl.DataFrame:
    """ROC curve at the horizon, with 1 / G as weights for the censored. By scikit-learn.

    Subjects censored before the horizon have no known outcome there: they are left out, and those like them with a
    known outcome count more. The area under it is the cumulative/dynamic AUC at the horizon.

    Returns
    -------
    Table with columns threshold, false_positive_rate, true_positive_rate; from the highest threshold.

    Examples
    --------
    >>> days, event = [10, 20, 40, 50], [True, True, False, False]
    >>> roc_table([0.9, 0.3, 0.5, 0.1], FollowUp.of(days, event, days, event), horizon_days=30).rows()
    [(inf, 0.0, 0.0), (0.9, 0.0, 0.5), (0.5, 0.5, 0.5), (0.3, 0.5, 1.0), (0.1, 1.0, 1.0)]
    """
    is_case, weights, known = _known_at(follow_up, horizon_days)
    scores = np.asarray(risk, dtype=np.float64)[known]
    false, true, threshold = roc_curve(is_case, scores, sample_weight=weights)
    return pl.DataFrame({"threshold": threshold, "false_positive_rate": false, "true_positive_rate": true})


def precision_recall_table(risk: npt.ArrayLike, follow_up: FollowUp, *, horizon_days: float) -> pl.DataFrame:
    """Precision by recall at the horizon, weighted as in `roc_table`. By scikit-learn.

    Returns
    -------
    Table with columns threshold, recall, precision; from the lowest threshold, at which all are called.

    Examples
    --------
    >>> days, event = [10, 20, 40, 50], [True, True, False, False]
    >>> table = precision_recall_table([0.9, 0.3, 0.5, 0.1], FollowUp.of(days, event, days, event), horizon_days=30)
    >>> table.select(pl.col("threshold", "recall", "precision").round(3)).rows()
    [(0.1, 1.0, 0.5), (0.3, 1.0, 0.667), (0.5, 0.5, 0.5), (0.9, 0.5, 1.0), (inf, 0.0, 1.0)]
    """
    is_case, weights, known = _known_at(follow_up, horizon_days)
    scores = np.asarray(risk, dtype=np.float64)[known]
    precision, recall, threshold = precision_recall_curve(is_case, scores, sample_weight=weights)
    return pl.DataFrame({"threshold": np.append(threshold, np.inf), "recall": recall, "precision": precision})


def average_precision(table: pl.DataFrame) -> float:
    """Area under a `precision_recall_table`, by steps as scikit-learn's average_precision_score.

    Examples
    --------
    The first half of the events is found at a precision of 1, the second at 2 / 3: on average 5 / 6.

    >>> days, event = [10, 20, 40, 50], [True, True, False, False]
    >>> table = precision_recall_table([0.9, 0.3, 0.5, 0.1], FollowUp.of(days, event, days, event), horizon_days=30)
    >>> round(average_precision(table), 3)
    0.833
    """
    recall, precision = table["recall"].to_numpy(), table["precision"].to_numpy()
    return float(-np.sum(np.diff(recall) * precision[:-1]))


def thinned(table: pl.DataFrame, n_points: int = 400) -> pl.DataFrame:
    """At most so many rows, evenly spaced, first and last among them: curves for the eye.

    Examples
    --------
    >>> thinned(pl.DataFrame({"day": range(1001)}), n_points=3)["day"].to_list()
    [0, 500, 1000]
    """
    if table.height <= n_points:
        return table
    return table[np.unique(np.linspace(0, table.height - 1, n_points).astype(int))]


def _known_at(follow_up: FollowUp, horizon_days: float) -> tuple[Bools, Floats, Bools]:
    """Of the subjects whose outcome at the horizon is known: is it the event, and their weight; and who they are."""
    follow_up.require_both(horizon_days, least=1)
    weights = follow_up.weights_at(horizon_days)
    known: Bools = weights > 0
    return follow_up.has_event_by(horizon_days)[known], weights[known], known
