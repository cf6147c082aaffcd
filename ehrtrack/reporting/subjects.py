"""Who is in the study: the flow of subjects, and what they are like, by split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from ehrtrack import plots
from ehrtrack.privacy import count_text
from ehrtrack.reporting.document import Chart, Column, Flow, Prose, Row, Section, Step, Table
from ehrtrack.reporting.material import Material
from ehrtrack.tracking.names import PRETRAINING_RECORDS

SPLIT_NAMES = {"train": "training", "validation": "validation", "test": "test"}


def flow_section(material: Material) -> Section | None:
    """How many subjects the data have, who was left out and why, and how the rest was split."""
    attrition, summary = material.cohort.get("attrition"), material.cohort.get("summary")
    if attrition is None or summary is None:
        return None
    flow = Flow(tuple(_steps(attrition)), tuple(_part(row) for row in summary.iter_rows(named=True)))
    n_cohorts = len({repeat.row.cohort_fingerprint for one in material.configurations for repeat in one.repeats})
    said = "Counts of fewer than 11, and those that would tell them, are not shown."
    if n_cohorts > 1:
        said += f" Runs of the study have {n_cohorts} cohorts or splits; this is the one of {material.shown_run}."
    said += _pretraining(material)
    chart = Chart("flow", "Flow of subjects.", lambda: plots.attrition_flow(attrition, summary), is_file_only=True)
    return Section("subjects", "Flow of subjects", (flow, Prose((said,)), chart, _follow_up(summary)))


def _pretraining(material: Material) -> str:
    """What the pretrainings that fine-tunings start from read of these subjects, as those say."""
    records = [record for record in material.records.values() if record.kind == "finetune"]
    said = sorted({record.tags[PRETRAINING_RECORDS] for record in records if PRETRAINING_RECORDS in record.tags})
    return f" Pretraining read records {'; or '.join(said)}." if said else ""


def _split_name(name: str) -> str:
    return SPLIT_NAMES.get(name, name)


def _steps(attrition: pl.DataFrame) -> list[Step]:
    steps = []
    for number, row in enumerate(attrition.iter_rows(named=True)):
        left = f"{count_text(row['n_subjects'])} subjects"
        if "n_times" in row:
            left += f" at {count_text(row['n_times'])} prediction times"
        is_dropping = number and row["n_dropped"] not in (0, "0")
        steps.append(Step(row["step"], left, f"{count_text(row['n_dropped'])} left out" if is_dropping else ""))
    return steps


def _part(row: Row) -> Step:
    share = "" if row["event_rate"] is None else f", {count_text(row['n_events'])} events ({row['event_rate']:.1%})"
    return Step(_split_name(row["split"]), f"{count_text(row['n_subjects'])} subjects{share}")


def _follow_up(summary: pl.DataFrame) -> Table:
    """All that a run logs of its splits; days and rates with one digit."""
    known = {"split": "split", "n_subjects": "subjects", "n_events": "events", "event_rate": "share with an event"}
    known |= {"median_follow_up_days": "median follow-up (days)", "person_years": "person-years"}
    known |= {"n_times": "prediction times", "n_subjects_with_event": "subjects with an event"}

    def title(name: str) -> str:
        return known.get(name, name.removeprefix("n_").replace("_", " "))

    def column(name: str) -> Column:
        if name == "split":
            return Column("split", lambda row: _split_name(row["split"]))
        return Column(title(name), lambda row: _value(name, row[name]), is_right=True)

    return Table(
        "splits",
        "Subjects, events and follow-up by split.",
        summary,
        tuple(column(name) for name in summary.columns),
    )


def _value(name: str, value: Any) -> str:
    if name.startswith("n_"):
        return count_text(value)
    if value is None:
        return "–"
    return f"{value:.1%}" if name.endswith("rate") else f"{value:,.0f}" if isinstance(value, float) else str(value)


def table_one_section(material: Material) -> Section | None:
    """Table 1; None where the study's run has none."""
    frame = material.table_one
    if frame is None:
        return None
    names = [name for name in frame.columns if name not in ("characteristic", "level")]
    columns = (
        Column("characteristic", lambda row: ": ".join(row[name] for name in ("characteristic", "level") if row[name])),
        *(Column(_split_title(name), _text_of(name), is_right=True) for name in names),
    )
    table = Table(
        "table_one",
        "Characteristics of the subjects at their index date, by split: median [quartiles] or count (%).",
        frame,
        columns,
        notes=(
            "Subjects with several prediction times are described at the first. SMD: standardised mean difference "
            "between training and test subjects; no p-values, since splits are drawn.",
        ),
    )
    return Section("table-one", "Table 1: characteristics", (table,))


def _text_of(name: str) -> Any:
    return lambda row: "" if row[name] is None else str(row[name])


def _split_title(name: str) -> str:
    return {"overall": "all", "smd": "SMD"}.get(name) or _split_name(name)


def cohort_size(cohort: Mapping[str, pl.DataFrame]) -> str:
    """How many subjects the cohort has, as text; empty where it is not known."""
    attrition = cohort.get("attrition")
    return "" if attrition is None or attrition.is_empty() else count_text(attrition["n_subjects"][-1])
