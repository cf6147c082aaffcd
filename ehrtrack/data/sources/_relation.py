"""Reading tables as they come: CSV, gzipped CSV, Parquet or DuckDB, with any spelling of the column names.

A `Relation` is a table that DuckDB can select from without loading it, and knows how to turn its columns
into SQL for the text, number, identifier and time of an event. A column that is absent is SQL ``NULL``.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import duckdb

from ehrtrack.errors import DataError

_CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")
_SUFFIXES = (*_CSV_SUFFIXES, ".parquet")
DELIMITERS = ",\t;|"
MOST_HEADER_CHARACTERS = 1_000_000
_INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_FRACTIONAL_TYPES = ("DOUBLE", "FLOAT", "DECIMAL")


@dataclass(frozen=True)
class Time:
    """When an event happened, as SQL: the parsed timestamp, the stated text; and the column, for messages."""

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
    types : DuckDB type of each column, by the column's name in lower case.
    """

    name: str
    sql: str
    types: dict[str, str] = field(default_factory=dict)

    def has(self, column: str) -> bool:
        """Whether the table has this column, in any case."""
        return column.lower() in self.types

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
        """SQL of a column as trimmed text, NULL where blank."""
        if not self.has(column):
            return "NULL"
        name = quote_name(column.lower())
        if self.types[column.lower()].startswith(_FRACTIONAL_TYPES):
            # An integer column with gaps is often stored as a float: 4019.0 stands for 4019.
            return (
                f"CASE WHEN {name} = floor({name}) THEN CAST(TRY_CAST({name} AS BIGINT) AS VARCHAR) "
                f"ELSE CAST({name} AS VARCHAR) END"
            )
        if self.is_integer(column):
            return f"CAST({name} AS VARCHAR)"
        return f"nullif(trim(CAST({name} AS VARCHAR)), '')"

    def identifier(self, column: str) -> str:
        """SQL of a subject's or visit's identifier as text; ``123.0`` is read as ``123``."""
        if not self.has(column) or self.is_integer(column):
            return self.text(column)
        return rf"regexp_replace({self.text(column)}, '^(-?\d+)\.0$', '\1')"

    def integer(self, column: str) -> str:
        """SQL of a column as a 64-bit integer, NULL where it is none."""
        return f"TRY_CAST({quote_name(column.lower())} AS BIGINT)" if self.has(column) else "NULL"

    def number(self, column: str) -> str:
        """SQL of a column as a finite 32-bit float, NULL where it is none."""
        if not self.has(column):
            return "NULL"
        name = quote_name(column.lower())
        value = name if self.types[column.lower()] == "FLOAT" else f"TRY_CAST({name} AS FLOAT)"
        return f"CASE WHEN isfinite({value}) THEN {value} END"

    def time(self, *columns: str, format: str | None = None) -> Time:
        """The first of `columns` that holds a readable time; zoned stamps become UTC, dates become midnight.

        Parameters
        ----------
        columns : in order of preference; those that are absent are skipped.
        format : strptime format; without it ISO 8601 is read.
        """
        present = [column for column in columns if self.has(column)]
        if not present:
            self.require(*columns)
        return Time(
            parsed=f"coalesce({', '.join(self._timestamp(column, format) for column in present)})",
            stated=f"coalesce({', '.join(self.text(column) for column in present)})",
            column=" / ".join(present),
        )

    def _timestamp(self, column: str, format: str | None) -> str:
        kind = self.types[column.lower()]
        name = quote_name(column.lower())
        if format is not None:
            return f"try_strptime({self.text(column)}, {quote_text(format)})"
        if kind == "DATE" or (kind.startswith("TIMESTAMP") and "ZONE" not in kind):
            return f"CASE WHEN isfinite({name}) THEN CAST({name} AS TIMESTAMP) END"
        # A plain TIMESTAMP cast would drop an offset such as +02:00; the zoned cast reads it, and a stamp
        # without one in the session's zone, which is UTC.
        zoned = f"TRY_CAST({self.text(column)} AS TIMESTAMPTZ)"
        return f"CASE WHEN isfinite({zoned}) THEN make_timestamp(epoch_us({zoned})) END"


