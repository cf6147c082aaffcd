"""What every survival run reports of itself, whatever model made the predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack import plots
from ehrtrack.data.batch import Outcomes
from ehrtrack.data.cohort import Cohort, summarise_cohort
from ehrtrack.data.labels import ANY_CAUSE, CAUSE
from ehrtrack.evaluation.measures import EvaluationConfig, Report, Split, evaluate
from ehrtrack.evaluation.predictions import with_predictions
from ehrtrack.objectives.base import Predictions
from ehrtrack.objectives.survival import baseline_survival, survival_ibs
from ehrtrack.privacy import hide_in_attrition, hide_in_groups, hide_in_summary
from ehrtrack.recipes._groups import subject_groups
from ehrtrack.recipes._oracle import Oracle, score_oracle
from ehrtrack.recipes._prepare import CohortRecords
from ehrtrack.runlog import RunLogger
from ehrtrack.survival.bootstrap import Interval, c_index_interval
from ehrtrack.survival.calibration import calibration_table
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.likelihood import likelihood_gain
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.names import HORIZON


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split; None is a measure without a value on these subjects.

    Attributes
    ----------
    c_index : at the horizon
    c_index_interval : the same with its bootstrap interval over subjects, which needs more events
    ibs : integrated Brier score
    ibs_kaplan_meier : that of the training subjects' survival curve, the same for everybody
    likelihood_gain : mean log-likelihood over that curve's, in nats a subject
    left_out : measure -> why it has no value; of the test subjects every measure there is
    calibration_slope, ici : at the horizon, of the test subjects
    oracle : what can be attained, of the test subjects of a simulated cohort
    """

    c_index: float | None
    c_index_interval: Interval | None
    ibs: float | None
    ibs_kaplan_meier: float | None
    likelihood_gain: Interval
    left_out: Mapping[str, str] = field(default_factory=dict)
    calibration_slope: Interval | None = None
    ici: float | None = None
    oracle: Oracle | None = None

    def to_metrics(self, split: str) -> dict[str, float]:
        """Metrics named ``split/...``, without those that have no value."""
        interval = self.c_index_interval
        values = {
            "c_index": self.c_index,
            **({} if interval is None else interval.to_metrics("c_index")),
            "ibs": self.ibs,
            "ibs_kaplan_meier": self.ibs_kaplan_meier,
            "ibs_skill": self.ibs_skill,
            "log_likelihood_gain": self.likelihood_gain.estimate,
        }
        found = {f"{split}/{name}": value for name, value in values.items() if value is not None}
        return found if self.oracle is None else found | self.oracle.to_metrics()

    @property
    def ibs_skill(self) -> float | None:
        """Share by which the integrated Brier score is below that of the training subjects' curve."""
        if self.ibs is None or not self.ibs_kaplan_meier:
            return None
        return 1 - self.ibs / self.ibs_kaplan_meier

    @property
    def c_index_text(self) -> str:
        """The C-index with its interval, or why it has none."""
        if self.c_index is None:
            return f"none ({self.left_out['c_index']})"
        if self.c_index_interval is None:
            return f"{self.c_index:.3f} (no interval: {self.left_out['c_index_interval']})"
        return str(self.c_index_interval)

    @property
    def ibs_text(self) -> str:
        """The integrated Brier score beside Kaplan-Meier's, or why it has none."""
        if self.ibs is None or self.ibs_kaplan_meier is None:
            return f"none ({self.left_out['ibs']})"
        return f"{self.ibs:.4f} (Kaplan-Meier {self.ibs_kaplan_meier:.4f})"


def attained(evaluation: Evaluation) -> dict[str, str]:
    """What a run's description says of the oracle; nothing where there is none."""
    oracle = evaluation.oracle
    if oracle is None:
        return {}
    share = oracle.attained
    shares = f"{share.estimate:.0%} [{share.lower:.0%}, {share.upper:.0%}]"
    return {"of the attainable (95 % interval)": f"{shares}; C-index of the oracle {oracle.c_index}"}


