"""The events of one shard in memory: flat arrays, sorted by subject and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrtrack.arrays import Bools, Float32s, Int32s, Ints
from ehrtrack.data.events import EVENT_SCHEMA
from ehrtrack.data.tables import READ_ERRORS
from ehrtrack.errors import DataError

NO_TIME = np.iinfo(np.int64).min
"""The time of static facts: as in numpy's NaT, before all others."""
FIRST_TIME_US = int(np.datetime64("0001-01-01", "us").astype(np.int64))
LAST_TIME_US = int(np.datetime64("9999-12-31T23:59:59.999999", "us").astype(np.int64))

MOST_HELD_BYTES = 160_000_000
"""What `holding_shards` keeps at most: about 6.5 million events."""

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Histories:
    """E events of the subjects of a shard, sorted by subject and time, static facts first.

    Attributes
    ----------
    time_us : microseconds since 1970, `NO_TIME` for static facts
    code : index into `codes`
    value : NaN where there is none
    visit_id : the source's encounter, null where there is none; None if it was not read
    """

    subject_id: Ints  # (E,)
    time_us: Ints  # (E,)
    code: Int32s  # (E,)
    value: Float32s  # (E,)
    codes: tuple[str, ...]
    visit_id: pl.Series | None = None  # (E,)

    def __len__(self) -> int:
        return len(self.subject_id)

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays with an entry an event."""
        n_bytes = sum(array.nbytes for array in (self.subject_id, self.time_us, self.code, self.value))
        return n_bytes + (0 if self.visit_id is None else int(self.visit_id.estimated_size()))

    @cached_property
    def starts(self) -> Ints:
        """(S,) the first event of each of the S subjects."""
        return run_starts(self.subject_id)

    @cached_property
    def subjects(self) -> Ints:
        """(S,) the subjects, rising."""
        return self.subject_id[self.starts]

    def spread(self, per_subject: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """(E,) the value of each event's subject, from (S,) values."""
        return np.repeat(per_subject, np.diff(self.starts, append=len(self)))

    def earliest(self, code: str, until_us: Ints, among: Bools | None = None) -> Ints:
        """(S,) the first time of a code at or before each subject's `until_us`; the largest integer where none is.

        Parameters
        ----------
        among : (E,) the events that are looked at; None for all
        """
        first = np.full(len(self.starts), np.iinfo(np.int64).max)
        if code in self.codes:
            event = np.flatnonzero(self.code == self.codes.index(code))
            if among is not None:
                event = event[among[event]]
            subject = np.searchsorted(self.starts, event, side="right") - 1
            time_us = self.time_us[event]
            counts = (time_us != NO_TIME) & (time_us <= until_us[subject])
            np.minimum.at(first, subject[counts], time_us[counts])
        return first


