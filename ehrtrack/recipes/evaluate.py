"""External validation: any model scored on any labelled dataset, in a run of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ehrtrack.config import RunConfig, override
from ehrtrack.data.cohort import CLASS_DAYS
from ehrtrack.data.eligibility import REASON
from ehrtrack.data.events import MedsDataset, fingerprint_of, open_dataset
from ehrtrack.data.labels import CAUSE, NUMBER, of_any_cause, read_labels, with_numbers
from ehrtrack.data.outcomes import Outcomes, clip_follow_up
from ehrtrack.data.split_rules import with_splits
from ehrtrack.errors import DataError
from ehrtrack.evaluation.causes import causes_text
from ehrtrack.evaluation.external import evaluate_externally, paired_with
from ehrtrack.evaluation.metric_table import METRICS, interval_text, with_bounds
from ehrtrack.evaluation.predictions import with_predictions
from ehrtrack.evaluation.report import Report
from ehrtrack.evaluation.split import Context, EvaluationConfig, Split
from ehrtrack.objectives.base import Predictions
from ehrtrack.pipeline.labels import transformer_label
from ehrtrack.pipeline.predictor import Predictor, load_predictor
from ehrtrack.pipeline.prepare import outcomes_of
from ehrtrack.pipeline.report import LEFT_OUT, log_test_report, not_measured, scores
from ehrtrack.pipeline.run import RecipeResult, describe, open_run
from ehrtrack.pipeline.run_rows import EVALUATION
from ehrtrack.privacy import count_text, hide_small
from ehrtrack.runlog import TEST, Task, named
from ehrtrack.tracking.client.queries import fetch_model, get_run
from ehrtrack.tracking.names import COHORT, EVALUATED_ON, HORIZON, MODEL, MODEL_RUN

NO_FOLLOW_UP = "no follow-up after the prediction time"
WITHIN_GAP = "the outcome came, or follow-up ended, within cohort.gap_days"
LEARNT_FROM = "no test subject of the model's own split of this dataset"


@dataclass(frozen=True)
class Asked:
    """A model, as it was named and as it was fetched."""

    reference: str
    run_id: str
    label: str
    predictor: Predictor

    @property
    def task(self) -> Task:
        """What its predictions are judged for."""
        return "classes" if self.predictor.folder.has_classes else "survival"


def evaluate(
    model: str, data: Path, labels: Path, *, against: Sequence[str] = (), seed: int = 0, cache: Path | None = None
) -> RecipeResult:
    """Score a model on the labelled subjects of a dataset, and log all measures with intervals in a run of its own.

    The model's horizon and its rules of who may be scored apply; who is left out is counted by reason. Of the dataset
    that the model was trained on, its test subjects alone are scored. Censoring and the population's curve are those of
    the evaluated subjects. Runs over the same subjects compare: ``ehrtrack compare`` has a table of them.

    Parameters
    ----------
    model : run id, ``models:/NAME@champion`` or ``models:/NAME/VERSION``
    data : MEDS dataset
    labels : a file or a folder with subject_id, prediction_time and the outcome, as for ``cohort.labels``
    against : other models, with whom it is compared on the subjects that all of them score
    seed : of the bootstrap
    cache : where the run's journal is kept until it is sent; that of the model's configuration if None

    Raises
    ------
    DataError
        If the labels cannot be read or tell another kind of outcome, or nobody is left to score.
    """
    dataset = open_dataset(data)
    with tempfile.TemporaryDirectory() as folder:
        asked = [_asked(reference, Path(folder) / str(n)) for n, reference in enumerate((model, *against))]
        rows, reasons = _labelled(asked, dataset, labels)
        found = [one.predictor.score_dataset(dataset, rows.select(_KEYS), needs_groups=True) for one in asked]
    one, task = asked[0], asked[0].task
    is_scored = pl.Series([True] * rows.height)
    for of_model, scored in zip(asked, found, strict=True):
        own = of_any_cause(scored.table)
        reasons += _counted(own.filter(is_scored)[REASON].drop_nulls(), "" if of_model is one else of_model.reference)
        is_scored &= own["risk"].is_not_null()
    kept = rows.filter(is_scored)
    if kept.is_empty() or not kept["is_event"].any():
        told = "; ".join(f"{reason}: {n:,}" for reason, n in reasons)
        raise DataError(
            f"of {rows.height:,} labelled rows in {labels} {kept.height:,} can be scored, with no event among them"
            f"{f' ({told})' if told else ''}; an evaluation needs events: look at the labels and the codes of {data}"
        )
    outcomes = outcomes_of(kept)
    splits = [
        _split(of_model, scored.table, is_scored, outcomes) for of_model, scored in zip(asked, found, strict=True)
    ]
    own_scored = of_any_cause(found[0].table)["risk"].is_not_null()
    groups = {name: of.filter(is_scored.filter(own_scored)) for name, of in found[0].groups.items()}
    config = _config(one.predictor.folder.config, data, cache)
    record = get_run(one.run_id)
    fingerprint = fingerprint_of(EVALUATION, dataset.fingerprint(), one.predictor.grid.horizon_days, task, kept)
    with open_run(
        config,
        kind=EVALUATION,
        sections=_sections(one),
        name=f"{one.label} on {dataset.path.name}",
        model=one.label,
        task=task,
    ) as run:
        tags = {MODEL_RUN: one.run_id, EVALUATED_ON: f"{dataset.path.name}, labels {labels.name}", COHORT: fingerprint}
        tags |= {MODEL: record.tags[MODEL]} if MODEL in record.tags else {}
        run.logger.set_tags(tags | ({} if task == "classes" else {HORIZON: f"{splits[0].horizon_days:g}"}))
        run.logger.log_dataset(
            dataset.path.name, fingerprint=dataset.fingerprint(), source=str(data), context="evaluation"
        )
        run.logger.log_table(_prediction_table(kept, splits[0]), "predictions/test.parquet")
        run.logger.log_table(_reasons_table(reasons), "evaluation/not_scored.csv")
        context = Context(EvaluationConfig(), seed, groups=groups)
        report = evaluate_externally(splits[0], context, task=task)
        names = _names(asked)
        pairs = paired_with(splits[0], dict(zip(names[1:], splits[1:], strict=True)), task=task, **context.resampling)
        run.logger.log_metrics(named(TEST, report.metrics) | _sizes(kept), step=0)
        run.logger.log_table(report.left_out_table(), LEFT_OUT)
        if against:
            run.logger.log_table(pairs, "evaluation/paired.csv")
        log_test_report(run.logger, splits[0], report, task)
        summary = _summary(one, record.name, dataset, labels, kept, report, task) + _pairs_text(pairs)
        drift = "; ".join(found[0].drift.to_lines())
        run.logger.set_description(summary + (f"\n{drift}\n" if found[0].drift.is_over_limit else ""))
        print("\n".join([*(f"not scored: {reason}: {n:,}" for reason, n in reasons), "", summary, drift]), flush=True)
        _print_pairs(pairs)
        return run.finished(named(TEST, report.metrics), task=task)


_KEYS = ("subject_id", "prediction_time")
Reasons = list[tuple[str, int]]


def _asked(reference: str, folder: Path) -> Asked:
    fetched = fetch_model(reference, folder)
    predictor = load_predictor(fetched.folder)
    config = predictor.folder.config
    label = config.baseline.name if predictor.folder.baseline is not None else transformer_label(config)
    return Asked(reference, fetched.run_id, label, predictor)


def _labelled(asked: Sequence[Asked], dataset: MedsDataset, path: Path) -> tuple[pl.DataFrame, Reasons]:
    """The labels as a cohort has them, followed from the model's gap to its horizon; and who has no such follow-up."""
    one = asked[0]
    labels = read_labels(path, dataset).rename({"index_date": "prediction_time"})
    task: Task = "survival" if "follow_up_days" in labels.columns else "classes"
    horizons = {other.predictor.grid.horizon_days for other in asked}
    tasks = {other.task for other in asked}
    if tasks != {task}:
        raise DataError(
            f"{path} tells {'when' if task == 'survival' else 'whether, and not when,'} the outcome comes, and of the "
            f"models asked {', '.join(f'{other.reference} is judged for {other.task}' for other in asked)}; labels of "
            "survival have follow_up_days (or censor_time) and is_event, labels of classes boolean_value"
        )
    if len(horizons) > 1:
        told = ", ".join(f"{other.reference} of {other.predictor.grid.horizon_days:g} days" for other in asked)
        raise DataError(f"risks of different horizons cannot be paired ({told}); evaluate each by itself")
    reasons: Reasons = []

    def keep(condition: pl.Expr, reason: str) -> None:
        nonlocal labels
        left = labels.filter(condition)
        if left.height < labels.height:
            reasons.append((reason, labels.height - left.height))
        labels = left

    if task == "classes":
        labels = labels.with_columns(follow_up_days=pl.lit(CLASS_DAYS))
    else:
        config = one.predictor.folder.config.cohort
        gap_days = config.gap_days if config is not None else 0
        keep(pl.col("follow_up_days") > 0, NO_FOLLOW_UP)
        keep(pl.col("follow_up_days") > gap_days, WITHIN_GAP)
        labels = labels.with_columns(pl.col("follow_up_days") - gap_days)
        labels = clip_follow_up(labels, one.predictor.grid.horizon_days)
    for other in asked:
        if other.predictor.folder.fingerprints.get("data") == dataset.fingerprint():
            keep(_is_test(other, dataset, labels), LEARNT_FROM)
    return labels.sort(*_KEYS), reasons


