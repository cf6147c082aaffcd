"""Every measure of predicted survival, as functions of a `Split` and its `Context`.

Those that only labels of classes have stand in `evaluation.class_measures`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from ehrtrack.evaluation.causes import score_causes
from ehrtrack.evaluation.metric_table import OUTCOME_TASKS
from ehrtrack.evaluation.registry import measure
from ehrtrack.evaluation.report import Found, Report, Values
from ehrtrack.evaluation.split import Context, Split
from ehrtrack.objectives.survival import survival_ibs
from ehrtrack.survival.attainable import attainable_interval
from ehrtrack.survival.bootstrap import FEWER_RESAMPLES, auc_interval, c_index_interval, slope_interval, uno_c_interval
from ehrtrack.survival.brier import brier_at
from ehrtrack.survival.calibration import calibration_table
from ehrtrack.survival.calibration_curve import (
    calibration_curve,
    calibration_slope,
    d_calibration,
    observed_to_expected,
    risk_at,
)
from ehrtrack.survival.censoring import risk_without_interval
from ehrtrack.survival.conformal import covered_share, fit_lower_bounds
from ehrtrack.survival.decision import decision_curve
from ehrtrack.survival.discrimination import (
    antolini_c,
    average_precision,
    dynamic_auc,
    precision_recall_table,
    roc_table,
    thinned,
    times_with_events,
)
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.likelihood import likelihood_gain
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.recalibration import fit_recalibration
from ehrtrack.survival.resampling import Interval
from ehrtrack.survival.subgroups import score_subgroups

MIN_EVENTS_BY_DAY = 5
"""Days with fewer events up to them, or fewer subjects past them, have no place in the AUC by day."""
CALIBRATION_SHARES = (0.25, 0.5, 1.0)
"""Days at which calibration is looked at, as shares of the horizon."""


@measure("c_index", is_of_validation=True)
def _c_index(split: Split, context: Context) -> Found:
    return {"c_index": c_index(*split.observed)}


@measure("c_index_interval", is_of_validation=True)
def _c_index_interval(split: Split, context: Context) -> Found:
    return {"c_index": c_index_interval(*split.observed, **context.resampling, subject=split.outcomes.subject)}


@measure("ibs", is_of_validation=True)
def _ibs(split: Split, context: Context) -> Found:
    return {"ibs": split.ibs}


@measure("ibs_kaplan_meier", is_of_validation=True)
def _ibs_skill(split: Split, context: Context) -> Found:
    """The integrated Brier score of the training subjects' curve, and the share by which the model's is below it."""
    trivial = np.tile(split.population, (len(split.survival), 1))
    of_trivial = survival_ibs(trivial, split.grid, split.training, split.outcomes)
    skill: Values = {"ibs_skill": 1 - split.ibs / of_trivial} if of_trivial else {}
    return {"ibs_kaplan_meier": of_trivial, **skill}


@measure("log_likelihood_gain", is_of_validation=True, tasks=OUTCOME_TASKS)
def _log_likelihood_gain(split: Split, context: Context) -> Found:
    """Mean log-likelihood over that of the training subjects' curve, or prevalence, in nats a row."""
    days, event = split.outcomes.follow_up_days, split.outcomes.is_event
    gain = likelihood_gain(split.survival, split.population, split.grid, days, event, subject=split.outcomes.subject)
    return {"log_likelihood_gain": gain}


@measure("uno_c")
def _uno_c(split: Split, context: Context) -> Found:
    horizon = split.horizon_days
    return {"uno_c": uno_c_interval(split.risk, split.follow_up, horizon_days=horizon, **context.resampling)}


@measure("antolini_c")
def _antolini_c(split: Split, context: Context) -> Found:
    return {"antolini_c": antolini_c(split.survival, split.grid, split.follow_up)}


@measure("auc_horizon")
def _auc_horizon(split: Split, context: Context) -> Found:
    horizon = split.horizon_days
    return {"auc_horizon": auc_interval(split.risk, split.follow_up, horizon_days=horizon, **context.resampling)}


@measure("auc_mean")
def _auc_by_day(split: Split, context: Context) -> Found:
    times = times_with_events(split.evaluation_times(), split.follow_up, least=MIN_EVENTS_BY_DAY)
    auc, mean = dynamic_auc(1 - interpolate_survival(split.survival, split.grid, times), split.follow_up, times)
    return {"auc_mean": mean, "auc": pl.DataFrame({"day": times, "auc": auc})}


