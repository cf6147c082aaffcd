"""All measures of one split together: numbers, tables, and what has no value with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
import polars as pl
from pydantic import Field

from ehrtrack.errors import NotMeasurable
from ehrtrack.section import Section
from ehrtrack.survival.bootstrap import FEWER_RESAMPLES, Interval, auc_interval, slope_interval, uno_c_interval
from ehrtrack.survival.brier import brier_at
from ehrtrack.survival.calibration import calibration_table
from ehrtrack.survival.calibration_curve import (
    calibration_curve,
    calibration_slope,
    d_calibration,
    observed_to_expected,
    risk_at,
)
from ehrtrack.survival.censoring import FollowUp, risk_without_interval
from ehrtrack.survival.conformal import covered_share, fit_lower_bounds
from ehrtrack.survival.curves import interpolate_survival
from ehrtrack.survival.decision import decision_curve
from ehrtrack.survival.discrimination import (
    antolini_c,
    average_precision,
    dynamic_auc,
    precision_recall_table,
    roc_table,
    times_with_events,
)
from ehrtrack.survival.metrics import FloatArray, evaluation_times, integrated_brier_score
from ehrtrack.survival.recalibration import fit_recalibration
from ehrtrack.survival.subgroups import score_subgroups
from ehrtrack.survival.time_grid import TimeGrid

Found = Mapping[str, float | Interval | pl.DataFrame]
Value = TypeVar("Value")
MIN_EVENTS_BY_DAY = 5
"""Days with fewer events up to them, or fewer subjects past them, have no place in the AUC by day."""
CALIBRATION_SHARES = (0.25, 0.5, 1.0)
"""Days at which calibration is looked at, as shares of the horizon."""


class EvaluationConfig(Section):
    """What is reported of a fitted model.

    Attributes
    ----------
    n_resamples : of the bootstrap over subjects; at most 200 within groups and of the calibration slope
    recalibration : how a second set of curves is made on validation subjects, reported apart from the raw ones
    conformal_coverage : share of subjects for whom lower bounds on survival time are to hold; 0 makes none
    """

    n_resamples: int = Field(500, ge=20)
    recalibration: Literal["none", "platt", "isotonic"] = "platt"
    conformal_coverage: float = Field(0.9, ge=0, lt=1)


@dataclass(frozen=True)
class Split:
    """Survival curves (B, K + 1) at the edges of the grid, and what came."""

    survival: FloatArray
    grid: TimeGrid
    follow_up: FollowUp

    @property
    def horizon_days(self) -> float:
        return self.grid.horizon_days

    @property
    def risk(self) -> FloatArray:
        """(B,) probability of the event up to the horizon."""
        risk: FloatArray = 1 - self.survival[:, -1]
        return risk

    def evaluation_times(self) -> FloatArray:
        """Within the 10th to 90th percentile of training follow-up."""
        follow_up = self.follow_up
        return evaluation_times(follow_up.train_days, follow_up.train_is_event, follow_up.days)


@dataclass
class Report:
    """What could be measured, and what could not.

    Attributes
    ----------
    metrics : by name, without the split
    tables : by name
    left_out : measure -> why it has no value
    """

    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def measure(self, name: str, compute: Callable[[], Value]) -> Value | None:
        """What `compute` gives; None where it has no value on these subjects, which is left out with its reason."""
        try:
            return compute()
        except NotMeasurable as reason:
            self.left_out[name] = str(reason)
            return None

    def include(self, measure: str, compute: Callable[[], Found]) -> None:
        """Add what `compute` gives: numbers and intervals to the metrics, tables to the tables."""
        for name, value in (self.measure(measure, compute) or {}).items():
            if isinstance(value, pl.DataFrame):
                self.tables[name] = value
            elif isinstance(value, Interval):
                self.metrics |= value.to_metrics(name)
            else:
                self.metrics[name] = value

    def left_out_table(self) -> pl.DataFrame:
        """Columns measure, reason."""
        rows = {"measure": list(self.left_out), "reason": list(self.left_out.values())}
        return pl.DataFrame(rows, schema={"measure": pl.String, "reason": pl.String})


def evaluate(
    test: Split,
    validation: Split,
    groups: Mapping[str, pl.Series],
    config: EvaluationConfig,
    *,
    seed: int,
) -> Report:
    """Discrimination, error, calibration and net benefit of the test subjects, overall and by group.

    Parameters
    ----------
    validation : on which recalibration and conformal bounds are fitted
    groups : attribute -> (B,) the group of each test subject
    """
    report = Report()
    _discrimination(report, test, config, seed)
    _calibration(report, test, seed)
    _net_benefit(report, test)
    _subgroups(report, test, groups, config, seed)
    if config.recalibration != "none":
        _recalibrated(report, test, validation, config.recalibration)
    if config.conformal_coverage:
        report.include("conformal", lambda: _lower_bounds(test, validation, config.conformal_coverage))
    return report


def _discrimination(report: Report, test: Split, config: EvaluationConfig, seed: int) -> None:
    risk, follow_up, horizon, n_resamples = test.risk, test.follow_up, test.horizon_days, config.n_resamples

    def of_uno() -> Found:
        return {"uno_c": uno_c_interval(risk, follow_up, horizon_days=horizon, n_resamples=n_resamples, seed=seed)}

    def auc_at_horizon() -> Found:
        return {"auc_horizon": auc_interval(risk, follow_up, horizon_days=horizon, n_resamples=n_resamples, seed=seed)}

    def auc_by_day() -> Found:
        times = times_with_events(test.evaluation_times(), follow_up, least=MIN_EVENTS_BY_DAY)
        auc, mean = dynamic_auc(1 - interpolate_survival(test.survival, test.grid, times), follow_up, times)
        return {"auc_mean": mean, "auc": pl.DataFrame({"day": times, "auc": auc})}

    def precision_recall() -> Found:
        table = precision_recall_table(risk, follow_up, horizon_days=horizon)
        return {"average_precision": average_precision(table), "precision_recall": _thinned(table)}

    report.include("uno_c", of_uno)
    report.include("antolini_c", lambda: {"antolini_c": antolini_c(test.survival, test.grid, follow_up)})
    report.include("auc_horizon", auc_at_horizon)
    report.include("auc_mean", auc_by_day)
    report.include("roc", lambda: {"roc": _thinned(roc_table(risk, follow_up, horizon_days=horizon))})
    report.include("average_precision", precision_recall)


def _calibration(report: Report, test: Split, seed: int) -> None:
    risk, follow_up, horizon = test.risk, test.follow_up, test.horizon_days

    def slope() -> Found:
        return {"calibration_slope": slope_interval(risk, follow_up, horizon_days=horizon, seed=seed)}

    def of_curves() -> Found:
        p_value, shares = d_calibration(test.survival, test.grid, follow_up)
        edges = np.linspace(0, 1, shares.size + 1)
        bins = {"survival_from": edges[:-1], "survival_to": edges[1:], "share": shares}
        return {"d_calibration_p": p_value, "d_calibration": pl.DataFrame(bins)}

    report.include("brier", lambda: brier_with_skill(test))
    report.include("calibration_slope", slope)
    report.include("observed_to_expected", lambda: _observed_to_expected(test))
    report.include("d_calibration_p", of_curves)
    at_days = [_calibration_at(test, share * horizon) for share in CALIBRATION_SHARES]
    report.metrics |= at_days[-1].metrics  # at the horizon
    for name in ("calibration", "calibration_curve"):
        tables = [at_day.tables[name] for at_day in at_days if name in at_day.tables]
        report.tables |= {name: pl.concat(tables)} if tables else {}
    for at_day in at_days:
        report.left_out |= at_day.left_out


def _calibration_at(test: Split, day: float) -> Report:
    """Groups of risk and the smooth curve at one day."""
    risk, follow_up = risk_at(test.survival, test.grid, day), test.follow_up

    def groups() -> Found:
        follow_up.require_both(day)
        table = calibration_table(risk, follow_up.days, follow_up.is_event, horizon_days=day)
        return {"calibration": table.select(pl.lit(day).alias("horizon_days"), "*")}

    def smooth() -> Found:
        curve = calibration_curve(risk, follow_up, horizon_days=day)
        measures: Found = {"ici": curve.ici, "e50": curve.quantile(0.5), "e90": curve.quantile(0.9)}
        return {**measures, "calibration_curve": curve.table(day)}

    report = Report()
    report.include(f"calibration by groups at {day:g} days", groups)
    report.include(f"ici at {day:g} days", smooth)
    return report


def brier_with_skill(split: Split) -> Found:
    """Brier score at the horizon, and 1 - it over that of the training subjects' risk for everybody."""
    follow_up, horizon = split.follow_up, split.horizon_days
    population = risk_without_interval(follow_up.train_days, follow_up.train_is_event, horizon)
    score = brier_at(split.risk, follow_up, horizon_days=horizon)
    return {"brier": score, "brier_skill": 1 - score / brier_at(population, follow_up, horizon_days=horizon)}


