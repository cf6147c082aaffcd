"""Landmarks: a model that was fitted at the index date, asked again later of those who are still followed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from ehrtrack import plots
from ehrtrack.config import RunConfig, override
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.drift import Drift
from ehrtrack.data.events import open_dataset
from ehrtrack.data.labels import NUMBER, of_any_cause, with_numbers
from ehrtrack.errors import ConfigError
from ehrtrack.evaluation.evaluate import evaluate
from ehrtrack.evaluation.metric_table import interval_text, number_text, with_bounds
from ehrtrack.evaluation.report import Report
from ehrtrack.evaluation.split import Context, EvaluationConfig, Split
from ehrtrack.pipeline.predictor import Predictor, load_predictor
from ehrtrack.pipeline.prepare import outcomes_of
from ehrtrack.pipeline.run import RecipeResult, describe, open_run
from ehrtrack.privacy import hide_small
from ehrtrack.runlog import TEST, named
from ehrtrack.survival.landmarks import AtLandmark, pooled_c_index
from ehrtrack.tracking.client.queries import fetch_model
from ehrtrack.tracking.names import MODEL_RUN

SECTIONS = ("study", "data", "cohort", "runtime")
LANDMARK_MEASURES = ("c_index", "c_index_lower", "c_index_upper", "ibs", "ibs_kaplan_meier")


@dataclass(frozen=True)
class Landmark:
    """What a model says at a landmark of the test subjects who are followed beyond it.

    Attributes
    ----------
    days : from the index date
    predictions : subject_id, risk (of any cause), follow_up_days, is_event; days from the landmark on. Where subjects
        have several index dates also prediction_number
    drift : of codes and values against the model's training
    """

    days: float
    predictions: pl.DataFrame
    report: Report
    drift: Drift

    @property
    def subjects(self) -> AtLandmark:
        """For the C-index over all landmarks."""
        columns = ("subject_id", "risk", "follow_up_days", "is_event")
        return AtLandmark(*(self.predictions[name].to_numpy() for name in columns))


def landmarks(model: str, days: Sequence[float]) -> RecipeResult:
    """Score a run's model at several index times a subject, and log a table, a plot and the predictions.

    At each landmark the test subjects who are still followed are scored by what is known of them by then, for the
    model's horizon from there on. Subjects stay in the split that they were in, so the model has seen none of them.

    Parameters
    ----------
    model : run id, ``models:/NAME@champion`` or ``models:/NAME/VERSION``
    days : from the index date; 0 is the index date itself

    Raises
    ------
    EhrtrackError
        If the model, its data or the tracking server cannot be used, or too few are followed beyond a landmark.
    """
    if not days or min(days) < 0:
        raise ConfigError(f"--days {list(days)}: landmarks are days from the index date on, such as 0 and 365")
    with tempfile.TemporaryDirectory() as folder:
        fetched = fetch_model(model, Path(folder))
        predictor = load_predictor(fetched.folder)
    if predictor.folder.has_classes:
        raise ConfigError(
            f"the model of run {fetched.run_id} tells whether the outcome comes and not when, so nothing is known of "
            "it at later days: landmarks need labels with follow_up_days (or censor_time) and is_event. For several "
            "times a subject give labels with several prediction times"
        )
    config = predictor.folder.config
    with open_run(config, kind="landmarks", sections=SECTIONS, name="landmarks") as run:
        run.logger.set_tags({MODEL_RUN: fetched.run_id})
        scored = list(_scored(predictor, config, sorted(set(days))))
        report = Report()
        pooled = report.measure(
            "landmark_c_index", lambda: pooled_c_index([at.subjects for at in scored], seed=config.runtime.seed)
        )
        table = landmark_table(scored)
        of_all = pl.concat([at.predictions.with_columns(landmark_days=at.days) for at in scored])
        run.logger.log_table(table, "landmarks.csv")
        run.logger.log_table(of_all, "predictions/landmarks.parquet")
        run.logger.log_figure(plots.landmark_plot(table, pooled), "plots/landmarks.png")
        metrics = {} if pooled is None else named(TEST, pooled.to_metrics("landmark_c_index"))
        run.logger.log_metrics(metrics, step=0)
        text = _to_markdown(table)
        of_all_text = str(pooled or f"none ({report.left_out['landmark_c_index']})")
        facts = {"model of run": fetched.run_id, "C-index over all landmarks (95 % interval)": of_all_text}
        facts |= {
            f"drift at {at.days:g} days": "; ".join(at.drift.to_lines()) for at in scored if at.drift.is_over_limit
        }
        run.logger.set_description(describe("Landmarks", facts) + f"\n{text}")
        print(f"\n{text}\nC-index over all landmarks: {of_all_text}\n", flush=True)
        return run.finished(metrics)


def landmark_table(scored: Sequence[Landmark]) -> pl.DataFrame:
    """One line a landmark.

    Returns
    -------
    landmark_days, n_subjects, n_events (those with one; both text, few are hidden), c_index with its interval, ibs,
    ibs_kaplan_meier (of the training subjects who are followed beyond the landmark), left_out (measures without a
    value, and why)
    """
    table = pl.DataFrame(
        [_landmark_line(at) for at in scored], schema_overrides=dict.fromkeys(LANDMARK_MEASURES, pl.Float64)
    )
    counts = ("n_subjects", "n_events")
    return table.with_columns(pl.Series(name, hide_small(table[name].to_list()), dtype=pl.String) for name in counts)


def _landmark_line(at: Landmark) -> dict[str, object]:
    return {
        "landmark_days": at.days,
        "n_subjects": at.predictions["subject_id"].n_unique(),
        "n_events": at.predictions.filter("is_event")["subject_id"].n_unique(),
        **{name: at.report.metrics.get(name) for name in LANDMARK_MEASURES},
        "left_out": "; ".join(f"{name}: {why}" for name, why in at.report.left_out.items()),
    }


def _scored(predictor: Predictor, config: RunConfig, days: Sequence[float]) -> Iterator[Landmark]:
    dataset = open_dataset(config.data.path)
    for landmark_days in days:
        settings = {
            "cohort.landmark_days": landmark_days,
            "cohort.horizon_days": predictor.grid.horizon_days,
            "cohort.min_followed_share": 0,  # the model was fitted with the follow-up from the index date on
        }
        moved = override(config, settings)
        assert moved.cohort is not None  # a model that predicts survival was fitted on a cohort
        cohort = build_cohort(dataset, moved.cohort, config.data.split, births=config.data.births)
        rows = with_numbers(cohort.subjects.rename({"index_date": "prediction_time"}))
        training, test = (rows.filter(pl.col("split") == split) for split in ("train", "test"))
        # who is eligible is judged at the index date, as it was for the cohort
        at_landmark = replace(predictor, folder=replace(predictor.folder, config=moved))
        scored = at_landmark.score_dataset(dataset, test.select("subject_id", "prediction_time"))
        predicted = of_any_cause(scored.table)
        is_scored = predicted["risk"].is_not_null()
        test, predicted = test.filter(is_scored), predicted.filter(is_scored)
        survival = np.array(predicted["survival"].to_list())
        of_training = outcomes_of(training)
        grid = predictor.grid.timed_by(of_training.follow_up_days, of_training.is_event)
        split = Split(survival, grid, of_training, outcomes_of(test))
        at_day = evaluate(split, Context(EvaluationConfig(), config.runtime.seed))
        numbers = [name for name in (NUMBER,) if name in test.columns]
        outcomes = test.select("subject_id", *numbers, "follow_up_days", "is_event")
        n_subjects = test["subject_id"].n_unique()
        print(
            f"landmark {landmark_days:g} days: {n_subjects:,} test subjects, C-index {at_day.text('c_index')}",
            flush=True,
        )
        print("\n".join(f"  {line}" for line in scored.to_lines()), flush=True)
        yield Landmark(landmark_days, outcomes.with_columns(predicted["risk"]), at_day, scored.drift)


def _to_markdown(table: pl.DataFrame) -> str:
    lines = ["landmark (days) | test subjects | events | C-index (95 % interval) | IBS | IBS of Kaplan–Meier"]
    lines.append(" | ".join("---" for _ in lines[0].split("|")))
    for row in table.iter_rows(named=True):
        counts = f"{row['landmark_days']:g} | {row['n_subjects']} | {row['n_events']}"
        c_index = interval_text(row, *with_bounds("c_index"), form=".3f")
        brier = f"{number_text(row['ibs'], '.4f')} | {number_text(row['ibs_kaplan_meier'], '.4f')}"
        lines.append(f"{counts} | {c_index} | {brier}")
    return "".join(f"| {line} |\n" for line in lines)
