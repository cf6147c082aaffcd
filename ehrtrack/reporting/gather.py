"""The material of a report, read from the tracking server alone."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from ehrtrack.evaluation.answer import Findings
from ehrtrack.evaluation.repeats import Configuration
from ehrtrack.pipeline.run_rows import EVALUATION, latest_evaluations
from ehrtrack.reporting.material import (
    COHORT_TABLES,
    CURVE_TABLES,
    ExplainedRun,
    Material,
    beside_best,
    compared_by,
    median_run,
    shown_repeat,
)
from ehrtrack.runlog import VALIDATION
from ehrtrack.study.results import StudyResults
from ehrtrack.tracking.client.connection import ui_command
from ehrtrack.tracking.client.queries import MissingArtifact, RunRecord, download, metric_history, search_runs
from ehrtrack.tracking.names import CONTROLS, EXPLAINED, EXPLANATION, MODEL_RUN

TABLE_ONE = "cohort/table_one.csv"
KINDS = ("pretrain", "finetune", "baseline", CONTROLS, EVALUATION, EXPLANATION)
DOWNLOADS_AT_ONCE = 8

Fetch = Callable[[str, str, Path], Path]
"""Brings an artifact of a run into a folder, as `queries.download` does."""
History = Callable[[str, str], Mapping[int, float]]
"""Values of a run's metric by epoch, as `queries.metric_history` has them."""
PREDICTIONS = "predictions/test.parquet"
NEEDED_OF_PREDICTIONS = {"risk", "follow_up_days", "is_event"}


def gather(
    results: StudyResults,
    findings: Findings,
    *,
    table_one: pl.DataFrame | None = None,
    fetch: Fetch = download,
    history: History = metric_history,
) -> Material:
    """All that the report of a study is made of.

    Parameters
    ----------
    findings : what may be said of the results
    table_one : where the study's run is not closed yet, and its Table 1 not on the server; else it is read from there
    fetch, history : how artifacts, and values of a metric by epoch, are read

    Raises
    ------
    TrackingError
        If the server does not answer.
    """
    found = findings.configurations
    wanted = {repeat.row.run_id for repeat in results.repeats} | {one.run_id for one in results.pretrainings}
    runs = search_runs(results.study, kinds=KINDS)
    records = {record.run_id: record for record in runs if record.run_id in wanted or record.kind == CONTROLS}
    shown = {row.run_id for one in found for row in one.rows}
    medians = {one.label: median_run(one) for one in found}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        read = partial(_tables, folder=Path(folder), fetch=fetch)
        evaluations = dict(
            zip(
                medians,
                pool.map(lambda run_id: read(run_id, "evaluation", CURVE_TABLES), medians.values()),
                strict=True,
            )
        )
        first = shown_repeat(found).row.run_id if found else ""
        cohort = read(first, "cohort", COHORT_TABLES) if first else {}
        environment = _environment(first, Path(folder), fetch) if first else {}
        learning = _learning(beside_best(found), pool, history)
        explanations = _explanations(found, runs, read)
        judged = list(dict.fromkeys([*(one.label for one in found[:1]), *_references(findings, found)]))
        predictions = {label: _predictions(medians[label], Path(folder), fetch) for label in judged}
        if table_one is None and results.run_id:
            table_one = _tables(results.run_id, "cohort", ("table_one",), folder=Path(folder), fetch=fetch).get(
                "table_one"
            )
    return Material(
        settings=results.settings,
        study=results.study,
        run_id=results.run_id,
        configurations=found,
        table=findings.table,
        differences=findings.differences,
        answer=findings.answer,
        records=records,
        evaluations=evaluations,
        cohort=cohort,
        table_one=None if table_one is None else as_read(table_one),
        environment=environment,
        learning=learning,
        predictions={label: table for label, table in predictions.items() if table is not None},
        pages={run_id: _page(record) for run_id, record in records.items()},
        pretrainings=results.pretrainings,
        external=latest_evaluations(run for run in runs if run.tags.get(MODEL_RUN) in shown),
        explanations=explanations,
        controls=tuple(record for record in records.values() if record.kind == CONTROLS),
        missing=results.missing,
    )


def _learning(shown: Sequence[Configuration], pool: ThreadPoolExecutor, history: History) -> pl.DataFrame | None:
    """The metric by which configurations are chosen, on validation subjects, of each repeat and epoch."""
    if not shown:
        return None
    name = compared_by(shown).named(VALIDATION)
    runs = [(one.label, number, row) for one in shown if one.is_transformer for number, row in enumerate(one.rows)]
    found = pool.map(lambda run: history(run[2].run_id, name), runs)
    rows = [
        (label, number, epoch, value)
        for (label, number, _), values in zip(runs, found, strict=True)
        for epoch, value in sorted(values.items())
    ]
    return pl.DataFrame(rows, schema=["configuration", "repeat", "epoch", "value"], orient="row") if rows else None


def _explanations(
    found: Sequence[Configuration], runs: Sequence[RunRecord], read: Callable[..., dict[str, pl.DataFrame]]
) -> dict[str, ExplainedRun]:
    """What carries the risk by each configuration of which a run was explained, by the last explanation of it."""
    last = {run.tags.get(MODEL_RUN, ""): run for run in runs if run.kind == EXPLANATION and EXPLAINED in run.tags}
    explanations = {}
    for one in found:
        of_one = [last[row.run_id] for row in one.rows if row.run_id in last]
        for run in of_one[-1:]:
            table = read(run.run_id, "explain", ("codes",)).get("codes")
            if table is not None:
                scale = "log odds" if compared_by(found).key == "auroc" else "log cumulative hazard"
                explanations[one.label] = ExplainedRun(table, run.tags[EXPLAINED], scale)
    return explanations


def _references(findings: Findings, found: Sequence[Configuration]) -> list[str]:
    """What the best configuration was compared with."""
    best = found[0].label if found else ""
    return [difference.to for difference in findings.differences if difference.this == best and not difference.question]


def _predictions(run_id: str, folder: Path, fetch: Fetch) -> pl.DataFrame | None:
    """Test subjects with their risks; None where a run has none of times."""
    try:
        table = pl.read_parquet(fetch(run_id, PREDICTIONS, folder / run_id))
    except MissingArtifact:
        return None
    return table if set(table.columns) >= NEEDED_OF_PREDICTIONS else None


def _tables(
    run_id: str, folder_name: str, wanted: Sequence[str], *, folder: Path, fetch: Fetch
) -> dict[str, pl.DataFrame]:
    """Those of some tables in a folder of a run's artifacts that are there."""
    try:
        fetched = fetch(run_id, folder_name, folder / run_id)
    except MissingArtifact:
        return {}
    files = {name: fetched / f"{name}.csv" for name in wanted}
    return {name: read_table(file.read_bytes()) for name, file in files.items() if file.is_file()}


def read_table(content: bytes) -> pl.DataFrame:
    """A table as a run logged it; a column in which counts are hidden is text."""
    return pl.read_csv(io.BytesIO(content), infer_schema_length=None)


def as_read(frame: pl.DataFrame) -> pl.DataFrame:
    """A table of text as it is when it has been logged and read back."""
    return pl.read_csv(io.BytesIO(frame.write_csv().encode()), infer_schema=False)


def _environment(run_id: str, folder: Path, fetch: Fetch) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(fetch(run_id, "environment.json", folder / run_id).read_text("utf-8"))
    except MissingArtifact:
        return {}
    return found


def _page(record: RunRecord) -> str:
    return ui_command(record.experiment_id, run_id=record.run_id).url