def _is_test(asked: Asked, dataset: MedsDataset, labels: pl.DataFrame) -> pl.Expr:
    """Whether a subject is a test subject of the split that the model was trained with."""
    rows = labels.filter(pl.col("subject_id").is_not_null()).with_columns(time="prediction_time")
    divided, _ = with_splits(dataset, rows, asked.predictor.folder.config.data.split)
    return pl.col("subject_id").is_in(divided.filter(pl.col("split") == "test")["subject_id"].unique().to_list())


def _counted(reasons: pl.Series, of_model: str) -> Reasons:
    counts = reasons.value_counts(sort=True).sort("count", REASON, descending=[True, False])
    return [(f"{reason}{f' (asked of {of_model})' if of_model else ''}", n) for reason, n in counts.iter_rows()]


def _split(asked: Asked, table: pl.DataFrame, is_scored: pl.Series, outcomes: Outcomes) -> Split:
    """The model's curves of the rows that are scored; the evaluated subjects stand for those of training."""
    survival = np.array(of_any_cause(table).filter(is_scored)["survival"].to_list(), dtype=np.float64)
    incidence = None
    if CAUSE in table.columns:
        n_causes = asked.predictor.folder.n_causes
        of_causes = [table.filter(pl.col(CAUSE) == str(number)).filter(is_scored) for number in range(1, n_causes + 1)]
        incidence = np.stack([np.array(of["incidence"].to_list(), dtype=np.float64) for of in of_causes], axis=1)
    grid = asked.predictor.grid.timed_by(outcomes.follow_up_days, outcomes.is_event)
    return Split(survival, grid, outcomes, outcomes, incidence)


