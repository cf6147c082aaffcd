"""Log and summarise what every run with an outcome reports, whatever model made the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure
from torch import Tensor, nn

from ehrtrack import plots
from ehrtrack.data.cohort import Cohort, n_people, summarise_cohort
from ehrtrack.evaluation.evaluate import evaluate, names_of_both
from ehrtrack.evaluation.groups import subject_groups
from ehrtrack.evaluation.label_curve import N_EVENTS
from ehrtrack.evaluation.metric_table import AUROC, C_INDEX, Metric, chosen_by, interval_text, with_bounds
from ehrtrack.evaluation.oracle import read_true_risk
from ehrtrack.evaluation.predictions import prediction_table
from ehrtrack.evaluation.repeats import N_POOL
from ehrtrack.evaluation.report import Report
from ehrtrack.evaluation.split import Context, EvaluationConfig, Split
from ehrtrack.models.behrt import EhrModel, encoder_weights
from ehrtrack.objectives.base import Predictions
from ehrtrack.pipeline.prepare import CohortRecords
from ehrtrack.privacy import hide_in_attrition, hide_in_groups, hide_in_summary, is_small
from ehrtrack.runlog import KEPT, TEST, TRAINING, VALIDATION, RunLogger, Task, named
from ehrtrack.strategies.base import Strategy
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.names import HORIZON, TASK, score_tag
from ehrtrack.training import sanity
from ehrtrack.training.loop import FitResult
from ehrtrack.training.sanity import Verdict

LEFT_OUT = "evaluation/left_out.csv"


def ibs_text(report: Report) -> str:
    """The integrated Brier score beside Kaplan-Meier's, or the reason why it has no value."""
    beside, skill = report.metrics.get("ibs_kaplan_meier"), report.metrics.get("ibs_skill")
    against = "" if skill is None else f", {skill:+.0%} against it"
    return report.text("ibs") + ("" if beside is None else f" (Kaplan-Meier {beside:.4f}{against})")


def scores(reports: Mapping[str, Report], task: Task) -> dict[str, str]:
    """The first lines of a run's description: discrimination and error on the test subjects."""
    test = reports[TEST]
    if task != "classes":
        of_what = " of any cause" if "causes" in test.tables else ""
        return {
            f"test C-index{of_what} (95 % interval)": against_chance(test, C_INDEX),
            "test integrated Brier score": ibs_text(test),
        }
    prevalence, skill = test.metrics.get("prevalence"), test.metrics.get("brier_skill")
    return {
        "test AUROC (95 % interval)": against_chance(test, AUROC),
        "test AUPRC (95 % interval)": test.text("auprc")
        + ("" if prevalence is None else f" (prevalence {prevalence:.3f})"),
        "test Brier score (95 % interval)": test.text("brier")
        + ("" if skill is None else f" ({skill:+.0%} against the prevalence)"),
    }


def against_chance(report: Report, metric: Metric) -> str:
    """A metric of discrimination with its interval, and the conclusion that the interval allows."""
    interval = report.intervals.get(metric.key)
    said = "**not shown to be better than chance**"
    if interval is None:
        said = "**not enough events to judge**"
    elif interval.lower > 0.5:
        said = "better than chance"
    return f"{report.text(metric.key)} ({said})"


def attained(report: Report) -> dict[str, str]:
    """The line about the oracle in a run's description; empty without an oracle."""
    if "oracle_c_index" not in report.metrics:
        return {}
    text = f"{report.text('attainable')}; C-index of the oracle {report.text('oracle_c_index')}"
    return {"of the attainable (95 % interval)": text}


def not_measured(report: Report) -> dict[str, str]:
    """The line about measures without a value in a run's description; empty if there are none."""
    return {f"without a value (reasons in {LEFT_OUT})": ", ".join(report.left_out)} if report.left_out else {}


def horizon(cohort: Cohort) -> dict[str, str]:
    """The line about the horizon in a run's description; empty if labels are classes."""
    if cohort.has_classes:
        return {}
    cut = ", the longest that enough training subjects are followed to; some are followed for longer"
    return {"horizon": f"{cohort.horizon_days:g} days{cut if cohort.is_horizon_cut else ''}"}


