"""Candidate events of an import: read from the source's tables batch by batch and kept in files, the runs.

A candidate has a subject, a code, and a time unless it is a static fact. What lacks one of these is counted
as dropped at once. Subjects and codes, which repeat, are numbers from here on. A run holds the columns
`subject`, `time`, `code` (numbers in place of texts) and, unless they are empty in all of it,
`numeric_value`, `text_value` and `visit_id`. Time is microseconds since 1970, `NO_TIME` for static facts, and a
number that is not there is NaN: columns without nulls are sorted and compared in half the time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.data.events import BIRTH, DEATH
from ehrtrack.data.histories import NO_TIME
from ehrtrack.data.importing.account import TableAccount
from ehrtrack.data.importing.judge import reason_number
from ehrtrack.data.importing.rows import EventColumns, row_query
from ehrtrack.data.sources._messages import what_is_wrong
from ehrtrack.data.sources.base import SourceTable
from ehrtrack.data.sources.settings import Reading
from ehrtrack.errors import DataError

OPTIONAL_COLUMNS = ("numeric_value", "text_value", "visit_id")
_EVENTS_PER_BATCH = 500_000
_EVENTS_PER_RUN = 1_000_000
_SAMPLE = 10_000
_LAST_LIFE_CODE = 1  # birth is 0 and death 1: neither is a static fact
_TABLE = 2**21  # entries; a larger one is slower than hashing
_Scalar = TypeVar("_Scalar", bound=np.generic)


class Numbering:
    """Texts numbered 0, 1, 2, ... as they first appear."""

    def __init__(self) -> None:
        self._dtype = pl.Categorical(pl.Categories.random())
        # Polars forgets the numbers when the last series of the type is gone.
        self._anchor = pl.Series([], dtype=self._dtype)
        self.n_texts = 0

    def numbers(self, texts: pl.Series) -> pl.Series:
        """The number of each text, or of each integer as text; null where it is null."""
        if texts.head(_SAMPLE).rle_id().n_unique() < len(texts.head(_SAMPLE)) // 4:
            # Rows of one subject mostly follow each other: far fewer texts to look up.
            repeated = texts.rle().struct.unnest()
            places = np.repeat(np.arange(repeated.height), repeated["len"].to_numpy())
            return self._look_up(repeated["value"]).gather(pl.Series(places))
        return self._look_up(texts)

    def _look_up(self, texts: pl.Series) -> pl.Series:
        if texts.dtype.is_integer():
            return self._look_up_integers(texts)
        numbers = texts.cast(self._dtype).to_physical()
        largest = numbers.max()
        if isinstance(largest, int):
            self.n_texts = max(self.n_texts, largest + 1)
        return numbers

    def _look_up_integers(self, integers: pl.Series) -> pl.Series:
        least, most = integers.min(), integers.max()
        if integers.null_count() or not isinstance(least, int) or not isinstance(most, int) or most - least > _TABLE:
            distinct = integers.unique()
            return integers.replace_strict(distinct, self._look_up(distinct.cast(pl.String)), return_dtype=pl.UInt32())
        # A table from integer to number, a quarter of the time of the hash table that it stands for.
        places = integers.to_numpy() - least
        table = np.zeros(most - least + 1, np.uint32)
        table[places] = 1
        distinct = pl.Series(np.flatnonzero(table) + least)
        table[distinct.to_numpy() - least] = self._look_up(distinct.cast(pl.String)).to_numpy()
        return pl.Series(table[places])

    def texts(self) -> pl.Series:
        """All texts, in order of their numbers."""
        every = pl.int_range(self.n_texts, dtype=pl.UInt32).cat.to(self._dtype)
        return pl.select(text=every.cast(pl.String))["text"]


@dataclass(frozen=True)
class Run:
    """A file of candidates of one table."""

    path: Path
    table_index: int


class Candidates:
    """The candidates of all tables, in a folder, and what was counted while they were read.

    Attributes
    ----------
    subjects, codes : numbers of the texts; birth has the code 0 and death 1.
    accounts : what was counted of each table.
    is_rostered : by subject number, whether a row of a roster names the subject.
    n_events : by subject number, candidates in the runs.
    dropped : `table_index`, `subject` (null if there is none), `reason` (place in `DROP_REASONS`), `n`.
    descriptions : `code` (number), `description`.
    parents : `code` (number), `parent_codes`.
    splits : `source_id`, `split`, where the source says which subjects to train on.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.subjects, self.codes = Numbering(), Numbering()
        self.codes.numbers(pl.Series([BIRTH, DEATH]))
        self.runs: list[Run] = []
        self.accounts: list[TableAccount] = []
        self.is_rostered = np.zeros(0, bool)
        self.n_events = np.zeros(0, np.int64)
        self.dropped = pl.DataFrame(
            schema={"table_index": pl.UInt8, "subject": pl.UInt32, "reason": pl.UInt8, "n": pl.UInt32}
        )
        self.descriptions = pl.DataFrame(schema={"code": pl.UInt32, "description": pl.String})
        self.parents = pl.DataFrame(schema={"code": pl.UInt32, "parent_codes": pl.List(pl.String)})
        self.splits: pl.DataFrame | None = None

    def stage(self, connection: duckdb.DuckDBPyConnection, table: SourceTable, reading: Reading) -> int:
        """Read a table; returns the number of its rows.

        Raises
        ------
        DataError
            If the table cannot be read, or too many of its times, births, deaths or results are unreadable.
        """
        assert table.relation is not None
        table.relation.require(table.subject)
        query, events = row_query(table, table.relation)
        account = TableAccount(table, reading)
        self.accounts.append(account)
        held: list[pl.DataFrame] = []
        for rows in _batches(connection, query, table.name, max(10_000, _EVENTS_PER_BATCH // len(events))):
            account.count_rows(rows)
            held.extend(self._candidates(rows, events, account))
            if sum(frame.height for frame in held) >= _EVENTS_PER_RUN:
                self._write_run(held)
                held = []
        if any(frame.height for frame in held):
            self._write_run(held)
        account.check()
        if table.code_metadata is not None:
            self._describe(pl.DataFrame(connection.sql(table.code_metadata).to_arrow_table()))
        if table.splits is not None:
            self.splits = pl.DataFrame(connection.sql(table.splits).to_arrow_table())
        return account.n_rows

    def _candidates(
        self, rows: pl.DataFrame, events: list[EventColumns], account: TableAccount
    ) -> Iterator[pl.DataFrame]:
        """The candidates that the rows make, an event of the row at a time."""
        subject = self.subjects.numbers(rows["subject"])
        rows = rows.with_columns(subject=subject)
        if account.table.is_roster:
            self._enrol(subject)
        is_header = pl.col("is_header")
        why_not = (
            pl.when(is_header)
            .then(reason_number("header row read as data"))
            .when(pl.col("subject").is_null())
            .then(reason_number("no subject"))
        )
        codes = [pl.col(event.code).is_not_null() for event in events]
        self._drop(rows.filter(~pl.any_horizontal(codes)), why_not.otherwise(reason_number("no code")))
        for event in events:
            frame = rows.select(event.selection(visit="visit" in rows.columns))
            if frame["code"].null_count():
                frame = frame.filter(pl.col("code").is_not_null())
            is_plausible = pl.col("time").is_between(*account.reading.first_and_last_time())
            frame = frame.with_columns(time=pl.when(is_plausible).then("time"), code=self.codes.numbers(frame["code"]))
            account.count_event(frame, event)
            self._describe(frame)
            why_not_event = why_not.when(pl.col("unreadable").is_not_null()).then(reason_number("unreadable time"))
            needs_time = pl.lit(True) if not event.may_lack_time else pl.col("code") <= _LAST_LIFE_CODE
            why_not_event = why_not_event.when(pl.col("time").is_null() & needs_time).then(reason_number("no time"))
            kept = self._drop(frame, why_not_event)
            yield kept.drop("is_header", "unreadable", "description", "decimal_comma", "unit", strict=False)

    def _drop(self, frame: pl.DataFrame, why_not: pl.Expr) -> pl.DataFrame:
        """The rows of `frame` for which there is no reason to drop them; the others are counted."""
        reason = frame.select(reason=why_not)["reason"]
        if reason.null_count() == frame.height:
            return frame
        counts = (
            pl.DataFrame({"subject": frame["subject"], "reason": reason})
            .drop_nulls("reason")
            .group_by("subject", "reason")
            .agg(n=pl.len())
            .select(pl.lit(len(self.accounts) - 1, pl.UInt8).alias("table_index"), "subject", "reason", "n")
        )
        keys = ["table_index", "subject", "reason"]
        self.dropped = pl.concat([self.dropped, counts]).group_by(keys).agg(pl.col("n").sum())
        return frame.filter(reason.is_null())

    def _enrol(self, subject: pl.Series) -> None:
        numbers = subject.drop_nulls().to_numpy()
        self.is_rostered = _grown(self.is_rostered, self.subjects.n_texts)
        self.is_rostered[numbers] = True

    def _describe(self, frame: pl.DataFrame) -> None:
        """Keep the first description of each code in the alphabet, and its parents."""
        if frame["code"].dtype == pl.String:
            frame = frame.drop_nulls("code")
            frame = frame.with_columns(code=self.codes.numbers(frame["code"]))
        if "parent_codes" in frame.columns:
            parents = (
                frame.select("code", "parent_codes").drop_nulls().unique("code", keep="first", maintain_order=True)
            )
            self.parents = pl.concat([self.parents, parents]).unique("code", keep="first", maintain_order=True)
        if frame["description"].null_count() == frame.height:
            return
        stated = frame.select("code", "description").drop_nulls().group_by("code").agg(pl.col("description").min())
        self.descriptions = pl.concat([self.descriptions, stated]).group_by("code").agg(pl.col("description").min())

    def _write_run(self, frames: list[pl.DataFrame]) -> None:
        candidates = pl.concat(frames, how="diagonal")
        empty = [name for name in OPTIONAL_COLUMNS if name in candidates and candidates[name].is_null().all()]
        candidates = candidates.drop(empty).with_columns(pl.col("time").to_physical().fill_null(NO_TIME))
        if "numeric_value" in candidates:
            candidates = candidates.with_columns(pl.col("numeric_value").fill_null(float("nan")))
        run = Run(self.folder / f"{len(self.runs)}.arrow", len(self.accounts) - 1)
        candidates.write_ipc(run.path, compression="uncompressed")
        self.runs.append(run)
        counts = np.bincount(candidates["subject"].to_numpy(), minlength=self.subjects.n_texts)
        self.n_events = _grown(self.n_events, self.subjects.n_texts) + counts


def hash_subject_id(source_id: str) -> int:
    """The first 63 bits of BLAKE2b of a text, as a non-negative integer."""
    return int.from_bytes(hashlib.blake2b(source_id.encode(), digest_size=8).digest(), "big") >> 1


def number_subjects(candidates: Candidates, *, has_roster: bool) -> tuple[pl.DataFrame, bool]:
    """Each subject's int64 id, and whether the ids are the source's.

    Returns
    -------
    subjects : `number`, `source_id`, `subject_id`, `n_events`; those of the roster, sorted by `subject_id`.

    Raises
    ------
    DataError
        If two identifiers hash to the same id.
    """
    n_subjects = candidates.subjects.n_texts
    subjects = pl.DataFrame(
        {
            "number": pl.Series(range(n_subjects), dtype=pl.UInt32),
            "source_id": candidates.subjects.texts(),
            "n_events": _grown(candidates.n_events, n_subjects),
        }
    )
    if has_roster:
        subjects = subjects.filter(pl.Series(_grown(candidates.is_rostered, n_subjects)))
    integers = subjects["source_id"].cast(pl.Int64, strict=False)
    has_integer_ids = bool((integers.cast(pl.String) == subjects["source_id"]).fill_null(False).all())
    if not has_integer_ids:
        integers = pl.Series([hash_subject_id(source_id) for source_id in subjects["source_id"]], dtype=pl.Int64)
    subjects = subjects.with_columns(subject_id=integers).sort("subject_id")
    clash = subjects.filter(pl.col("subject_id").is_duplicated())
    if clash.height:
        first, *_, last = clash.filter(pl.col("subject_id") == clash["subject_id"][0])["source_id"].sort()
        raise DataError(f"subjects {first!r} and {last!r} get the same 63-bit id; rename one of them in the source")
    return subjects, has_integer_ids


def _batches(connection: duckdb.DuckDBPyConnection, query: str, table_name: str, n_rows: int) -> Iterator[pl.DataFrame]:
    """The rows of a query, at most about `n_rows` at a time, as DuckDB reads them."""
    try:
        for batch in connection.sql(query).to_arrow_reader(n_rows):
            yield pl.DataFrame(batch)
    except (duckdb.OutOfMemoryException, duckdb.ConversionException):
        raise
    except (duckdb.Error, OSError) as error:
        # An error within the stream of batches arrives as OSError, with DuckDB's text.
        if "Out of Memory" in str(error):
            raise duckdb.OutOfMemoryException(str(error)) from error
        if "Conversion Error" in str(error):  # the importer looks for the file and the column
            raise duckdb.ConversionException(str(error)) from error
        raise DataError(f"table {table_name} cannot be read: {what_is_wrong(error)}") from error


def _grown(array: npt.NDArray[_Scalar], length: int) -> npt.NDArray[_Scalar]:
    """The array with zeros after its end up to `length`."""
    return np.pad(array, (0, length - len(array)))