@measure("roc", tasks=OUTCOME_TASKS)
def _roc(split: Split, context: Context) -> Found:
    return {"roc": thinned(roc_table(split.risk, split.follow_up, horizon_days=split.horizon_days))}


@measure("average_precision")
def _precision_recall(split: Split, context: Context) -> Found:
    table = precision_recall_table(split.risk, split.follow_up, horizon_days=split.horizon_days)
    return {"average_precision": average_precision(table), "precision_recall": thinned(table)}


@measure("brier")
def brier_with_skill(split: Split, context: Context) -> Found:
    """Brier score at the horizon, and 1 - it over that of the training subjects' risk for everybody.

    Examples
    --------
    Half of the subjects have the event by day 30, so that the population's risk for everybody scores .25. The model's
    score is (4 x .2² + 4 x .3²) / 8 = .065:

    >>> from ehrtrack.data.outcomes import Outcomes
    >>> from ehrtrack.evaluation.split import EvaluationConfig
    >>> from ehrtrack.survival.time_grid import TimeGrid
    >>> event = np.array([True, False] * 4)
    >>> outcomes = Outcomes(np.where(event, 10.0, 40.0), event)
    >>> survival = np.where(event, 0.2, 0.7)[:, None] ** [0, 1]
    >>> split = Split(survival, TimeGrid((0, 30)), training=outcomes, outcomes=outcomes)
    >>> {name: round(value, 3) for name, value in brier_with_skill(split, Context(EvaluationConfig(), seed=0)).items()}
    {'brier': 0.065, 'brier_skill': 0.74}
    """
    follow_up, horizon = split.follow_up, split.horizon_days
    population = risk_without_interval(follow_up.train_days, follow_up.train_is_event, horizon)
    score = brier_at(split.risk, follow_up, horizon_days=horizon)
    return {"brier": score, "brier_skill": 1 - score / brier_at(population, follow_up, horizon_days=horizon)}


@measure("calibration_slope")
def _calibration_slope(split: Split, context: Context) -> Found:
    horizon = split.horizon_days
    return {"calibration_slope": slope_interval(split.risk, split.follow_up, horizon_days=horizon, seed=context.seed)}


@measure("observed_to_expected")
def _observed_to_expected(split: Split, context: Context) -> Found:
    ratio = observed_to_expected(split.risk, split.follow_up, horizon_days=split.horizon_days)
    return {"observed_to_expected": ratio}


@measure("d_calibration_p")
def _d_calibration(split: Split, context: Context) -> Found:
    p_value, shares = d_calibration(split.survival, split.grid, split.follow_up)
    edges = np.linspace(0, 1, shares.size + 1)
    bins = {"survival_from": edges[:-1], "survival_to": edges[1:], "share": shares}
    return {"d_calibration_p": p_value, "d_calibration": pl.DataFrame(bins)}


@measure("calibration")
def _calibration(split: Split, context: Context) -> Found:
    """Groups of risk and the smooth curve at several days; the numbers are those at the horizon, the last of them."""
    at_days = [_calibration_at(split, share * split.horizon_days) for share in CALIBRATION_SHARES]
    report = Report(metrics=at_days[-1].metrics)
    for name in ("calibration", "calibration_curve"):
        tables = [at_day.tables[name] for at_day in at_days if name in at_day.tables]
        report.tables |= {name: pl.concat(tables)} if tables else {}
    for at_day in at_days:
        report.left_out |= at_day.left_out
    return report


def _calibration_at(split: Split, day: float) -> Report:
    risk, follow_up = risk_at(split.survival, split.grid, day), split.follow_up

    def groups() -> Found:
        follow_up.require_both(day)
        table = calibration_table(risk, follow_up.days, follow_up.is_event, horizon_days=day, subject=follow_up.subject)
        return {"calibration": table.select(pl.lit(day).alias("horizon_days"), "*")}

    def smooth() -> Found:
        curve = calibration_curve(risk, follow_up, horizon_days=day)
        measures: Values = {"ici": curve.ici, "e50": curve.quantile(0.5), "e90": curve.quantile(0.9)}
        return {**measures, "calibration_curve": curve.table(day)}

    report = Report()
    report.include(f"calibration by groups at {day:g} days", groups)
    report.include(f"ici at {day:g} days", smooth)
    return report


@measure("decision_curve", tasks=OUTCOME_TASKS)
def _net_benefit(split: Split, context: Context) -> Found:
    return {"decision_curve": decision_curve(split.risk, split.follow_up, horizon_days=split.horizon_days)}