def not_measured(evaluation: Evaluation) -> dict[str, str]:
    """What a run's description says of measures without a value; nothing where there are none."""
    if not evaluation.left_out:
        return {}
    return {"without a value (reasons in evaluation/left_out.csv)": ", ".join(evaluation.left_out)}


def horizon(cohort: Cohort) -> dict[str, str]:
    """What a run's description says of the horizon."""
    cut = ", the longest that enough training subjects are followed to; some are followed for longer"
    return {"horizon": f"{cohort.horizon_days:g} days{cut if cohort.is_horizon_cut else ''}"}


def log_cohort(logger: RunLogger, records: CohortRecords) -> None:
    """Log who is in the study: attrition, events and follow-up by split, the horizon, and the vocabulary's coverage."""
    logger.set_tags({HORIZON: f"{records.cohort.horizon_days:g}"})
    summary = hide_in_summary(summarise_cohort(records.cohort))
    attrition = hide_in_attrition(records.cohort.attrition)
    logger.log_table(attrition, "cohort/attrition.csv")
    logger.log_table(summary, "cohort/summary.csv")
    logger.log_table(records.coverage, "cohort/vocabulary_coverage.csv")
    logger.log_figure(plots.attrition_flow(attrition, summary), "plots/attrition.png")


def log_predictions(logger: RunLogger, records: CohortRecords, *, validation: Predictions, test: Predictions) -> None:
    """Log what the model says of each validation and test subject: beside the model, before anything is measured."""
    for split, predictions in (("validation", validation), ("test", test)):
        logger.log_table(_prediction_table(records, predictions), f"predictions/{split}.parquet")


def log_evaluation(
    logger: RunLogger,
    records: CohortRecords,
    grid: TimeGrid,
    *,
    validation: Predictions,
    test: Predictions,
    seed: int,
    truth: Path | None = None,
    config: EvaluationConfig | None = None,
) -> dict[str, Evaluation]:
    """Score validation and test subjects, and log metrics, tables and plots.

    Where `truth` has the true risks of a simulated cohort, the oracle is scored on the same test subjects.

    ``kept/...`` are the validation scores of the weights that were kept, by which runs are compared. A measure that
    these subjects are too few for is left out; ``evaluation/left_out.csv`` names it with the reason.
    """
    training = records.outcomes[records.rows["train"]]
    grid = grid.timed_by(training.follow_up_days, training.is_event)
    evaluations = {}
    for split, predictions in (("kept", validation), ("test", test)):
        of_split = records.outcomes[predictions.rows]
        evaluations[split] = evaluate_survival(predictions.survival, grid, training, of_split, seed=seed)
    outcomes, beside = records.outcomes[test.rows], Report()
    if truth is not None:
        path = truth
        oracle = beside.measure(
            "oracle", lambda: score_oracle(path, records, test.rows, test.risk, outcomes, seed=seed)
        )
        evaluations["test"] = replace(evaluations["test"], oracle=oracle)
    logger.log_metrics({k: v for split, e in evaluations.items() for k, v in e.to_metrics(split).items()}, step=0)
    calibration = beside.measure(
        "calibration by groups",
        lambda: calibration_table(
            test.risk, outcomes.follow_up_days, outcomes.is_event, horizon_days=grid.horizon_days
        ),
    )
    if calibration is not None:
        logger.log_table(calibration, "calibration/test.csv")
        logger.log_figure(plots.calibration_plot(calibration, horizon_days=grid.horizon_days), "plots/calibration.png")
    logger.log_figure(
        plots.kaplan_meier_by_risk(test.risk, outcomes.follow_up_days, outcomes.is_event),
        "plots/kaplan_meier_by_risk.png",
    )
    report = evaluate(
        _split(test, grid, training, outcomes),
        _split(validation, grid, training, records.outcomes[validation.rows]),
        subject_groups(records, test.rows),
        config or EvaluationConfig(),
        seed=seed,
    )
    of_test = {**evaluations["test"].left_out, **report.left_out, **beside.left_out}
    for split, evaluation in evaluations.items():
        report.left_out |= {f"{split}/{name}": reason for name, reason in evaluation.left_out.items()}
    report.left_out |= beside.left_out
    _log_report(logger, report, horizon_days=grid.horizon_days)
    slope = [report.metrics.get(f"calibration_slope{bound}") for bound in ("", "_lower", "_upper")]
    evaluations["test"] = replace(
        evaluations["test"],
        calibration_slope=None if None in slope else Interval(*[value for value in slope if value is not None]),
        ici=report.metrics.get("ici"),
        left_out=of_test,
    )
    return evaluations


