"""A dataset that is in MEDS form already: copied and sharded anew, with the same checks as every source.

`path` is the dataset's folder (``data/**/*.parquet``), or a folder of parquet files. The visit's identifier
is in the first of ``visit_id``, ``hadm_id``, ``visit_occurrence_id`` and ``encounter_id`` that is there;
descriptions come from ``metadata/codes.parquet`` where there is one. Other columns are not kept.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from ehrtrack.data.sources._relation import read_files
from ehrtrack.data.sources._table import Event, SourceTable
from ehrtrack.errors import DataError
from ehrtrack.section import Section

_VISIT_COLUMNS = ("visit_id", "hadm_id", "visit_occurrence_id", "encounter_id")


class Config(Section):
    """Nothing to set."""


def tables(connection: duckdb.DuckDBPyConnection, path: Path, config: Config) -> list[SourceTable]:
    """The one table of events."""
    folder = path / "data" if (path / "data").is_dir() else path
    files = sorted(file for file in folder.rglob("*.parquet") if not file.is_dir()) if folder.is_dir() else [path]
    if not files:
        raise DataError(f"no parquet file under {folder}; needed: a MEDS dataset with data/*.parquet")
    events = read_files(connection, files, "data").require("subject_id", "time", "code")
    visit = next((column for column in _VISIT_COLUMNS if events.has(column)), None)
    event = Event(
        code=events.text("code"),
        time=events.time("time"),
        numeric_value=events.number("numeric_value"),
        text_value=events.text("text_value"),
        may_lack_time=True,
    )
    table = SourceTable(
        name="data",
        relation=events,
        subject="subject_id",
        events=(event,),
        visit=visit,
        code_descriptions=_descriptions_query(connection, path / "metadata" / "codes.parquet"),
    )
    return [table]


def _descriptions_query(connection: duckdb.DuckDBPyConnection, path: Path) -> str | None:
    if not path.is_file():
        return None
    codes = read_files(connection, [path], "codes")
    if not codes.has("code") or not codes.has("description"):
        return None
    return f"SELECT {codes.text('code')} AS code, {codes.text('description')} AS description FROM {codes.sql}"