@measure("subgroups")
def measure_groups(split: Split, context: Context) -> Report:
    """The C-index by group with its interval, and the gap between the groups of each attribute.

    Examples
    --------
    Six subjects are too few to be scored, together and by group:

    >>> from ehrtrack.data.outcomes import Outcomes
    >>> from ehrtrack.evaluation.split import EvaluationConfig
    >>> from ehrtrack.survival.time_grid import TimeGrid
    >>> outcomes = Outcomes(np.array([10.0, 40.0] * 3), np.array([True, False] * 3))
    >>> split = Split(np.full((6, 2), 1.0), TimeGrid((0, 30)), training=outcomes, outcomes=outcomes)
    >>> sex = pl.Series(["F", "M"] * 3, dtype=pl.Enum(["F", "M"]))
    >>> sorted(measure_groups(split, Context(EvaluationConfig(), seed=0, groups={"sex": sex})).left_out)
    ['subgroup all: all', 'subgroup sex: F', 'subgroup sex: M']
    """
    scored = score_subgroups(
        split.risk,
        split.follow_up,
        context.groups,
        horizon_days=split.horizon_days,
        n_resamples=min(context.config.n_resamples, FEWER_RESAMPLES),
        seed=context.seed,
    )
    report = Report(tables={"subgroups": scored.table, "subgroup_gaps": scored.gaps})
    for row in scored.gaps.iter_rows(named=True):
        report.add({f"gap_{row['attribute']}": Interval(row["gap"], row["lower"], row["upper"])})
    for row in scored.table.filter(pl.col("left_out").is_not_null()).iter_rows(named=True):
        report.left_out[f"subgroup {row['attribute']}: {row['group']}"] = row["left_out"]
    return report


@measure("recalibrated")
def _recalibrated(split: Split, context: Context) -> Found:
    """The measures that recalibration is to better, under names of their own: ``recalibrated_...``."""
    method, validation = context.config.recalibration, context.validation
    if method == "none" or validation is None:
        return {}
    report = Report()
    days, event = validation.follow_up.recorded_days, validation.follow_up.is_event
    fitted = report.measure(
        f"recalibrated ({method})",
        lambda: fit_recalibration(method, validation.survival, validation.grid, days, event),
    )
    if fitted is None:
        return report
    after, again = replace(split, survival=fitted.apply(split.survival)), Report()
    risk, follow_up, horizon = after.risk, after.follow_up, after.horizon_days
    again.include("brier", lambda: brier_with_skill(after, context))
    again.include("ibs", lambda: {"ibs": after.ibs})
    again.include(
        "calibration_slope", lambda: {"calibration_slope": calibration_slope(risk, follow_up, horizon_days=horizon)}
    )
    again.include("ici", lambda: {"ici": calibration_curve(risk, follow_up, horizon_days=horizon).ici})
    again.include("observed_to_expected", lambda: _observed_to_expected(after, context))
    again.include(
        "d_calibration_p", lambda: {"d_calibration_p": d_calibration(after.survival, after.grid, follow_up)[0]}
    )
    return again.prefixed("recalibrated_")


@measure("conformal")
def _lower_bounds(split: Split, context: Context) -> Found:
    coverage, validation = context.config.conformal_coverage, context.validation
    if not coverage or validation is None:
        return {}
    bounds = fit_lower_bounds(validation.survival, validation.grid, validation.follow_up, coverage=coverage)
    days = bounds.days(split.survival, split.grid)
    return {
        "conformal_coverage": covered_share(days, split.follow_up, horizon_days=split.horizon_days),
        "conformal_median_bound_days": float(np.median(days)),
    }


@measure("oracle")
def _oracle(split: Split, context: Context) -> Found:
    """C-index of the true risk on the same subjects, and the share of it that the model has attained."""
    if context.true_risk is None:
        return {}
    risk, days, event = split.observed
    subject = split.outcomes.subject
    return {
        "oracle_c_index": c_index_interval(context.true_risk, days, event, **context.resampling, subject=subject),
        "attainable": attainable_interval(risk, context.true_risk, days, event, **context.resampling, subject=subject),
    }


@measure("causes")
def _causes(split: Split, context: Context) -> Found:
    if split.incidence is None or split.outcomes.cause is None:
        return {}
    return score_causes(split.incidence, split.outcomes, horizon_days=split.horizon_days, seed=context.seed)
