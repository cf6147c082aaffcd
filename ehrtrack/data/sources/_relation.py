"""A table that DuckDB can select from without loading it, and the SQL that reads its cells.

A `Relation` turns its columns into SQL for the text, number, identifier and time of an event, by the rules of one
`Reading`: every source reads every column alike. A column that is absent is SQL ``NULL``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ehrtrack.data.sources._messages import told_columns
from ehrtrack.data.sources.settings import Reading
from ehrtrack.errors import DataError

# Of at most 64 bits, with a sign or small enough for one.
_INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_FRACTIONAL_TYPES = ("DOUBLE", "FLOAT", "DECIMAL")
_NUMERIC_TYPES = (*_INTEGER_TYPES, *_FRACTIONAL_TYPES, "UBIGINT", "HUGEINT", "UHUGEINT", "BOOLEAN")
# ISO 8601 as databases write it: a date, or a date and a clock, and then perhaps Z or an offset.
_DATE = r"\d{4}-\d{2}-\d{2}"
_CLOCK = r"\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?"
_ZONE = r"Z|[+-](?:0\d|1[0-4])(?::?[0-5]\d)?"
_ZONED_CLOCK = rf"{_CLOCK}(?: ?(?:{_ZONE}))?"
_ISO = rf"{_DATE}(?:[T ]{_ZONED_CLOCK})?"
# A date and its clock in columns of their own, each of which some databases write as a full stamp.
_DAY_OF_STAMP = rf"^({_DATE})(?:[T ]{_ZONED_CLOCK})?$"
_CLOCK_OF_STAMP = rf"^(?:{_DATE}[T ])?({_ZONED_CLOCK})$"
_R_INTEGER = r"-?\d(?:\.\d+)?[eE]\+\d{2}"
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
        """Whether the table has this column, in any case.

        Raises
        ------
        DataError
            If it has the column twice.
        """
        name = column.lower()
        if numbered(name, 1) in self.types:
            raise DataError(
                f"table {self.name}: column {column} stands more than once in the header; needed: once, as nobody can "
                "say which is meant. Remove or rename the others"
            )
        return name in self.types

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
                f"table {self.name}: column {' or '.join(columns)} not found; found: {told_columns(self.types)}"
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
                f"found: {told_columns(self.types)}"
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
            f"CASE WHEN contains({text}, '+') AND regexp_full_match({text}, '{_R_INTEGER}') "
            f"THEN coalesce(CAST({whole} AS VARCHAR), {text}) "
            rf"ELSE regexp_replace({text}, '^(-?\d+)\.0$', '\1') END"
        )

    def integer(self, column: str) -> str:
        """SQL of a column as a 64-bit integer, NULL where it is none: 7.0 is 7, and 7.6 nothing."""
        if not self.has(column):
            return "NULL"
        name, kind = quote_name(column.lower()), self.types[column.lower()]
        whole = f"TRY_CAST({name} AS BIGINT)"
        if self.is_integer(column):
            return whole
        if kind.startswith(_FRACTIONAL_TYPES):
            return f"CASE WHEN {name} = floor({name}) THEN {whole} END"
        cell = self.text(column)
        is_whole = f"NOT contains({cell}, '.') OR TRY_CAST({cell} AS DOUBLE) = floor(TRY_CAST({cell} AS DOUBLE))"
        return f"CASE WHEN {is_whole} THEN TRY_CAST({cell} AS BIGINT) END"

    def number(self, column: str) -> str:
        """SQL of a column as a finite 32-bit float, NULL where it is none."""
        if not self.has(column):
            return "NULL"
        kind = self.types[column.lower()]
        is_text = not kind.startswith(_NUMERIC_TYPES) or kind.endswith("]")
        cell = self.text(column) if is_text else quote_name(column.lower())
        if is_text:
            cell = self.with_point(cell)
        value = cell if kind == "FLOAT" else f"TRY_CAST({cell} AS FLOAT)"
        codes_of_missing = [] if is_text else self.reading.missing_numbers()
        is_stated = f"isfinite({value})"
        if codes_of_missing:
            is_stated += f" AND {value} NOT IN ({', '.join(codes_of_missing)})"
        return f"CASE WHEN {is_stated} THEN {value} END"

    def with_point(self, text: str) -> str:
        """SQL of a number that is text with a point as its decimal mark."""
        return text if self.reading.decimal == "." else f"replace(replace({text}, '.', ''), ',', '.')"

    def decimal_commas(self, column: str | None) -> str:
        """SQL of whether a cell is a number with a decimal comma, which is lost where the decimal mark is a point."""
        if column is None or self.reading.decimal == "," or self.types.get(column.lower()) != "VARCHAR":
            return "NULL"
        text = self.text(column)
        return f"(contains({text}, ',') AND regexp_full_match({text}, '{_DECIMAL_COMMA}'))"

    def time(self, *columns: str | tuple[str, str], format: str | tuple[str, ...] | None = None) -> Time:
        """The time in the first of `columns` that states one, in UTC; a date without a clock becomes its midnight.

        A column that states a time which cannot be read makes an unreadable time: the next one is not asked instead.

        Parameters
        ----------
        columns : in order of preference, a column or a pair of a date and a clock; those that are absent are skipped.
        format : strptime format (or formats) of stamps that are text; the source's `time_format` if not given.

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
        formats = format or self.reading.time_format or ()
        formats = (formats,) if isinstance(formats, str) else formats
        parsed = [self._timestamp(date, clock, formats) for date, clock in present]
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

    def _timestamp(self, date: str, clock: str, formats: tuple[str, ...]) -> str:
        kind = self.types[date.lower()]
        name = quote_name(date.lower())
        if clock:
            hour = (
                f"regexp_extract({self.text(clock)}, '{_CLOCK_OF_STAMP}', 1)"  # empty, and then no time, if it is none
            )
            return _iso(f"{self._day(date, formats)} || coalesce('T' || {hour}, '')")
        if kind.startswith("TIMESTAMP") and ("TZ" in kind or "ZONE" in kind):
            return _utc(f"CAST({name} AS TIMESTAMPTZ)")
        if kind == "DATE" or kind.startswith("TIMESTAMP"):
            return self.utc(f"TRY_CAST({name} AS TIMESTAMP)")
        if not formats:
            return _iso(self.text(date))
        stamps = [self._stamp(self.text(date), format) for format in formats]
        return stamps[0] if len(stamps) == 1 else f"coalesce({', '.join(stamps)})"

    def _stamp(self, text: str, format: str) -> str:
        """SQL of a stamp of the format in UTC."""
        stamp = f"try_strptime({text}, {quote_text(format)})"
        return _utc(stamp) if "%z" in format.lower() else self.utc(stamp)

    def _day(self, date: str, formats: tuple[str, ...]) -> str:
        """SQL of a date as text by ISO 8601."""
        if formats and self.types[date.lower()] == "VARCHAR":
            days = [f"CAST(try_strptime({self.text(date)}, {quote_text(format)}) AS DATE)" for format in formats]
            return f"CAST(coalesce({', '.join(days)}) AS VARCHAR)"
        return f"regexp_extract({self.text(date)}, '{_DAY_OF_STAMP}', 1)"


def _iso(text: str) -> str:
    """SQL of ISO 8601 text in UTC; the session's zone is the source's.

    DuckDB by itself would guess at shorter years and at slashes, and know names of zones.
    """
    stamp = f"TRY_CAST(regexp_replace({text}, ' ([+-])', '\\1') AS TIMESTAMPTZ)"
    return f"CASE WHEN regexp_full_match({text}, '{_ISO}') THEN {_utc(stamp)} END"


def _utc(zoned: str) -> str:
    """SQL of a TIMESTAMPTZ as a TIMESTAMP in UTC."""
    return f"make_timestamp(epoch_us({zoned}))"


def numbered(column: str, number: int) -> str:
    """The name of a column that stands several times in a header, in its `number`-th place, from 0 on."""
    return f"{column} #{number + 1}"


def quote_text(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """A column or table name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