def log_cohort(logger: RunLogger, records: CohortRecords) -> None:
    """Log who is in the study: attrition, events and follow-up by split, the horizon, and the vocabulary's coverage."""
    if not records.cohort.has_classes:
        logger.set_tags({HORIZON: f"{records.cohort.horizon_days:g}"})
    summary = hide_in_summary(summarise_cohort(records.cohort))
    attrition = hide_in_attrition(records.cohort.attrition)
    of_split = {name: records.cohort.subjects[rows] for name, rows in records.rows.items()}
    sizes = {f"cohort/n_{name}": float(n_people(of_it)) for name, of_it in of_split.items()}
    pool = {} if records.cohort.n_pool is None else {N_POOL: float(records.cohort.n_pool)}
    logger.log_metrics(sizes | pool, step=0)
    logger.log_table(attrition, "cohort/attrition.csv")
    logger.log_table(summary, "cohort/summary.csv")
    logger.log_table(records.coverage, "cohort/vocabulary_coverage.csv")
    logger.log_figure(plots.attrition_flow(attrition, summary), "plots/attrition.png")
    n_events = int(records.outcomes[records.rows["train"]].is_event.sum())
    if not is_small(n_events):
        logger.log_metrics({N_EVENTS: float(n_events)}, step=0)


def log_predictions(logger: RunLogger, records: CohortRecords, *, validation: Predictions, test: Predictions) -> None:
    """Log the predictions for each validation and test subject, before anything is measured."""
    for split, predictions in (("validation", validation), ("test", test)):
        logger.log_table(prediction_table(records.cohort, predictions), f"predictions/{split}.parquet")


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
    task: Task = "survival",
    threshold: float | None = None,
) -> dict[str, Report]:
    """Score validation and test subjects, and log metrics, tables and plots.

    Where `truth` has the true risks of a simulated cohort, the oracle is scored on the same test subjects.

    ``kept/...`` are the validation scores of the weights that were kept, by which runs are compared. A measure that
    these subjects are too few for is left out; ``evaluation/left_out.csv`` names it with the reason.
    """
    training = records.outcomes[records.rows["train"]]
    grid = grid.timed_by(training.follow_up_days, training.is_event)
    kept, tested = (
        Split(of.survival, grid, training, records.outcomes[of.rows], of.incidence) for of in (validation, test)
    )
    of_kept = Context(config or EvaluationConfig(), seed)
    of_test = Context(
        *(of_kept.config, seed, kept),
        groups=subject_groups(records.store, records.vocabulary, test.rows),
        true_risk=None if truth is None else read_true_risk(truth, records.store.subject_ids[test.rows]),
        threshold=threshold,
    )
    reports = {KEPT: evaluate(kept, of_kept, task=task), TEST: evaluate(tested, of_test, task=task)}
    for split, report in reports.items():
        logger.log_metrics(named(split, report.metrics), step=0)
    choice = chosen_by({task})
    score = interval_text(reports[TEST].metrics, *with_bounds(choice.key), form=choice.form)
    logger.set_tags({TASK: task} | ({score_tag(choice.key): score} if score else {}))
    _log_left_out(logger, reports, task)
    tables = reports[TEST].tables | {"subgroups": hide_in_groups(reports[TEST].tables["subgroups"])}
    for name, table in tables.items():
        logger.log_table(table, f"evaluation/{name}.csv")
    draw = _class_figures if task == "classes" else _figures
    for name, figure in draw(tested, tables, reports[TEST].metrics).items():
        logger.log_figure(figure, f"plots/{name}.png")
    return reports


def _log_left_out(logger: RunLogger, reports: Mapping[str, Report], task: Task) -> None:
    """Log the measures that were left out; those of both splits are named with the split."""
    both = names_of_both(task)
    left_out = Report()
    for split, report in reports.items():
        left_out.left_out |= {
            f"{split}/{name}" if name in both else name: reason for name, reason in report.left_out.items()
        }
    logger.log_table(left_out.left_out_table(), LEFT_OUT)
    if left_out.left_out:
        print(f"left out of the evaluation, with reasons in {LEFT_OUT}: {', '.join(left_out.left_out)}", flush=True)


def _figures(test: Split, tables: plots.Tables, metrics: Mapping[str, float]) -> dict[str, Figure]:
    horizon_days = test.horizon_days
    figures = {
        "kaplan_meier_by_risk": plots.kaplan_meier_by_risk(*test.observed),
        "discrimination": plots.discrimination_plot(tables, metrics, horizon_days=horizon_days),
        "calibration_curves": plots.calibration_curves(tables, metrics),
        "subgroups": plots.subgroup_forest(tables["subgroups"], tables["subgroup_gaps"], C_INDEX),
    }
    if "calibration" in tables:
        at_horizon = tables["calibration"].filter(pl.col("horizon_days") == horizon_days)
        if at_horizon.height:
            figures["calibration"] = plots.calibration_plot(at_horizon, horizon_days=horizon_days)
    if "decision_curve" in tables:
        figures["decision_curve"] = plots.decision_curve_plot(tables["decision_curve"], horizon_days=horizon_days)
    return figures


