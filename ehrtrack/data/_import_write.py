"""One shard of an import: its candidates read, judged, sorted and written, apart from every other shard."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from meds.schema import DataSchema

from ehrtrack.data._import_events import OPTIONAL_COLUMNS
from ehrtrack.data._import_judge import BIRTH_CODE, judge_candidates
from ehrtrack.data._import_shards import Piece, ShardTask, stable_order
from ehrtrack.data.events import EVENT_SCHEMA
from ehrtrack.data.import_report import DROP_REASONS

_EVENTS_PER_ROW_GROUP = 250_000
_SCHEMA = pa.schema([*DataSchema.schema(), pa.field("visit_id", pa.string())])


@dataclass(frozen=True)
class ShardAccount:
    """What became of a shard's candidates.

    Attributes
    ----------
    counts : `table_index`, `reason` (place in `DROP_REASONS`, null for the kept), `n`.
    subjects, codes : rows of the task's `subjects` and `codes` that have events in the shard.
    """

    out: Path
    counts: pl.DataFrame
    subjects: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    n_events: int
    n_births: int
    n_deaths: int
    first_time: datetime | None
    last_time: datetime | None


def write_shard(task: ShardTask) -> ShardAccount:
    """Write the shard's events, if any is left, in the order of their subjects and times.

    At one time birth is first, death last, else the order is that of the tables, then of the codes.
    """
    codes = pl.read_ipc(task.codes)
    death_code = codes.height - 1
    candidates = _read_candidates(task, codes["number"])
    kept, dropped = judge_candidates(candidates, n_subjects=task.n_subjects, death_code=death_code)
    events = _in_order(_without_duplicates(kept), death_code)
    if events.height:
        _write(task, events, codes["code"])
    times = events["time"]
    return ShardAccount(
        out=task.out,
        counts=_counts(task, dropped, events["table_index"]),
        subjects=_distinct(events["subject"]) + task.first_subject,
        codes=_distinct(events["code"]),
        n_events=events.height,
        n_births=events.filter(pl.col("code") == BIRTH_CODE).height,
        n_deaths=events.filter(pl.col("code") == death_code).height,
        first_time=times.min(),  # type: ignore[arg-type]
        last_time=times.max(),  # type: ignore[arg-type]
    )


def _distinct(numbers: pl.Series) -> npt.NDArray[np.int64]:
    """The different numbers, in an array of their own: the result of `unique` holds memory for all rows."""
    return np.array(numbers.unique().sort().to_numpy(), dtype=np.int64)


def _read_candidates(task: ShardTask, code_numbers: pl.Series) -> pl.DataFrame:
    """The shard's candidates; `subject` and `code` are rows in the task's subjects (from its first on) and codes."""
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
    if _is_nearly_ascending(candidates["subject"]):
        return candidates
    # What was in the order of time is then so for each subject: that nearly sorts it, and most sources are.
    return candidates[stable_order(candidates["subject"].to_numpy(), task.n_subjects)]


def _is_nearly_ascending(subject: pl.Series, time: pl.Series | None = None) -> bool:
    """Whether hardly any row is less than the one before it, by subject, then by time if it is given."""
    numbers = subject.to_numpy()
    is_less = numbers[1:] < numbers[:-1]
    if time is not None:
        times = time.to_physical().fill_null(np.iinfo(np.int64).min).to_numpy()
        is_less |= (numbers[1:] == numbers[:-1]) & (times[1:] < times[:-1])
    return int(np.count_nonzero(is_less)) < len(numbers) // 10


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
    if "numeric_value" in optional:
        # -0.0 becomes 0.0, so that what is equal is the same.
        is_zero = pl.col("numeric_value") == 0
        events = events.with_columns(numeric_value=pl.when(is_zero).then(0.0).otherwise("numeric_value"))
    events = events.sort(
        *keys,
        "table_index",
        nulls_last=[False, False, False, *(True for _ in optional), False],
        # The stable sort uses the order that is there, and takes a sixth of the time where there is much of it, twice
        # the time where there is none. The order is total: both give the same.
        maintain_order=_is_nearly_ascending(events["subject"], events["time"]),
    )
    is_repeated = events.select(
        repeated=pl.all_horizontal(pl.col(key).eq_missing(pl.col(key).shift(1)) for key in keys)
    )["repeated"]
    # The first row has no row before it to repeat; `shift` makes up one that is null throughout.
    is_repeated = is_repeated & (pl.int_range(events.height, eager=True) > 0)
    return events.filter(~is_repeated) if is_repeated.any() else events


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
    columns = events.with_columns(
        subject_id=subject_ids.gather(events["subject"]),
        **{name: pl.lit(None, EVENT_SCHEMA[name]) for name in OPTIONAL_COLUMNS if name not in events.columns},
    )
    code = _texts(events["code"], codes)
    arrays = [code if name == "code" else columns[name].to_arrow() for name in EVENT_SCHEMA]
    table = pa.table(arrays, list(EVENT_SCHEMA)).cast(_SCHEMA)
    DataSchema.validate(table)
    pq.write_table(
        table,
        task.out,
        row_group_size=_EVENTS_PER_ROW_GROUP,
        # Sorted times are small as differences; a dictionary of values that are mostly distinct saves nothing. So
        # written, lz4 gives smaller files than zstd does without, and is read in three quarters of the time.
        compression="lz4",
        use_dictionary=["subject_id", "code", "text_value", "visit_id"],
        column_encoding={"time": "DELTA_BINARY_PACKED"},
    )


def _texts(numbers: pl.Series, texts: pl.Series) -> pa.StringArray:
    """Texts by their numbers; faster than `gather`, whose texts Arrow would have to lay out anew."""
    places = numbers.cast(pl.Int32).to_arrow()
    return pa.DictionaryArray.from_arrays(places, texts.to_arrow().cast(pa.string())).cast(pa.string())
