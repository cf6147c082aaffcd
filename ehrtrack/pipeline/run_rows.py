"""Read finished runs as rows of a comparison."""

from __future__ import annotations

from typing import cast, get_args

from ehrtrack.errors import DataError
from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.pipeline.predictions_cache import TO_MEND
from ehrtrack.privacy import RAW
from ehrtrack.runlog import Task
from ehrtrack.tracking.client.queries import RunRecord
from ehrtrack.tracking.names import COHORT, HORIZON, MODEL, SUBJECT_KEY, TASK


def run_row(record: RunRecord) -> RunRow:
    """A finished fine-tuning or baseline run as a row of a comparison.

    Raises
    ------
    DataError
        If the run did not log its model or its cohort.
    """
    metrics, params = record.metrics, record.params
    is_baseline = record.kind == "baseline"
    needed = ["baseline.name"] if is_baseline else ["strategy.name", "model.size"]
    missing = [f"param cfg.{name}" for name in needed if name not in params]
    missing += [] if COHORT in record.tags else [f"tag {COHORT}"]
    if missing:
        raise DataError(f"it has no {' and no '.join(missing)}; {TO_MEND}")
    return RunRow(
        run_id=record.run_id,
        kind=record.kind,
        model=record.tags.get(MODEL, params["baseline.name"]) if is_baseline else "behrt",
        strategy="" if is_baseline else _strategy(params),
        size="" if is_baseline else params["model.size"],
        cohort_fingerprint=record.tags[COHORT],
        n_parameters=_whole(metrics.get("parameters/total")),
        n_trainable=_whole(metrics.get("parameters/trainable")),
        checkpoint_mb=metrics.get("cost/checkpoint_mb"),
        seconds=metrics.get("cost/train_seconds"),
        horizon_days=record.tags.get(HORIZON, params.get("cohort.horizon_days", "")),
        subject_key=record.tags.get(SUBJECT_KEY, RAW),  # runs from before there were keys have the subjects' own ids
        metrics=metrics,
        task=task_of(record),
    )


def task_of(record: RunRecord) -> Task:
    """The task of the model; runs logged before there was a tag for it are all survival models."""
    task = record.tags.get(TASK, "survival")
    if task not in get_args(Task):
        raise DataError(f"its tag {TASK} is {task!r}, and this version knows {', '.join(get_args(Task))}; {TO_MEND}")
    return cast(Task, task)


def _strategy(params: dict[str, str]) -> str:
    """The strategy's name, with the rank of adapters."""
    rank = params.get("strategy.rank")
    return f"{params['strategy.name']} r{rank}" if rank else params["strategy.name"]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
