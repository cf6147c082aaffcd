"""Comparison: finished runs out of the tracking server, into benchmark tables and a champion."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from matplotlib.figure import Figure

from ehrtrack import plots
from ehrtrack.compare import (
    RunRow,
    benchmark_table,
    best_by_validation,
    differences,
    group_by_cohort,
    to_markdown,
)
from ehrtrack.config import RunConfig
from ehrtrack.errors import DataError
from ehrtrack.privacy import RAW
from ehrtrack.recipes._run import MODEL_FOLDER, Run, open_run
from ehrtrack.tracking.names import SUBJECT_KEY
from ehrtrack.tracking.queries import RunRecord, download, get_run, search_runs
from ehrtrack.tracking.registry import ModelVersion, champion, log_and_register_model, set_champion
from ehrtrack.tracking.server import ui_command

SECTIONS = ("study", "registry")


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to.

    Attributes
    ----------
    run : the run that holds the tables
    markdown : the benchmark table of the cohort that was run last
    champion : the registered model that is best by validation there
    """

    run: Run
    markdown: str
    champion: ModelVersion


def compare(config: RunConfig) -> Comparison:
    """Compare the finished fine-tuning and baseline runs of a study, and register the best by validation.

    Each cohort has a table of its own. The champion is of the cohort whose run is the latest.

    Raises
    ------
    DataError
        If the study has no finished run.
    """
    records = search_runs(config.study, kinds=["finetune", "baseline"])
    rows = [run_row(record) for record in records]
    if not rows:
        raise DataError(
            f"study {config.study!r} has no finished finetune or baseline run on this tracking server; "
            "run `ehrtrack finetune` and `ehrtrack baseline` first, or set MLFLOW_TRACKING_URI to where they were run"
        )
    latest = rows[-1].cohort_fingerprint
    best = None
    with open_run(config, kind="compare", sections=SECTIONS, name="compare") as run:
        texts = {}
        for cohort, group in group_by_cohort(rows).items():
            table = benchmark_table(group, differences(group, read_test_predictions(group)))
            texts[cohort] = to_markdown(table)
            run.logger.log_table(table, f"benchmark/{cohort}.csv")
            run.logger.log_text(texts[cohort], f"benchmark/{cohort}.md")
            run.logger.log_figure(_forest(table), f"benchmark/{cohort}.png")
            if cohort == latest:
                best = best_by_validation(group)
        assert best is not None
        version = _register(best, config.registry.model or config.study)
        run.logger.set_tags({"ehrtrack.champion": version.uri})
        run.logger.set_description(_summary(texts, latest, best, version))
        for cohort, text in texts.items():
            print(f"\ncohort {cohort}\n\n{text}", flush=True)
        print(
            f"champion  models:/{version.name}@champion  (version {version.version}, {best.label})\n",
            flush=True,
        )
        return Comparison(run.finished({}), texts[latest], version)


def describe_champion(name: str) -> str:
    """The champion of a registered model with its scores, as text for a terminal."""
    version = champion(name)
    record = get_run(version.run_id)
    metrics = record.metrics
    scores = [
        f"{label:<24}{metrics[key]:.4f}"
        for label, key in (
            ("validation C-index", "best/c_index"),
            ("test C-index", "test/c_index"),
            ("  lower (95 %)", "test/c_index_lower"),
            ("  upper (95 %)", "test/c_index_upper"),
            ("test IBS", "test/ibs"),
        )
        if key in metrics
    ]
    page = ui_command(record.experiment_id, run_id=record.run_id)
    return "\n".join(
        [
            f"models:/{name}@champion  (version {version.version})",
            f"run {record.run_id}  {record.name}",
            *scores,
            str(page),
        ]
    )


def run_row(record: RunRecord) -> RunRow:
    """A finished fine-tuning or baseline run, as a comparison sees it."""
    metrics, params = record.metrics, record.params
    is_baseline = record.kind == "baseline"
    return RunRow(
        run_id=record.run_id,
        kind=record.kind,
        model=params["baseline.name"] if is_baseline else "behrt",
        strategy="" if is_baseline else _strategy(params),
        size="" if is_baseline else params["model.size"],
        cohort_fingerprint=record.tags["fingerprint.cohort"],
        n_parameters=_whole(metrics.get("parameters/total")),
        n_trainable=_whole(metrics.get("parameters/trainable")),
        checkpoint_mb=metrics.get("cost/checkpoint_mb"),
        seconds=metrics.get("cost/train_seconds"),
        val_c_index=metrics.get("best/c_index"),
        test_c_index=metrics.get("test/c_index"),
        test_lower=metrics.get("test/c_index_lower"),
        test_upper=metrics.get("test/c_index_upper"),
        test_ibs=metrics.get("test/ibs"),
        subject_key=record.tags.get(SUBJECT_KEY, RAW),  # runs from before there were keys have the subjects' own ids
        attainable=metrics.get("test/attainable"),
        attainable_lower=metrics.get("test/attainable_lower"),
        attainable_upper=metrics.get("test/attainable_upper"),
        oracle_c_index=metrics.get("test/oracle_c_index"),
        oracle_lower=metrics.get("test/oracle_c_index_lower"),
        oracle_upper=metrics.get("test/oracle_c_index_upper"),
    )


def _strategy(params: dict[str, str]) -> str:
    """The strategy's name, with the rank of adapters."""
    rank = params.get("strategy.rank")
    return f"{params['strategy.name']} r{rank}" if rank else params["strategy.name"]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def read_test_predictions(rows: list[RunRow]) -> dict[str, pl.DataFrame]:
    """Test predictions by run id, for paired differences."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            row.run_id: pl.read_parquet(download(row.run_id, "predictions/test.parquet", Path(folder) / row.run_id))
            for row in rows
        }


def _forest(table: pl.DataFrame) -> Figure:
    scored = table.drop_nulls(["test_c_index", "test_lower", "test_upper"])
    return plots.comparison_plot(
        [
            plots.ForestRow(
                " · ".join(part for part in (row["model"], row["strategy"], row["size"]) if part),
                row["test_c_index"],
                row["test_lower"],
                row["test_upper"],
                is_highlighted=number == 0,
            )
            for number, row in enumerate(scored.iter_rows(named=True))
        ]
    )


def _register(best: RunRow, name: str) -> ModelVersion:
    with tempfile.TemporaryDirectory() as folder:
        version = log_and_register_model(
            best.run_id,
            download(best.run_id, MODEL_FOLDER, Path(folder)),
            name,
            description=f"{best.label}: validation C-index {best.val_c_index:.4f}, test {best.test_c_index:.4f}",
            tags={"fingerprint.cohort": best.cohort_fingerprint},
        )
    set_champion(name, version.version)
    return version


def _summary(texts: dict[str, str], latest: str, best: RunRow, version: ModelVersion) -> str:
    others = len(texts) - 1
    more = f"\n\n{others} more cohort{'s' * (others > 1)}: see the artifacts under `benchmark/`." if others else ""
    return (
        f"### Benchmark of cohort {latest}\n\n{texts[latest]}\n"
        f"Champion (best by validation): `models:/{version.name}@champion`, {best.label}. "
        f"The verdict is that of a paired bootstrap interval of the difference on the same test subjects.{more}"
    )
