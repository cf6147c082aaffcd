"""One shard of an import: its candidates read, judged, sorted and written, apart from every other shard."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrtrack.arrays import Ints
from ehrtrack.data.importing.candidates import OPTIONAL_COLUMNS
from ehrtrack.data.importing.judge import (
    BIRTH_CODE,
    SEX_PREFIXES,
    Calendar,
    judge_candidates,
    n_lost_deaths,
    timestamps,
)
from ehrtrack.data.importing.report import DROP_REASONS
from ehrtrack.data.importing.shards import Piece, ShardTask, stable_order

_EVENTS_PER_ROW_GROUP = 250_000
# `meds.schema.DataSchema`, which takes 0.14 s to import, and the visit.
_SCHEMA = pa.schema(
    {
        "subject_id": pa.int64(),
        "time": pa.timestamp("us"),
        "code": pa.string(),
        "numeric_value": pa.float32(),
        "text_value": pa.large_string(),
        "visit_id": pa.string(),
    }
)
# Codes go to the file as numbers into a dictionary, as parquet keeps them; its readers are told of texts.
_WRITTEN_SCHEMA = _SCHEMA.set(2, pa.field("code", pa.dictionary(pa.int32(), pa.string())))
_TOLD_SCHEMA = {"ARROW:schema": b64encode(_SCHEMA.serialize())}


@dataclass(frozen=True)
class ShardAccount:
    """What became of a shard's candidates.

    Attributes
    ----------
    counts : `table_index`, `reason` (place in `DROP_REASONS`, null for the kept), `n`.
    subjects, codes : rows of the task's `subjects` and `codes` that have events in the shard.
    n_lost_deaths : subjects of whom a death was stated and none is kept.
    n_future : events after today.
    """

    out: Path
    counts: pl.DataFrame
    subjects: Ints
    codes: Ints
    n_events: int
    n_births: int
    n_deaths: int
    n_lost_deaths: int
    n_future: int
    first_time: datetime | None
    last_time: datetime | None


def write_shard(task: ShardTask) -> ShardAccount:
    """Write the shard's events, if any is left, in the order of their subjects and times.

    At one time birth is first, death last, else the order is that of the tables, then of the codes.
    """
    codes = pl.read_ipc(task.codes)
    death_code = codes.height - 1
    candidates = _read_candidates(task, codes["number"])
    is_sex = pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in SEX_PREFIXES)
    kept, dropped = judge_candidates(
        candidates,
        n_subjects=task.n_subjects,
        death_code=death_code,
        calendar=Calendar(task.time_zone),
        sex_codes=np.flatnonzero(codes.select(is_sex).to_series().to_numpy()),
    )
    events = _in_order(_without_duplicates(kept), death_code)
    if events.height:
        _write(task, events, codes["code"])
    times = timestamps(events["time"])
    n_of_code = np.bincount(events["code"].to_numpy(), minlength=codes.height)
    return ShardAccount(
        out=task.out,
        counts=_counts(task, dropped, events["table_index"]),
        subjects=_distinct(events["subject"]) + task.first_subject,
        codes=np.flatnonzero(n_of_code),
        n_events=events.height,
        n_births=int(n_of_code[BIRTH_CODE]),
        n_deaths=int(n_of_code[death_code]),
        n_lost_deaths=n_lost_deaths(events, dropped, death_code),
        n_future=int((times > datetime.now(UTC).replace(tzinfo=None)).sum()),
        first_time=times.min(),  # type: ignore[arg-type]
        last_time=times.max(),  # type: ignore[arg-type]
    )


def _distinct(numbers: pl.Series) -> Ints:
    """The different numbers, rising; they are rows of a table, so none is large."""
    return np.flatnonzero(np.bincount(numbers.to_numpy()))


def _read_candidates(task: ShardTask, code_numbers: pl.Series) -> pl.DataFrame:
    """The shard's candidates by subject; `subject` and `code` are rows in the task's subjects (from its first on) and
    codes."""
    subjects = pl.scan_ipc(task.subjects).slice(task.first_subject, task.n_subjects).collect()["number"]
    subject_rows, code_rows = _rows_by_number(subjects), _rows_by_number(code_numbers)

    def read(piece: Piece) -> pl.DataFrame:
        rows = pl.scan_ipc(piece.path).slice(piece.first_row, piece.n_rows).collect()
        return rows.with_columns(
            subject=subject_rows.gather(rows["subject"]),
            code=code_rows.gather(rows["code"]),
            table_index=pl.lit(piece.table_index, pl.UInt8),
        )

    candidates = pl.concat([read(piece) for piece in task.pieces], how="diagonal", rechunk=True)
    subject = candidates["subject"].to_numpy()
    if (subject[1:] >= subject[:-1]).all():
        return candidates
    # What was in the order of time is then so for each subject: that nearly sorts it, and most sources are.
    return candidates[stable_order(subject, task.n_subjects)]


def _rows_by_number(numbers: pl.Series) -> pl.Series:
    """The inverse of a list of numbers: at place `number` the row that it is in."""
    largest = numbers.max()
    assert isinstance(largest, int)
    rows = np.zeros(largest + 1, np.uint32)
    rows[numbers.to_numpy()] = np.arange(len(numbers), dtype=np.uint32)
    return pl.Series(rows)


def _without_duplicates(events: pl.DataFrame) -> pl.DataFrame:
    """The events sorted by all that they say; of those that say the same the first table's is kept."""
    optional = [name for name in OPTIONAL_COLUMNS if name in events.columns]
    keys = ["subject", "time", "code", *optional]
    if "numeric_value" in optional and (events["numeric_value"] == 0).any():
        # -0.0 becomes 0.0, so that what is equal is the same.
        is_zero = pl.col("numeric_value") == 0
        events = events.with_columns(numeric_value=pl.when(is_zero).then(0.0).otherwise("numeric_value"))
    events = _sorted_by_time(events)
    # Only events of one subject at one time are left to be put in order, or can repeat another.
    subject, time = events["subject"].to_numpy(), events["time"].to_numpy()
    is_same = (subject[1:] == subject[:-1]) & (time[1:] == time[:-1])
    rows = np.flatnonzero(np.append(is_same, False) | np.append(False, is_same)).astype(np.uint32)
    if not len(rows):
        return events
    together = events[pl.Series(rows)].with_columns(row=pl.Series(rows))
    together = together.sort(
        *keys, "table_index", nulls_last=[False, False, False, *(True for _ in optional), False], maintain_order=True
    )
    is_repeated = together.select(
        repeated=pl.all_horizontal(pl.col(key).eq_missing(pl.col(key).shift(1)) for key in keys)
    )["repeated"].to_numpy(writable=True)
    is_repeated[0] = False  # there is no row before it; `shift` makes up one that is null throughout
    order = np.arange(events.height, dtype=np.uint32)
    order[rows] = together["row"].to_numpy()
    return events[pl.Series(np.delete(order, rows[is_repeated]))]