def find_relation(
    connection: duckdb.DuckDBPyConnection, folders: Sequence[Path], name: str, *, pattern: str | None = None
) -> Relation | None:
    """The table `name` in the first of `folders` that has it: one file, or a folder of its parts; or None.

    Parameters
    ----------
    pattern : regular expression for the stem of the file, in lower case; the name itself if not given.

    Raises
    ------
    DataError
        If a folder holds the table twice, as CSV and as Parquet for example.
    """
    for folder in folders:
        found = [path for path in table_paths(folder) if re.fullmatch(pattern or re.escape(name), _stem(path))]
        if len(found) > 1:
            raise DataError(
                f"table {name} is in {folder} more than once: {', '.join(path.name for path in found)}; "
                "keep one of them"
            )
        if found:
            parts = table_paths(found[0]) if found[0].is_dir() else [found[0]]
            return read_files(connection, parts, name)
    return None


def table_paths(folder: Path) -> list[Path]:
    """Files of `folder` that may hold a table, and folders that hold the parts of one; sorted."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (any(map(_is_table, path.iterdir())) if path.is_dir() else path.name.lower().endswith(_SUFFIXES))
    )


def read_files(connection: duckdb.DuckDBPyConnection, files: Sequence[Path], name: str) -> Relation:
    """One relation over files of the same table; columns are matched by name.

    Raises
    ------
    DataError
        If a file is empty or is neither CSV nor Parquet.
    """
    selects: list[str] = []
    headers: dict[tuple[str, ...], list[Path]] = {}
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is a pipe, a device or a link to nowhere; needed: a file with the table {name}")
        if path.name.lower().endswith(".parquet"):
            selects.append(f"SELECT * FROM read_parquet({quote_text(str(path))})")
        elif path.name.lower().endswith(_CSV_SUFFIXES):
            headers.setdefault(_csv_header(path), []).append(path)
        else:
            raise DataError(f"{path} is no table; needed: a file ending in {', '.join(_SUFFIXES)}")
    for (delimiter, *columns), paths in headers.items():
        selects.append(f"SELECT * FROM {_csv_sql(paths, delimiter, columns)}")
    return describe(connection, name, f"({' UNION ALL BY NAME '.join(selects)})")


def describe(connection: duckdb.DuckDBPyConnection, name: str, sql: str) -> Relation:
    """The relation of a FROM clause, with its columns' types looked up."""
    try:
        rows = connection.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()
    except duckdb.Error as error:
        raise DataError(f"table {name} cannot be read: {first_line(error)}") from error
    return Relation(name=name, sql=sql, types={str(row[0]).lower(): str(row[1]) for row in rows})


def quote_text(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """A column or table name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def first_line(error: Exception) -> str:
    """What a DuckDB error says is wrong, without its advice on settings."""
    text = str(error).split("Possible fixes:")[0].split("LINE 1:")[0]
    return " ".join(text.split())


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(_SUFFIXES)


def _stem(path: Path) -> str:
    name = path.name.lower()
    suffix = max((suffix for suffix in _SUFFIXES if name.endswith(suffix)), key=len, default="")
    return name.removesuffix(suffix)


def _csv_header(path: Path) -> tuple[str, ...]:
    """The delimiter of a CSV file, then its column names in lower case; repeated names get a number."""
    with _open_text(path) as file:
        try:
            line = file.readline(MOST_HEADER_CHARACTERS)
            cells = next(csv.reader([line], delimiter=max(DELIMITERS, key=line.count)), [])
        except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
            raise DataError(f"{path} cannot be read as CSV: {error}; is it damaged, or not UTF-8?") from error
    if not line.strip():
        raise DataError(f"{path} is empty; needed: a line of column names, then rows")
    delimiter = max(DELIMITERS, key=line.count)
    names: list[str] = []
    for position, cell in enumerate(cells):
        name = cell.strip().lower() or f"column{position}"
        names.append(name if name not in names else f"{name}_{position}")
    return (delimiter, *names)


def _open_text(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _csv_sql(paths: Sequence[Path], delimiter: str, columns: Sequence[str]) -> str:
    """A read_csv call that leaves nothing to guessing: a sniffed dialect changes with the sample it sees."""
    files = ", ".join(quote_text(str(path)) for path in paths)
    types = ", ".join(f"{quote_text(column)}: 'VARCHAR'" for column in columns)
    # The vocabulary files of OHDSI's Athena are tab-separated, with bare quotation marks inside the names.
    quote = "" if delimiter == "\t" else '"'
    return (
        f"read_csv([{files}], auto_detect=false, header=true, delim={quote_text(delimiter)}, "
        f"quote='{quote}', escape='{quote}', columns={{{types}}})"
    )