def _observed_to_expected(split: Split) -> Found:
    ratio = observed_to_expected(split.risk, split.follow_up, horizon_days=split.horizon_days)
    return {"observed_to_expected": ratio}


def _net_benefit(report: Report, test: Split) -> None:
    report.include(
        "decision_curve",
        lambda: {"decision_curve": decision_curve(test.risk, test.follow_up, horizon_days=test.horizon_days)},
    )


def _subgroups(
    report: Report, test: Split, groups: Mapping[str, pl.Series], config: EvaluationConfig, seed: int
) -> None:
    scored = score_subgroups(
        test.risk,
        test.follow_up,
        groups,
        horizon_days=test.horizon_days,
        n_resamples=min(config.n_resamples, FEWER_RESAMPLES),
        seed=seed,
    )
    report.tables |= {"subgroups": scored.table, "subgroup_gaps": scored.gaps}
    for row in scored.gaps.iter_rows(named=True):
        name = f"gap_{row['attribute']}"
        report.metrics |= {name: row["gap"], f"{name}_lower": row["lower"], f"{name}_upper": row["upper"]}
    for row in scored.table.filter(pl.col("left_out").is_not_null()).iter_rows(named=True):
        report.left_out[f"subgroup {row['attribute']}: {row['group']}"] = row["left_out"]


