"""One shard of an import: its candidates judged, sorted and written, apart from every other shard."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from meds.schema import DataSchema

from ehrtrack.data._import_events import OPTIONAL_COLUMNS, reason_number
from ehrtrack.data._import_shards import Piece, ShardTask
from ehrtrack.data.events import EVENT_SCHEMA
from ehrtrack.data.import_report import DROP_REASONS

_EVENTS_PER_ROW_GROUP = 250_000
_SCHEMA = pa.schema([*DataSchema.schema(), pa.field("visit_id", pa.string())])
_BIRTH_CODE = 0


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
    subjects: pl.Series
    codes: pl.Series
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
    lives = _lives(candidates, task.n_subjects, death_code)
    reason = candidates.select(reason=_reason(candidates["subject"], lives, death_code))["reason"]
    passed = candidates if reason.null_count() == len(reason) else candidates.filter(reason.is_null())
    events = _in_order(_without_duplicates(_with_lives(passed, lives, death_code)), death_code)
    if events.height:
        _write(task, events, codes["code"])
    times = events["time"]
    return ShardAccount(
        out=task.out,
        counts=_counts(task, candidates["table_index"], reason, events["table_index"]),
        subjects=events["subject"].unique() + task.first_subject,
        codes=events["code"].unique(),
        n_events=events.height,
        n_births=events.filter(pl.col("code") == _BIRTH_CODE).height,
        n_deaths=events.filter(pl.col("code") == death_code).height,
        first_time=times.min(),  # type: ignore[arg-type]
        last_time=times.max(),  # type: ignore[arg-type]
    )


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

    return pl.concat([read(piece) for piece in task.pieces], how="diagonal")


def _rows_by_number(numbers: pl.Series) -> pl.Series:
    """The inverse of a list of numbers: at place `number` the row that it is in."""
    largest = numbers.max()
    assert isinstance(largest, int)
    rows = np.zeros(largest + 1, np.uint32)
    rows[numbers.to_numpy()] = np.arange(len(numbers), dtype=np.uint32)
    return pl.Series(rows)


def _lives(candidates: pl.DataFrame, n_subjects: int, death_code: int) -> pl.DataFrame:
    """By subject, a row each: birth and death, the days on which they are stated to be, and the days after.

    Birth and death are moved within their day to enclose that day's events.
    """
    is_life = pl.col("code").is_in([_BIRTH_CODE, death_code])
    facts = candidates.lazy().filter(is_life, pl.col("time").is_not_null()).select("subject", "time", "code").collect()
    births = facts.filter(pl.col("code") == _BIRTH_CODE).group_by("subject").agg(birth=pl.col("time").min())
    day = pl.col("time").dt.truncate("1d")
    deaths = (
        facts.filter(pl.col("code") == death_code)
        .join(births, on="subject", how="left")
        .filter(pl.col("birth").is_null() | (pl.col("time") >= pl.col("birth").dt.truncate("1d")))
        .group_by("subject")
        .agg(death=pl.col("time").filter(day == day.min()).max())
    )
    lives = (
        pl.DataFrame({"subject": pl.Series(range(n_subjects), dtype=pl.UInt32)})
        .join(births, on="subject", how="left", maintain_order="left")
        .join(deaths, on="subject", how="left", maintain_order="left")
        .with_columns(
            birth_day=pl.col("birth").dt.truncate("1d"),
            death_day=pl.col("death").dt.truncate("1d"),
        )
        .with_columns(
            after_birth_day=pl.col("birth_day") + pl.duration(days=1),
            after_death_day=pl.col("death_day") + pl.duration(days=1),
        )
    )
    subject, time = candidates["subject"], candidates["time"]
    edges = []
    for name, which in (("birth", "min"), ("death", "max")):
        is_that_day = (time >= lives[f"{name}_day"].gather(subject)) & (
            time < lives[f"after_{name}_day"].gather(subject)
        )
        days_events = candidates.select("subject", "time", "code").filter(is_that_day).filter(~is_life)
        edges.append(days_events.group_by("subject").agg(getattr(pl.col("time"), which)().alias(f"edge_of_{name}")))
    for edge in edges:
        lives = lives.join(edge, on="subject", how="left", maintain_order="left")
    is_date_alone = pl.col("death") == pl.col("death_day")
    return lives.with_columns(
        birth=pl.min_horizontal("birth", "edge_of_birth"),
        death=pl.when(is_date_alone).then(pl.max_horizontal("death", "edge_of_death")).otherwise("death"),
    )


def _reason(subject: pl.Series, lives: pl.DataFrame, death_code: int) -> pl.Expr:
    """Why a candidate is dropped, null if it is not."""

    def of_subject(name: str) -> pl.Expr:
        return pl.lit(lives[name].gather(subject))

    is_birth, is_death = pl.col("code") == _BIRTH_CODE, pl.col("code") == death_code
    time = pl.col("time")
    return (
        pl.when(is_birth & (time >= of_subject("after_birth_day")))
        .then(reason_number("conflicting birth or death"))
        .when(time < of_subject("birth_day"))
        .then(reason_number("before birth"))
        .when(is_death & (time >= of_subject("after_death_day")))
        .then(reason_number("conflicting birth or death"))
        .when(~is_death & (time > of_subject("death")))
        .then(reason_number("after death"))
    )


def _with_lives(events: pl.DataFrame, lives: pl.DataFrame, death_code: int) -> pl.DataFrame:
    """The events with births and deaths at the time of the life, and nothing else said of them."""
    is_life = events["code"].is_in([_BIRTH_CODE, death_code])
    life = events.filter(is_life).select("subject", "code", "table_index")
    life_time = (
        pl.when(pl.col("code") == _BIRTH_CODE)
        .then(pl.lit(lives["birth"].gather(life["subject"])))
        .otherwise(pl.lit(lives["death"].gather(life["subject"])))
    )
    others = events.filter(~is_life)
    if "numeric_value" in others.columns:
        others = others.with_columns(pl.col("numeric_value") + 0.0)  # -0.0 becomes 0.0, so that equals are the same
    return pl.concat([others, life.with_columns(time=life_time)], how="diagonal")


def _without_duplicates(events: pl.DataFrame) -> pl.DataFrame:
    """The events sorted by all that they say; of those that say the same the first table's is kept."""
    optional = [name for name in OPTIONAL_COLUMNS if name in events.columns]
    keys = ["subject", "time", "code", *optional]
    # The stable sort uses the order that is there, and takes a sixth of the time where there is much of it, twice
    # the time where there is none. The order is total: both give the same.
    is_nearly_sorted = (events["subject"] < events["subject"].shift(1)).sum() < events.height // 10
    events = events.sort(
        *keys,
        "table_index",
        nulls_last=[False, False, False, *(True for _ in optional), False],
        maintain_order=is_nearly_sorted,
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
        pl.col("code") != _BIRTH_CODE,
        pl.col("code") == death_code,
        "table_index",
        maintain_order=True,
    )


