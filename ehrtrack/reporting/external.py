"""Models of the study on subjects of other datasets, beside what they came to on the study's own test subjects."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ehrtrack.evaluation.metric_table import interval_text, with_bounds
from ehrtrack.privacy import count_text
from ehrtrack.reporting.comparison import INTERVAL
from ehrtrack.reporting.document import Column, Section, Table
from ehrtrack.reporting.material import Material
from ehrtrack.runlog import TEST
from ehrtrack.tracking.client.queries import RunRecord
from ehrtrack.tracking.names import EVALUATED_ON, MODEL_RUN

_CALIBRATION = {"observed_to_expected": ("observed / expected", ".2f"), "calibration_slope": ("slope", ".2f")}


def external_section(material: Material) -> Section | None:
    """A line for each model and dataset that it was scored on by `ehrtrack evaluate`; None where there is none."""
    if not material.external:
        return None
    frame = pl.DataFrame([_line(record, material) for record in material.external]).sort("dataset", "configuration")
    title = material.metric.title
    columns = (
        Column("dataset", lambda row: row["dataset"]),
        Column("configuration", lambda row: row["configuration"]),
        Column("subjects", lambda row: row["subjects"], is_right=True),
        Column("events", lambda row: row["events"], is_right=True),
        Column(f"here, {title} {INTERVAL}", lambda row: row["here"], is_right=True),
        Column(f"there, {title} {INTERVAL}", lambda row: row["there"], is_right=True),
        *map(_calibration_column, _CALIBRATION),
    )
    table = Table(
        "external",
        "Models scored on labelled subjects of other datasets (there), and on the study's own test subjects (here).",
        frame,
        columns,
        notes=("Observed / expected: above 1 the risks are too low there. No choice was made by these scores.",),
    )
    return Section("external", "External validation", (table,))


def _calibration_column(key: str) -> Column:
    return Column(f"there, {_CALIBRATION[key][0]}", lambda row: row[key], is_right=True)


def _line(record: RunRecord, material: Material) -> Mapping[str, str]:
    model_run = record.tags[MODEL_RUN]
    label, row = next((of.label, row) for of in material.configurations for row in of.rows if row.run_id == model_run)
    here, there = row.metrics, record.metrics
    names = with_bounds(material.metric.named(TEST))
    return {
        "dataset": record.tags.get(EVALUATED_ON, ""),
        "configuration": label,
        "subjects": _count(there, "cohort/n_test"),
        "events": _count(there, "cohort/n_test_events"),
        "here": interval_text(here, *names, form=material.metric.form),
        "there": interval_text(there, *names, form=material.metric.form),
        **{
            key: interval_text(there, *with_bounds(f"{TEST}/{key}"), form=form)
            for key, (_, form) in _CALIBRATION.items()
        },
        "run": record.run_id,
        "model_run": model_run,
    }


def _count(metrics: Mapping[str, float], name: str) -> str:
    """A number of subjects; a few are not logged."""
    return count_text(int(metrics[name])) if name in metrics else ""
