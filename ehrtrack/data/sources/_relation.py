"""A table that DuckDB can select from without loading it, and the SQL that reads its cells.

A `Relation` turns its columns into SQL for the text, number, identifier and time of an event, by the rules of one
`Reading`: every source reads every column alike. A column that is absent is SQL ``NULL``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ehrtrack.data.sources.settings import Reading
from ehrtrack.errors import DataError

_INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_FRACTIONAL_TYPES = ("DOUBLE", "FLOAT", "DECIMAL")
# ISO 8601 as databases write it: a date, or a date and a clock, and then perhaps Z or an offset.
_DATE = r"\d{4}-\d{2}-\d{2}"
_CLOCK = r"\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?"
_ZONE = r"Z|[+-](?:0\d|1[0-4])(?::?[0-5]\d)?"
_ISO = rf"{_DATE}(?:[T ]{_CLOCK}(?: ?(?:{_ZONE}))?)?"
_R_INTEGER = r"-?\d(?:\.\d+)?e\+\d{2}"
_DECIMAL_COMMA = r"[+-]?\d{1,3}(?:\.?\d{3})*,\d+"


@dataclass(frozen=True)
class Time:
    """When an event happened, as SQL: the parsed timestamp in UTC, the stated text; and the column, for messages."""

    parsed: str
    stated: str
    column: str


@dataclass(frozen=True)
class Relation:
    """A table to select from.

    Attributes
    ----------
    name : the table as the report names it.
    sql : what follows FROM.
    types : DuckDB type of each column, by the column's name in lower case; texts are trimmed, and NULL where missing.
    reading : how its cells are read.
    """

    name: str
    sql: str
    types: dict[str, str] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)

    def has(self, column: str) -> bool:
        """Whether the table has this column, in any case."""
        return column.lower() in self.types

    def first_of(self, *columns: str) -> str:
        """The first of `columns` that the table has.

        Raises
        ------
        DataError
            If it has none of them.
        """
        found = next((column for column in columns if self.has(column)), None)
        if found is None:
            raise DataError(
                f"table {self.name}: column {' or '.join(columns)} not found; found: "
                f"{', '.join(self.types) or 'no column'}"
            )
        return found

    def is_integer(self, column: str) -> bool:
        """Whether the column is stored as integers of at most 64 bits, with a sign."""
        return self.types.get(column.lower()) in _INTEGER_TYPES

    def require(self, *columns: str) -> Relation:
        """This relation, checked to have all `columns`.

        Raises
        ------
        DataError
            Naming the columns that are missing and those that were found.
        """
        missing = [column for column in columns if not self.has(column)]
        if missing:
            raise DataError(
                f"table {self.name}: column {', '.join(missing)} not found; needed: {', '.join(columns)}; "
                f"found: {', '.join(self.types) or 'no column'}"
            )
        return self

    def text(self, column: str) -> str:
        """SQL of a column as text; of one stored as text, blanks and words for a missing value are NULL already."""
        if not self.has(column):
            return "NULL"
        name = quote_name(column.lower())
        if self.types[column.lower()].startswith(_FRACTIONAL_TYPES):
            # An integer column with gaps is often stored as a float: 4019.0 stands for 4019.
            return (
                f"CASE WHEN isnan(CAST({name} AS DOUBLE)) THEN NULL "
                f"WHEN {name} = floor({name}) THEN CAST(TRY_CAST({name} AS BIGINT) AS VARCHAR) "
                f"ELSE CAST({name} AS VARCHAR) END"
            )
        return name if self.types[column.lower()] == "VARCHAR" else f"CAST({name} AS VARCHAR)"

    def identifier(self, column: str) -> str:
        """SQL of a subject's or visit's identifier as text; ``123.0`` is 123, and R's ``1e+05`` 100000."""
        if not self.has(column) or self.is_integer(column):
            return self.text(column)
        text = self.text(column)
        whole = f"TRY_CAST({text} AS BIGINT)"
        return (
            f"CASE WHEN contains({text}, 'e+') AND regexp_full_match({text}, '{_R_INTEGER}') "
            f"THEN coalesce(CAST({whole} AS VARCHAR), {text}) "
            rf"ELSE regexp_replace({text}, '^(-?\d+)\.0$', '\1') END"
        )

    def integer(self, column: str) -> str:
        """SQL of a column as a 64-bit integer, NULL where it is none."""
        return f"TRY_CAST({quote_name(column.lower())} AS BIGINT)" if self.has(column) else "NULL"

    def number(self, column: str) -> str:
        """SQL of a column as a finite 32-bit float, NULL where it is none."""
        if not self.has(column):
            return "NULL"
        kind = self.types[column.lower()]
        is_text = kind == "VARCHAR"
        cell = self.text(column) if is_text else quote_name(column.lower())
        if is_text and self.reading.decimal == ",":
            cell = f"replace(replace({cell}, '.', ''), ',', '.')"
        value = cell if kind == "FLOAT" else f"TRY_CAST({cell} AS FLOAT)"
        codes_of_missing = [] if is_text else self.reading.missing_numbers()
        is_stated = f"isfinite({value})"
        if codes_of_missing:
            is_stated += f" AND {value} NOT IN ({', '.join(codes_of_missing)})"
        return f"CASE WHEN {is_stated} THEN {value} END"

    def decimal_commas(self, column: str) -> str:
        """SQL of whether a cell is a number with a decimal comma, which is lost where the decimal mark is a point."""
        if self.reading.decimal == "," or self.types.get(column.lower()) != "VARCHAR":
            return "NULL"
        text = self.text(column)
        return f"(contains({text}, ',') AND regexp_full_match({text}, '{_DECIMAL_COMMA}'))"

    def time(self, *columns: str | tuple[str, str], format: str | None = None) -> Time:
        """The time in the first of `columns` that states one, in UTC; a date without a clock becomes its midnight.

        A column that states a time which cannot be read makes an unreadable time: the next one is not asked instead.

        Parameters
        ----------
        columns : in order of preference, a column or a pair of a date and a clock; those that are absent are skipped.
        format : strptime format of stamps that are text; the source's `time_format` if not given.

        Raises
        ------
        DataError
            If none of the columns is there.
        """
        pairs = [column if isinstance(column, tuple) else (column, "") for column in columns]
        present = [(date, clock if self.has(clock) else "") for date, clock in pairs if self.has(date)]
        if not present:
            self.require(*(date for date, _ in pairs))
        stated = [self._stated(date, clock) for date, clock in present]
        parsed = [self._timestamp(date, clock, format) for date, clock in present]
        cases = " ".join(f"WHEN {text} IS NOT NULL THEN {time}" for text, time in zip(stated, parsed, strict=True))
        named = dict.fromkeys(name for pair in present for name in pair if name)
        return Time(
            parsed=parsed[0] if len(parsed) == 1 else f"CASE {cases} END",
            stated=stated[0] if len(stated) == 1 else f"coalesce({', '.join(stated)})",
            column=" / ".join(named),
        )

    def utc(self, local: str) -> str:
        """SQL of a TIMESTAMP of the source's zone in UTC."""
        return local if self.reading.time_zone == "UTC" else _utc(f"CAST({local} AS TIMESTAMPTZ)")

    def is_plausible(self, time: str) -> str:
        """SQL of whether a time is within the years that a time may be in; NULL where there is none."""
        first, last = self.reading.years
        return f"{time} BETWEEN TIMESTAMP '{first:04d}-01-01' AND TIMESTAMP '{last:04d}-12-31 23:59:59.999999'"

    def _stated(self, date: str, clock: str) -> str:
        return f"({self.text(date)} || coalesce(' ' || {self.text(clock)}, ''))" if clock else self.text(date)

    def _timestamp(self, date: str, clock: str, format: str | None) -> str:
        kind = self.types[date.lower()]
        name = quote_name(date.lower())
        format = format or self.reading.time_format
        if clock:
            # SQL Server writes the clock of a date as a full stamp; its date is left off.
            hour = f"regexp_extract({self.text(clock)}, '{_CLOCK}')"
            return _iso(f"left({self.text(date)}, 10) || coalesce('T' || {hour}, '')")
        if kind.startswith("TIMESTAMP") and ("TZ" in kind or "ZONE" in kind):
            return _utc(f"CAST({name} AS TIMESTAMPTZ)")
        if kind == "DATE" or kind.startswith("TIMESTAMP"):
            return self.utc(f"TRY_CAST({name} AS TIMESTAMP)")
        if format is None:
            return _iso(self.text(date))
        stamp = f"try_strptime({self.text(date)}, {quote_text(format)})"
        return _utc(stamp) if "%z" in format.lower() else self.utc(stamp)


def _iso(text: str) -> str:
    """SQL of ISO 8601 text in UTC; the session's zone is the source's.

    DuckDB by itself would guess at shorter years and at slashes, and know names of zones.
    """
    stamp = f"TRY_CAST(regexp_replace({text}, ' ([+-])', '\\1') AS TIMESTAMPTZ)"
    return f"CASE WHEN regexp_full_match({text}, '{_ISO}') THEN {_utc(stamp)} END"


def _utc(zoned: str) -> str:
    """SQL of a TIMESTAMPTZ as a TIMESTAMP in UTC."""
    return f"make_timestamp(epoch_us({zoned}))"


def quote_text(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """A column or table name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def first_line(error: Exception) -> str:
    """What a DuckDB error says is wrong, without its advice on settings and without the row, which is a patient's."""
    text = str(error).split("Possible fixes:")[0].split("LINE 1:")[0]
    text = re.sub(r"Original Line:.*?(?=Expected Number|$)", "", text, flags=re.DOTALL)
    return " ".join(text.split())
