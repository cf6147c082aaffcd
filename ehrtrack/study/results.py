"""What a study came to: its finished runs as repeats of configurations, read back from the tracking server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import polars as pl

from ehrtrack.errors import DataError, TrainingError
from ehrtrack.evaluation.answer import Findings, findings
from ehrtrack.evaluation.metric_table import chosen_by
from ehrtrack.evaluation.repeats import N_POOL, N_TEST, N_TRAIN, Repeat, configurations
from ehrtrack.pipeline.predictions_cache import read_test_predictions
from ehrtrack.pipeline.run_rows import run_row, task_of
from ehrtrack.runlog import TEST
from ehrtrack.study.asked import asked
from ehrtrack.study.cells import Cell, Study
from ehrtrack.study.queue import Finished, Standing
from ehrtrack.study.settings import StudySettings
from ehrtrack.tracking.client.queries import RunRecord, search_runs
from ehrtrack.tracking.names import CELL, ERROR

KINDS = ("pretrain", "finetune", "baseline")


@dataclass(frozen=True)
class StudyResults:
    """The finished runs of a study, and what is missing.

    Attributes
    ----------
    study : under which its runs are tracked
    run_id : of the study's own run; empty where none is open
    repeats : its fine-tunings and baselines, in the order of its cells
    predictions : for test subjects, by run id; of runs whose predictions cannot be read, `missing` says why
    pretrainings : that fine-tunings started from
    missing : why a cell has no result, by its label
    """

    settings: StudySettings
    study: str
    run_id: str
    repeats: tuple[Repeat, ...]
    predictions: Mapping[str, pl.DataFrame]
    pretrainings: tuple[RunRecord, ...]
    missing: Mapping[str, str]

    def findings(self) -> Findings:
        """What may be said of the study."""
        return self._findings

    @cached_property
    def _findings(self) -> Findings:
        return findings(
            configurations(self.repeats),
            self.predictions,
            self.settings,
            price_per_hour=self.settings.price_per_hour,
            currency=self.settings.currency,
        )


class Unfinished(TrainingError):
    """Cells of a study have no result.

    Attributes
    ----------
    results : what the others came to
    """

    def __init__(self, message: str, results: StudyResults) -> None:
        super().__init__(message)
        self.results = results


def finished_cells(study: Study) -> dict[str, RunRecord]:
    """The runs of a study's cells that have ended well, by the key of the cell; of several the first."""
    found: dict[str, RunRecord] = {}
    keys = study.by_key
    for record in search_runs(study.name, kinds=KINDS):
        key = record.tags.get(CELL, "")
        if key in keys and record.kind == keys[key].recipe:
            found.setdefault(key, record)
    return found


def finished(record: RunRecord) -> Finished:
    """A cell's run as the queue knows it."""
    if record.kind == "pretrain":
        return Finished(record.run_id, 0.0)
    value = record.metrics.get(chosen_by({task_of(record)}).named(TEST), 0.0)
    return Finished(record.run_id, value if value == value else 0.0)  # of too few events there is no number


def study_results(study: Study, standing: Mapping[str, Standing] | None = None, *, run_id: str = "") -> StudyResults:
    """Gather what is finished of a study.

    Parameters
    ----------
    standing : of the cells in the queue, which says why one is not finished; None if there is no queue to ask
    run_id : of the study's own run
    """
    records = finished_cells(study)
    repeats, unusable = repeats_of(study, records)
    missing = {
        cell.label: unusable[cell.key]
        if cell.key in unusable
        else _why_missing((standing or {}).get(cell.key, Standing()))
        for cell in study.cells
        if cell.key not in records or cell.key in unusable
    }
    rows = [repeat.row for repeat in repeats.values()]
    predictions, unread = read_test_predictions(rows, cache=study.runtime.cache)
    labels = {records[cell.key].run_id: cell.label for cell in study.cells if cell.key in records}
    return StudyResults(
        settings=study.settings,
        study=study.name,
        run_id=run_id,
        repeats=tuple(repeats.values()),
        predictions=predictions,
        pretrainings=tuple(
            records[cell.key] for cell in study.cells if cell.recipe == "pretrain" and cell.key in records
        ),
        missing=missing | {labels[run]: reason for run, reason in unread.items()},
    )


def repeats_of(study: Study, records: Mapping[str, RunRecord]) -> tuple[dict[str, Repeat], dict[str, str]]:
    """The finished fine-tunings and baselines as repeats, and why one can be none, both by the key of the cell."""
    repeats, unusable = dict[str, Repeat](), dict[str, str]()
    for cell in study.cells:
        if cell.key in records and cell.recipe != "pretrain":
            try:
                base = study.by_key[cell.base].config.objective.name if cell.base else ""
                repeats[cell.key] = _repeat(cell, records[cell.key], pretraining=base)
            except DataError as reason:
                unusable[cell.key] = str(reason)
    return repeats, unusable


def told_by_server(results: StudyResults, study: Study) -> StudyResults:
    """The results with reasons of missing cells as the tracking server has them, whatever a queue may know beside it.

    What a run logged of its failure names no subject and no date; what a worker told of it may.
    """
    done = finished_cells(study)
    failed = {record.tags.get(CELL): record for record in search_runs(study.name, kinds=KINDS, status="FAILED")}
    reasons = {
        cell.label: failed[cell.key].tags.get(ERROR, "it failed")
        if cell.key in failed
        else "the tracking server has no run of it that has ended"
        for cell in study.cells
        if cell.key not in done
    }
    return replace(results, missing=dict(results.missing) | reasons)


def _repeat(cell: Cell, record: RunRecord, *, pretraining: str) -> Repeat:
    lacking = [name for name in (N_TRAIN, N_TEST) if name not in record.metrics]
    if lacking:
        raise DataError(f"run {record.run_id} has no metric {' and no '.join(lacking)}; make it again")
    return Repeat(
        row=run_row(record),
        settings=cell.settings,
        seed=cell.config.runtime.seed,
        n_train=int(record.metrics[N_TRAIN]),
        n_test=int(record.metrics[N_TEST]),
        n_pool=int(record.metrics[N_POOL]) if N_POOL in record.metrics else None,
        asked=asked(cell.config, cell.recipe, cell.settings),
        pretraining=pretraining,
    )


def _why_missing(standing: Standing) -> str:
    if standing.state == "failed":
        return f"it failed {standing.failures} times: {standing.reason}"
    return standing.reason or {"waiting": "nobody has begun it", "running": "a worker runs it"}.get(
        standing.state, "its run is not on the tracking server"
    )