def _split(predictions: Predictions, grid: TimeGrid, training: Outcomes, outcomes: Outcomes) -> Split:
    follow_up = FollowUp.of(training.follow_up_days, training.is_event, outcomes.follow_up_days, outcomes.is_event)
    return Split(predictions.survival, grid, follow_up)


def _log_report(logger: RunLogger, report: Report, *, horizon_days: float) -> None:
    logger.log_metrics({f"test/{name}": value for name, value in report.metrics.items()}, step=0)
    tables = report.tables | {"subgroups": hide_in_groups(report.tables["subgroups"])}
    for name, table in tables.items():
        logger.log_table(table, f"evaluation/{name}.csv")
    logger.log_table(report.left_out_table(), "evaluation/left_out.csv")
    if report.left_out:
        print(f"left out of the evaluation, with reasons in evaluation/left_out.csv: {', '.join(report.left_out)}")
    logger.log_figure(
        plots.discrimination_plot(tables, report.metrics, horizon_days=horizon_days), "plots/discrimination.png"
    )
    logger.log_figure(plots.calibration_curves(tables, report.metrics), "plots/calibration_curves.png")
    logger.log_figure(plots.subgroup_forest(tables["subgroups"], tables["subgroup_gaps"]), "plots/subgroups.png")
    if "decision_curve" in tables:
        figure = plots.decision_curve_plot(tables["decision_curve"], horizon_days=horizon_days)
        logger.log_figure(figure, "plots/decision_curve.png")


def evaluate_survival(
    survival: npt.NDArray[np.float64], grid: TimeGrid, training: Outcomes, outcomes: Outcomes, *, seed: int
) -> Evaluation:
    """Scores of survival curves (N, K + 1) on the grid, beside those of the population's curve, which is its clock."""
    grid = grid.timed_by(training.follow_up_days, training.is_event)
    population = baseline_survival(training, grid)
    trivial = np.tile(population, (len(survival), 1))
    risk, days, event = 1 - survival[:, -1], outcomes.follow_up_days, outcomes.is_event
    report = Report()
    return Evaluation(
        report.measure("c_index", lambda: c_index(risk, days, event)),
        report.measure("c_index_interval", lambda: c_index_interval(risk, days, event, seed=seed)),
        report.measure("ibs", lambda: survival_ibs(survival, grid, training, outcomes)),
        report.measure("ibs_kaplan_meier", lambda: survival_ibs(trivial, grid, training, outcomes)),
        likelihood_gain(survival, population, grid, days, event),
        report.left_out,
    )


def _prediction_table(records: CohortRecords, predictions: Predictions) -> pl.DataFrame:
    """Subjects with outcome and prediction; of a cohort whose labels tell causes apart, which cause each risk is of.

    observed_cause is the label's cause, 0 for the censored.
    """
    subjects = records.cohort.subjects[predictions.rows].rename({"index_date": "prediction_time"})
    columns = ["subject_id", "prediction_time", "follow_up_days", "is_event"]
    if CAUSE not in subjects.columns:
        return with_predictions(subjects.select(columns), predictions)
    table = with_predictions(subjects.select(*columns, observed_cause=CAUSE), predictions)
    return table if CAUSE in table.columns else table.with_columns(pl.lit(ANY_CAUSE).alias(CAUSE))