def _counts(task: ShardTask, tables: pl.Series, reason: pl.Series, kept_tables: pl.Series) -> pl.DataFrame:
    """Candidates by table and reason, those that repeat another counted as duplicates."""
    judged = pl.DataFrame({"table_index": tables, "reason": reason}).drop_nulls()
    dropped = judged.group_by("table_index", "reason").agg(n=pl.len().cast(pl.Int64))
    rows = []
    for table in sorted({piece.table_index for piece in task.pieces}):
        n_read = sum(piece.n_rows for piece in task.pieces if piece.table_index == table)
        n_dropped = dropped.filter(pl.col("table_index") == table)["n"].sum()
        n_kept = int((kept_tables == table).sum())
        rows += [(table, None, n_kept), (table, DROP_REASONS.index("exact duplicate"), n_read - n_dropped - n_kept)]
    return pl.concat([dropped, pl.DataFrame(rows, schema=dropped.schema, orient="row")])


def _write(task: ShardTask, events: pl.DataFrame, codes: pl.Series) -> None:
    subject_ids = pl.scan_ipc(task.subjects).slice(task.first_subject, task.n_subjects).collect()["subject_id"]
    frame = events.with_columns(
        subject_id=subject_ids.gather(events["subject"]),
        code=codes.gather(events["code"]),
        **{name: pl.lit(None, EVENT_SCHEMA[name]) for name in OPTIONAL_COLUMNS if name not in events.columns},
    )
    table = frame.select(list(EVENT_SCHEMA)).to_arrow().cast(_SCHEMA)
    DataSchema.validate(table)
    # A dictionary of times or numbers, most of which are distinct, costs much and saves nothing.
    repetitive = ["subject_id", "code", "text_value", "visit_id"]
    pq.write_table(table, task.out, compression="zstd", use_dictionary=repetitive, row_group_size=_EVENTS_PER_ROW_GROUP)
