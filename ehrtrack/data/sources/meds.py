"""A dataset that is in MEDS form already: copied and sharded anew, with the same checks as every source.

`path` is the dataset's folder (``data/**/*.parquet``), or a folder of parquet files. The visit's identifier
is in the first of ``visit_id``, ``hadm_id``, ``visit_occurrence_id`` and ``encounter_id`` that is there;
descriptions come from ``metadata/codes.parquet`` where there is one. Other columns are not kept.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from ehrtrack.data.sources._relation import describe, quote_text, read_files
from ehrtrack.data.sources._table import NULL, Event, SourceTable
from ehrtrack.errors import DataError
from ehrtrack.section import Section

_VISIT_COLUMNS = ("visit_id", "hadm_id", "visit_occurrence_id", "encounter_id")


class Config(Section):
    """Nothing to set."""


def tables(connection: duckdb.DuckDBPyConnection, path: Path, config: Config) -> list[SourceTable]:
    """The one table of events."""
    folder = path / "data" if (path / "data").is_dir() else path
    files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else [path]
    if not files:
        raise DataError(f"no parquet file under {folder}; needed: a MEDS dataset with data/*.parquet")
    events = read_files(connection, files, "data").require("subject_id", "time", "code")
    visit = next((column for column in _VISIT_COLUMNS if events.has(column)), None)
    description = NULL
    codes = path / "metadata" / "codes.parquet"
    if codes.is_file() and read_files(connection, [codes], "codes").has("description"):
        described = (
            "(SELECT code AS described_code, min(description) AS code_description "
            f"FROM read_parquet({quote_text(str(codes))}) GROUP BY code)"
        )
        events = describe(
            connection, "data", f"(SELECT * FROM {events.sql} LEFT JOIN {described} ON code = described_code)"
        )
        description = events.text("code_description")
    event = Event(
        code=events.text("code"),
        time=events.time("time"),
        numeric_value=events.number("numeric_value"),
        text_value=events.text("text_value"),
        description=description,
        may_lack_time=True,
    )
    return [SourceTable(name="data", relation=events, subject="subject_id", events=(event,), visit=visit)]