def _config(config: RunConfig, data: Path, cache: Path | None) -> RunConfig:
    """The model's configuration, but for where the data are and the run is kept."""
    here: dict[str, str | int | float | bool] = {"data.path": str(data)}
    if cache is not None:
        here["runtime.cache"] = str(cache)
    return override(config, here)


def _sections(asked: Asked) -> tuple[str, ...]:
    is_baseline = asked.predictor.folder.baseline is not None
    return ("study", "data", *(("baseline",) if is_baseline else ("model", "strategy")), "runtime")


def _names(asked: Sequence[Asked]) -> list[str]:
    """What models are called in a table: by their labels where these differ."""
    labels = [one.label for one in asked]
    return [one.label if labels.count(one.label) == 1 else f"{one.label} ({one.reference})" for one in asked]


def _sizes(kept: pl.DataFrame) -> dict[str, float]:
    n_events = kept.filter("is_event")["subject_id"].n_unique()
    return {"cohort/n_test": float(kept["subject_id"].n_unique()), "cohort/n_test_events": float(n_events)}


def _prediction_table(kept: pl.DataFrame, split: Split) -> pl.DataFrame:
    rows = with_numbers(kept)
    numbers = [name for name in (NUMBER,) if name in rows.columns]
    predictions = Predictions(np.arange(rows.height), split.survival, split.incidence)
    columns = [*_KEYS, *numbers, "follow_up_days", "is_event"]
    if CAUSE not in rows.columns:
        return of_any_cause(with_predictions(rows.select(columns), predictions))
    return with_predictions(rows.select(*columns, observed_cause=CAUSE), predictions)


def _reasons_table(reasons: Reasons) -> pl.DataFrame:
    counts = hide_small([n for _, n in reasons])
    schema = {"reason": pl.String, "n_rows": pl.String}
    return pl.DataFrame({"reason": [reason for reason, _ in reasons], "n_rows": counts}, schema=schema)


def _summary(
    asked: Asked, name: str, dataset: MedsDataset, labels: Path, kept: pl.DataFrame, report: Report, task: Task
) -> str:
    n_events = kept.filter("is_event")["subject_id"].n_unique()
    in_the_large = report.metrics.get("in_the_large")
    shifted = "" if in_the_large is None else f"; all hazards times {np.exp(in_the_large):.2f} would make it 1"
    ratio = interval_text(report.metrics, *with_bounds("observed_to_expected"), form=".2f") or "none"
    facts = {
        "model": f"{asked.label}, run {asked.run_id} ({name}), named as {asked.reference}",
        "subjects (events)": f"{kept['subject_id'].n_unique():,} ({count_text(n_events)})",
        **scores({TEST: report}, task),
        **causes_text(report),
        "observed over expected risk (95 % interval)": f"{ratio}{shifted}",
        "calibration slope (95 % interval)": _text_of(report, "calibration_slope"),
        **not_measured(report),
    }
    if task != "classes":
        facts["horizon"] = f"{asked.predictor.grid.horizon_days:g} days"
    return describe(f"External validation on {dataset.path.name}, labels {labels.name}", facts)


def _text_of(report: Report, key: str) -> str:
    return interval_text(report.metrics, *with_bounds(key), form=METRICS[key].form) or "none"


def _pairs_text(pairs: pl.DataFrame) -> str:
    if pairs.is_empty():
        return ""
    return "\n" + "".join(f"- {line}\n" for line in _pair_lines(pairs))


def _print_pairs(pairs: pl.DataFrame) -> None:
    for line in _pair_lines(pairs):
        print(line, flush=True)


def _pair_lines(pairs: pl.DataFrame) -> list[str]:
    return [
        f"{row['measure']} minus that of {row['against']}: "
        + (row["left_out"] or interval_text(row, "difference", "lower", "upper", form="+.4f") + f": {row['verdict']}")
        for row in pairs.iter_rows(named=True)
    ]