def _sorted_by_time(events: pl.DataFrame) -> pl.DataFrame:
    """The events of each subject in the order of time, and of one time in any order."""
    subject, time = events["subject"].to_numpy(), events["time"].to_numpy()
    n_less = int(np.count_nonzero((subject[1:] == subject[:-1]) & (time[1:] < time[:-1])))
    if not n_less:
        return events
    # The stable sort uses the order that is there, and takes a sixth of the time where there is much of it, twice the
    # time where there is none.
    return events.sort("subject", "time", maintain_order=n_less < len(time) // 10)


def _in_order(events: pl.DataFrame, death_code: int) -> pl.DataFrame:
    """The sorted events with those of one time in the order of their tables; birth stays first, death last."""
    if events["table_index"].n_unique() <= 1:
        return events
    return events.sort(
        "subject",
        "time",
        pl.col("code") != BIRTH_CODE,
        pl.col("code") == death_code,
        "table_index",
        maintain_order=True,
    )


def _counts(task: ShardTask, dropped: pl.DataFrame, kept_tables: pl.Series) -> pl.DataFrame:
    """Candidates by table and reason, those that repeat another counted as duplicates."""
    dropped = dropped.group_by("table_index", "reason").agg(n=pl.len().cast(pl.Int64))
    rows = []
    for table in sorted({piece.table_index for piece in task.pieces}):
        n_read = sum(piece.n_rows for piece in task.pieces if piece.table_index == table)
        n_dropped = dropped.filter(pl.col("table_index") == table)["n"].sum()
        n_kept = int((kept_tables == table).sum())
        rows += [(table, None, n_kept), (table, DROP_REASONS.index("exact duplicate"), n_read - n_dropped - n_kept)]
    return pl.concat([dropped, pl.DataFrame(rows, schema=dropped.schema, orient="row")])


def _write(task: ShardTask, events: pl.DataFrame, codes: pl.Series) -> None:
    subject_ids = pl.scan_ipc(task.subjects).slice(task.first_subject, task.n_subjects).collect()["subject_id"]
    columns = {
        "subject_id": subject_ids.gather(events["subject"]).to_arrow(),
        "time": timestamps(events["time"]).to_arrow(),
        "code": _texts(events["code"], codes),
        **{name: events[name].to_arrow() for name in ("text_value", "visit_id") if name in events},
    }
    if "numeric_value" in events:
        columns["numeric_value"] = events["numeric_value"].fill_nan(None).to_arrow()
    arrays = [columns[name] if name in columns else pa.nulls(events.height) for name in _WRITTEN_SCHEMA.names]
    table = pa.table(arrays, _WRITTEN_SCHEMA.names).cast(_WRITTEN_SCHEMA)
    with pq.ParquetWriter(
        task.out,
        _WRITTEN_SCHEMA,
        # A dictionary of values that are mostly distinct saves nothing. lz4 gives files a fifth larger than zstd, and
        # is written and read in half the time.
        compression="lz4",
        use_dictionary=["subject_id", "code", "text_value", "visit_id"],
        # Rows are in the order of subjects: the least and the greatest code of a row group help no reader.
        write_statistics=["subject_id", "time", "numeric_value"],
        store_schema=False,
    ) as file:
        file.write_table(table, row_group_size=_EVENTS_PER_ROW_GROUP)
        file.add_key_value_metadata(_TOLD_SCHEMA)


def _texts(numbers: pl.Series, texts: pl.Series) -> pa.DictionaryArray:
    """Texts by their numbers, as parquet keeps them: no text is laid out row by row."""
    used = _distinct(numbers)
    place = np.zeros(used[-1] + 1, np.int32)
    place[used] = np.arange(len(used), dtype=np.int32)
    places = pl.Series(place[numbers.to_numpy()]).to_arrow()  # Arrow's own way from numpy imports pandas
    return pa.DictionaryArray.from_arrays(places, texts.gather(used).to_arrow().cast(pa.string()))
