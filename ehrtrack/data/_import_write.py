"""Writing the accepted events of an import as a MEDS dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from meds.schema import CodeMetadataSchema, DataSchema, DatasetMetadataSchema

_EVENTS_PER_BATCH = 100_000
_DATA_SCHEMA = pa.schema([*DataSchema.schema(), pa.field("visit_id", pa.string())])
_SUBJECTS_SCHEMA = pa.schema([pa.field("source_id", pa.string()), pa.field("subject_id", pa.int64())])


@dataclass(frozen=True)
class Totals:
    """What the written dataset holds."""

    n_subjects: int
    n_events: int
    n_codes: int
    n_births: int
    n_deaths: int
    first_time: datetime | None
    last_time: datetime | None
    n_shards: int


def write_dataset(connection: duckdb.DuckDBPyConnection, folder: Path, source: str, events_per_shard: int) -> Totals:
    """Write `accepted` as ``data/*.parquet`` and its metadata into `folder`."""
    # Without this DuckDB may hand out sorted rows in the order its threads finish.
    connection.execute("SET preserve_insertion_order = true")
    (folder / "data").mkdir()
    (folder / "metadata").mkdir()
    n_shards = 0
    for first, last in _shard_bounds(connection, events_per_shard):
        _write_shard(connection, folder / "data" / f"{n_shards}.parquet", first, last)
        n_shards += 1
    _write_codes(connection, folder / "metadata" / "codes.parquet")
    _write_subjects(connection, folder / "metadata" / "subjects.parquet")
    _write_description(folder / "metadata" / "dataset.json", source)
    row = connection.execute(
        """SELECT count(DISTINCT subject_id), count(*), count(DISTINCT code),
            count(*) FILTER (code = 'MEDS_BIRTH'), count(*) FILTER (code = 'MEDS_DEATH'), min(time), max(time)
        FROM accepted"""
    ).fetchone()
    assert row is not None
    n_subjects, n_events, n_codes, n_births, n_deaths, first_time, last_time = row
    return Totals(
        n_subjects=n_subjects,
        n_events=n_events,
        n_codes=n_codes,
        n_births=n_births,
        n_deaths=n_deaths,
        first_time=first_time,
        last_time=last_time,
        n_shards=n_shards,
    )


def _shard_bounds(connection: duckdb.DuckDBPyConnection, events_per_shard: int) -> list[tuple[int, int]]:
    """First and last subject of each shard, so that a subject is in one shard alone."""
    return connection.execute(
        """SELECT min(subject_id), max(subject_id) FROM (
            SELECT subject_id, (sum(n) OVER (ORDER BY subject_id) - n) // ? AS shard
            FROM (SELECT subject_id, count(*) AS n FROM accepted GROUP BY subject_id)
        ) GROUP BY shard ORDER BY 1""",
        [events_per_shard],
    ).fetchall()


def _write_shard(connection: duckdb.DuckDBPyConnection, path: Path, first: int, last: int) -> None:
    """One shard in a determined order; at one time birth is first, death last, else as in the source."""
    reader = connection.sql(
        """SELECT subject_id, time, code, numeric_value, text_value, visit_id FROM accepted
        WHERE subject_id BETWEEN ? AND ?
        ORDER BY subject_id, time NULLS FIRST, code = 'MEDS_BIRTH' DESC, code = 'MEDS_DEATH', table_index,
            code, numeric_value, text_value, visit_id""",
        params=[first, last],
    ).to_arrow_reader(_EVENTS_PER_BATCH)
    last_key: tuple[int, int] | None = None
    with pq.ParquetWriter(path, _DATA_SCHEMA, compression="zstd") as writer:
        for batch in _batches(reader):
            table = batch.cast(_DATA_SCHEMA)
            DataSchema.validate(table)
            last_key = _check_order(table, last_key)
            writer.write_table(table)


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows in tables of one size, however DuckDB's threads cut them: equal data, equal bytes."""
    held: list[pa.Table] = []
    n_held = 0
    for batch in reader:
        held.append(pa.Table.from_batches([batch]))
        n_held += batch.num_rows
        while n_held >= _EVENTS_PER_BATCH:
            rows = pa.concat_tables(held)
            yield rows.slice(0, _EVENTS_PER_BATCH).combine_chunks()
            held, n_held = [rows.slice(_EVENTS_PER_BATCH)], n_held - _EVENTS_PER_BATCH
    if n_held:
        yield pa.concat_tables(held).combine_chunks()


def _check_order(table: pa.Table, last_key: tuple[int, int] | None) -> tuple[int, int]:
    """Check that rows ascend by subject and time, no time first, also from the batch before; the last row's key.

    MEDS demands it, its schema cannot say it, and DuckDB has options under which an ORDER BY is lost.
    """
    no_time = np.iinfo(np.int64).min
    subject = table["subject_id"].to_numpy()
    moment = table["time"].cast(pa.int64()).fill_null(no_time).to_numpy()
    if last_key is not None:
        subject, moment = np.append(last_key[0], subject), np.append(last_key[1], moment)
    is_ascending = (subject[1:] > subject[:-1]) | ((subject[1:] == subject[:-1]) & (moment[1:] >= moment[:-1]))
    if not is_ascending.all():
        raise RuntimeError("a shard's events are not in order of subject and time; this is a bug in the import")
    return int(subject[-1]), int(moment[-1])


def _write_codes(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Every code that is used, with its description; of several descriptions the first in the alphabet."""
    rows = connection.execute(
        """SELECT code, description FROM (SELECT DISTINCT code FROM accepted)
        LEFT JOIN (SELECT code, min(description) AS description FROM candidate GROUP BY code) USING (code)
        ORDER BY code"""
    ).fetchall()
    codes = pa.table(
        {
            "code": [row[0] for row in rows],
            "description": [row[1] for row in rows],
            "parent_codes": [None] * len(rows),
        },
        schema=CodeMetadataSchema.schema(),
    )
    CodeMetadataSchema.validate(codes)
    pq.write_table(codes, path)


def _write_subjects(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Which of the source's identifiers each subject had."""
    reader = connection.sql(
        """SELECT source_id, subject_id FROM subject
        WHERE subject_id IN (SELECT subject_id FROM accepted) ORDER BY subject_id"""
    ).to_arrow_reader(_EVENTS_PER_BATCH)
    with pq.ParquetWriter(path, _SUBJECTS_SCHEMA) as writer:
        for batch in _batches(reader):
            writer.write_table(batch.cast(_SUBJECTS_SCHEMA))


def _write_description(path: Path, source: str) -> None:
    description = {
        "dataset_name": source,
        "etl_name": f"ehrtrack import {source}",
        "etl_version": version("ehrtrack"),
        "meds_version": version("meds"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "raw_source_id_columns": ["visit_id"],
    }
    DatasetMetadataSchema.validate(description)
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