def _recalibrated(report: Report, test: Split, validation: Split, method: Literal["platt", "isotonic"]) -> None:
    """The measures that recalibration is to better, under names of their own: ``recalibrated_...``."""
    days, event = validation.follow_up.recorded_days, validation.follow_up.is_event
    fitted = report.measure(
        f"recalibrated ({method})",
        lambda: fit_recalibration(method, validation.survival, validation.grid, days, event),
    )
    if fitted is None:
        return
    after = replace(test, survival=fitted.apply(test.survival))
    horizon, again = test.horizon_days, Report()
    again.include("brier", lambda: brier_with_skill(after))
    again.include("ibs", lambda: {"ibs": _ibs(after)})
    again.include(
        "calibration_slope",
        lambda: {"calibration_slope": calibration_slope(after.risk, after.follow_up, horizon_days=horizon)},
    )
    again.include("ici", lambda: {"ici": calibration_curve(after.risk, after.follow_up, horizon_days=horizon).ici})
    again.include("observed_to_expected", lambda: _observed_to_expected(after))
    again.include(
        "d_calibration_p", lambda: {"d_calibration_p": d_calibration(after.survival, after.grid, after.follow_up)[0]}
    )
    report.metrics |= {f"recalibrated_{name}": value for name, value in again.metrics.items()}
    report.left_out |= {f"recalibrated_{name}": reason for name, reason in again.left_out.items()}


def _ibs(split: Split) -> float:
    follow_up = split.follow_up
    train_days = np.where(follow_up.train_is_event, follow_up.train_days, np.nextafter(follow_up.train_days, 0))
    times = evaluation_times(train_days, follow_up.train_is_event, follow_up.recorded_days)
    at_times = interpolate_survival(split.survival, split.grid, times)
    return integrated_brier_score(
        train_days, follow_up.train_is_event, follow_up.recorded_days, follow_up.is_event, at_times, times
    )


def _lower_bounds(test: Split, validation: Split, coverage: float) -> Found:
    bounds = fit_lower_bounds(validation.survival, validation.grid, validation.follow_up, coverage=coverage)
    days = bounds.days(test.survival, test.grid)
    return {
        "conformal_coverage": covered_share(days, test.follow_up, horizon_days=test.horizon_days),
        "conformal_median_bound_days": float(np.median(days)),
    }


def _thinned(table: pl.DataFrame, n_points: int = 400) -> pl.DataFrame:
    """At most so many rows, evenly spaced, first and last among them: curves for the eye."""
    if table.height <= n_points:
        return table
    return table[np.unique(np.linspace(0, table.height - 1, n_points).astype(int))]