def _class_figures(test: Split, tables: plots.Tables, metrics: Mapping[str, float]) -> dict[str, Figure]:
    """The figures for labels of classes, which have probabilities and no days."""
    figures = {
        "discrimination": plots.class_discrimination_plot(tables, metrics),
        "subgroups": plots.subgroup_forest(tables["subgroups"], tables["subgroup_gaps"], AUROC),
    }
    if "calibration" in tables:
        figures["calibration"] = plots.class_calibration_plot(tables, metrics)
    if "decision_curve" in tables:
        figures["decision_curve"] = plots.decision_curve_plot(tables["decision_curve"])
    return figures


CODES = "embeddings.code.weight"
Weights = dict[str, Tensor]


def encoder_matrices(model: EhrModel) -> Weights:
    """A copy of the encoder's matrices, by name; biases and norms begin at 0 and 1 and are left out."""
    return {name: w.detach().clone() for name, w in encoder_weights(model).items() if w.dim() >= 2}


def learning_matrices(model: nn.Module, strategy: Strategy | None = None) -> set[str]:
    """Names of the encoder's matrices that are to learn, whether themselves or through the strategy's adapter."""
    learning, prefix = set(), strategy.adapter_prefix if strategy else ""
    for name, parameter in model.named_parameters():
        path = name.split(".")
        if parameter.requires_grad and parameter.dim() >= 2 and "encoder" in path:
            inner = [p for p in path[path.index("encoder") + 1 :] if p not in ("modules_to_save", "default")]
            adapter = [number for number, part in enumerate(inner) if prefix and part.startswith(prefix)]
            learning.add(".".join([*inner[: adapter[0]], "weight"] if adapter else inner))
    return learning


def judge_encoder(start: Weights, end: EhrModel, learning: set[str], *, is_pretrained: bool) -> list[Verdict]:
    """Verdicts on whether the trained weights have moved, and whether the code embeddings carry meaning.

    Parameters
    ----------
    start : matrices before training
    end : the model after training, with adapters merged
    learning : names of the matrices that were trained
    """
    after = encoder_weights(end)
    changes = {name: float((after[name] - w).norm() / w.norm().clamp(min=1e-12)) for name, w in start.items()}
    of_codes = sanity.embeddings(changes[CODES], is_pretrained=is_pretrained)
    return [sanity.moved({name: changes[name] for name in sorted(learning)}), of_codes] if learning else [of_codes]


def judge_training(result: FitResult) -> Verdict:
    """The verdict on whether the kept weights are overfitted."""
    training, validation = ([epoch[f"{part}/loss"] for epoch in result.history] for part in (TRAINING, VALIDATION))
    return sanity.overfit(training, validation, result.kept_epoch)


def judge_risks(reports: dict[str, Report], task: Task = "survival") -> list[Verdict]:
    """Verdicts on whether risks are better than one for everybody (validation), and calibrated (test).

    Further verdicts say whether the test subjects suffice for every measure, and for any judgement at all.
    """
    test, choice = reports[TEST], chosen_by({task})
    needed = (choice.key, f"{choice.key}_interval")
    reasons = [test.left_out[measure] for measure in needed if measure in test.left_out]
    return [
        sanity.learned_risk(
            reports[KEPT].intervals["log_likelihood_gain"],
            than="the prevalence" if task == "classes" else "the Kaplan-Meier curve",
        ),
        sanity.calibrated(test.intervals.get("calibration_slope"), test.metrics.get("ici")),
        sanity.measured(test.left_out, score="an AUROC" if task == "classes" else "a C-index"),
        *(sanity.unjudged(reason) for reason in reasons[:1]),
    ]


def conclude(logger: RunLogger, summary: str, verdicts: Sequence[Verdict]) -> None:
    """Set the run's description with its verdicts, and the tags ``sanity.*``; print the verdicts that are not ok."""
    logger.set_tags(sanity.to_tags(verdicts))
    logger.set_description(summary + sanity.to_markdown(verdicts))
    for verdict in verdicts:
        if verdict.state != "ok":
            print(f"sanity  {verdict.state}  {verdict.check}: {verdict.reason}", flush=True)