def read_shard(shard: Path, *, has_visit_ids: bool = False) -> Histories:
    """The events of a shard; those without a code are left out.

    Codes are read as parquet keeps them, numbers into a dictionary, so that no text is handled row by row.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    held = _HELD.get()
    if held is None:
        return _decode(shard, has_visit_ids=has_visit_ids)
    key = (shard, shard.stat().st_mtime_ns if shard.is_file() else 0, has_visit_ids)
    if key not in held:
        events = _decode(shard, has_visit_ids=has_visit_ids)
        # The first shards stay, not the last: the next pass begins with them.
        if events.n_bytes + sum(other.n_bytes for other in held.values()) > MOST_HELD_BYTES:
            return events
        held[key] = events
    return held[key]


@contextmanager
def holding_shards() -> Iterator[None]:
    """Within the block this process keeps the shards that it reads, as far as they fit into `MOST_HELD_BYTES`.

    Each of the passes over a small dataset then finds them decoded. Worker processes keep nothing.
    """
    token = _HELD.set({})
    try:
        yield
    finally:
        _HELD.reset(token)


_HELD: ContextVar[dict[tuple[Path, int, bool], Histories] | None] = ContextVar("held_shards", default=None)


def _decode(shard: Path, *, has_visit_ids: bool) -> Histories:
    wanted = ["subject_id", "time", "code", "numeric_value", *(["visit_id"] if has_visit_ids else [])]
    try:
        with pq.ParquetFile(shard, read_dictionary=["code"]) as file:
            table = file.read([name for name in wanted if name in file.schema_arrow.names], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shard} cannot be read as parquet ({error}); import the data again") from error
    try:
        events = _histories(table, has_visit_ids=has_visit_ids)
    except READ_ERRORS as error:
        raise DataError(f"{shard} cannot be read ({error}); import the data again") from error
    check_times(events.time_us, f"{shard}: events")
    return events


def check_times(time_us: Ints, what: str) -> None:
    """Make sure that times are of the years 1 to 9999: no calendar here knows others, and what holds them is damaged.

    Raises
    ------
    DataError
        If some are not, with how many.
    """
    n_wrong = int(((time_us != NO_TIME) & ((time_us < FIRST_TIME_US) | (time_us > LAST_TIME_US))).sum())
    if n_wrong:
        raise DataError(
            f"{what}: {n_wrong} of {len(time_us)} times are before the year 1 or after 9999; they are damaged, or in "
            "another unit than microseconds since 1970: correct them, or import the data again"
        )


@contextmanager
def damage_named(shards: Sequence[Path]) -> Iterator[None]:
    """Where a query over shards fails within the block, the shard that cannot be read is named.

    Raises
    ------
    DataError
        If one of them is damaged; else whatever was raised.
    """
    try:
        yield
    except READ_ERRORS:
        for shard in shards:
            _decode(shard, has_visit_ids=True)
            _read_as_queries_do(shard)
        raise


def _read_as_queries_do(shard: Path) -> None:
    try:
        names = [name for name in pl.read_parquet_schema(shard) if name in EVENT_SCHEMA]
        frame = pl.read_parquet(shard, columns=names)
        frame.with_columns(pl.col(name).cast(EVENT_SCHEMA[name]) for name in names)
    except READ_ERRORS as error:
        raise DataError(f"{shard} cannot be read ({error}); import the data again") from error


def histories_of(events: pl.DataFrame | pl.LazyFrame, *, has_visit_ids: bool = True) -> Histories:
    """The events of a frame."""
    frame = events.collect() if isinstance(events, pl.LazyFrame) else events
    return _histories(frame.to_arrow(), has_visit_ids=has_visit_ids)


def run_starts(values: npt.NDArray[np.generic]) -> Ints:
    """Where runs of equal values begin."""
    is_first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    return np.flatnonzero(is_first)


def distinct(numbers: Ints, bound: int) -> tuple[Ints, Ints]:
    """The different numbers, rising, and how often each is there; they are from 0 to below `bound`."""
    numbers = np.sort(numbers.astype(np.min_scalar_type(bound)))  # of half the bytes: half the time
    first = run_starts(numbers)
    return numbers[first].astype(np.int64), np.diff(first, append=len(numbers))


def _histories(table: pa.Table, *, has_visit_ids: bool) -> Histories:
    if table["code"].null_count:
        table = table.filter(table["code"].is_valid())
    code, codes = _codes(table["code"])
    frame = pl.from_arrow(table.drop_columns("code"))  # Arrow's own way to numpy imports pandas
    assert isinstance(frame, pl.DataFrame)
    absent = [pl.lit(None, EVENT_SCHEMA[name]).alias(name) for name in EVENT_SCHEMA if name not in frame.columns]
    frame = frame.with_columns(absent)
    events = Histories(
        subject_id=frame["subject_id"].cast(pl.Int64).to_numpy(),
        time_us=times_us(frame["time"]),
        code=code,
        value=frame["numeric_value"].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
        codes=codes,
        visit_id=frame["visit_id"].cast(pl.String) if has_visit_ids else None,
    )
    return _sorted(events)


def _codes(column: pa.ChunkedArray) -> tuple[Int32s, tuple[str, ...]]:
    """(E,) index into the distinct codes, and those."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.large_string()).dictionary_encode()
    chunks = column.unify_dictionaries().chunks
    if not chunks:
        return np.zeros(0, dtype=np.int32), ()
    index = pl.from_arrow(pa.chunked_array([chunk.indices for chunk in chunks]))
    assert isinstance(index, pl.Series)
    return index.cast(pl.Int32).to_numpy(), tuple(chunks[0].dictionary.to_pylist())


def times_us(column: pl.Series) -> Ints:
    """(n,) microseconds since 1970, `NO_TIME` for null."""
    numbers: Ints = column.cast(pl.Datetime("us")).to_numpy().view(np.int64)  # null is NaT, which is `NO_TIME`
    return numbers


def _sorted(events: Histories) -> Histories:
    """MEDS shards are sorted; a frame made by hand, or by another tool, need not be."""
    subject, time = events.subject_id, events.time_us
    is_rising = (subject[1:] > subject[:-1]) | ((subject[1:] == subject[:-1]) & (time[1:] >= time[:-1]))
    if is_rising.all():
        return events
    order = np.lexsort((time, subject))
    return replace(
        events,
        subject_id=subject[order],
        time_us=time[order],
        code=events.code[order],
        value=events.value[order],
        visit_id=None if events.visit_id is None else events.visit_id[order],
    )


def subject_numbers(subject_ids: Ints, among: Ints) -> tuple[Ints, Bools]:
    """(n,) where each subject lies in `among`, which holds each once in any order, and whether it is there at all."""
    if not len(among):
        return np.zeros(len(subject_ids), dtype=np.int64), np.zeros(len(subject_ids), dtype=bool)
    is_rising = bool((among[1:] > among[:-1]).all())
    order = None if is_rising else np.argsort(among, kind="stable")
    place = np.minimum(np.searchsorted(among, subject_ids, sorter=order), len(among) - 1)
    row = place if order is None else order[place]
    return row, among[row] == subject_ids
