"""Finding a source's tables among its files and opening them: CSV, Parquet, DuckDB, SQLite; compressed, in parts."""

from __future__ import annotations

import bz2
import csv
import gzip
import re
import shutil
import sqlite3
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, cast

import duckdb
import pyarrow as pa

from ehrtrack.data.sources._messages import what_is_wrong
from ehrtrack.data.sources._relation import Relation, numbered, quote_name, quote_text
from ehrtrack.data.sources.settings import Reading
from ehrtrack.errors import DataError

_PLAIN = (".csv", ".tsv", ".txt", ".psv")
_PACKED = (".bz2", ".zip")  # DuckDB reads gz and zst by itself
_CSV_SUFFIXES = tuple(f"{plain}{packed}" for plain in _PLAIN for packed in ("", ".gz", ".zst", *_PACKED))
TABLE_SUFFIXES = (*_CSV_SUFFIXES, ".parquet")
# measurement_1.csv, measurement-00003-of-00010.parquet, measurement000000000012.csv, measurement_part2.csv
_PART = r"(?:[-_. ]?(?:part[-_ ]?)?\d+(?:[-_]of[-_]\d+)?)?"
_DATABASE = "source_file"
_SQLITE_MAGIC = b"SQLite format 3\x00"
_ROWS_PER_BATCH = 50_000
_DELIMITERS = ",\t;|"
_MOST_BYTES_OF_HEADER = 1 << 20


@dataclass
class Reader:
    """Opens the tables of one source, and remembers which files it opened.

    Attributes
    ----------
    connection : the scratch database that tables are selected through.
    reading : how their cells are read.
    scratch : folder for files that have to be unpacked first.
    unread_tables : tables of a database file that were not asked for.
    """

    connection: duckdb.DuckDBPyConnection
    reading: Reading
    scratch: Path
    unread_tables: set[str] = field(default_factory=set)
    _read: set[Path] = field(default_factory=set)
    _scratch_tables: list[str] = field(default_factory=list)

    def find(self, folders: Sequence[Path], name: str, *, pattern: str | None = None) -> Relation | None:
        """The table `name` in the first of `folders` that has it; or None.

        It is one file, several numbered parts, or a folder of parts (partitioned as ``year=2010/`` or not).

        Parameters
        ----------
        pattern : regular expression for the stem of the file, in lower case; the name itself if not given.

        Raises
        ------
        DataError
            If a folder holds the table twice, as CSV and as Parquet for example.
        """
        stem = re.compile((pattern or re.escape(name)) + _PART)
        for folder in folders:
            found = [path for path in table_paths(folder) if stem.fullmatch(_stem(path))]
            if len(found) > 1 and not _are_parts(found):
                raise DataError(
                    f"table {name} is in {folder} more than once: {', '.join(path.name for path in found)}; "
                    "keep one of them"
                )
            if found:
                parts = [part for path in found for part in (_parts(path) if path.is_dir() else [path])]
                return self.files(parts, name)
        return None

    def files(self, paths: Sequence[Path], name: str, *, file_name: str | None = None) -> Relation:
        """One relation over files of the same table; columns are matched by name.

        Parameters
        ----------
        file_name : a column that is added, with the name of each row's file without its ending.

        Raises
        ------
        DataError
            If a file is empty or is neither CSV nor Parquet.
        """
        selects: list[str] = []
        headers: dict[tuple[str, ...], list[Path]] = {}
        for path in paths:
            if not path.is_file():
                raise DataError(
                    f"{path} is a pipe, a device or a link to nowhere; needed: a file with the table {name}"
                )
            self._read.add(path)
            if path.name.lower().endswith(".parquet"):
                options = ", filename='file_of_row'" if file_name else ""
                options += ", hive_partitioning=true, hive_types_autocast=false" if "=" in path.parent.name else ""
                selects.append(f"SELECT * FROM read_parquet({quote_text(str(path))}{options})")
            elif path.name.lower().endswith(_CSV_SUFFIXES):
                headers.setdefault(_csv_header(path), []).append(self._unpacked(path))
            else:
                raise DataError(f"{path} is no table; needed: a file ending in {', '.join(TABLE_SUFFIXES)}")
        for (delimiter, *columns), unpacked in headers.items():
            selects.append(_csv_sql(unpacked, delimiter, columns, has_file_name=file_name is not None))
        union = f"({' UNION ALL BY NAME '.join(selects)})"
        if file_name is not None:
            endings = "|".join(suffix[1:].replace(".", "\\.") for suffix in TABLE_SUFFIXES)
            stem = f"regexp_extract(file_of_row, '([^/\\\\]+?)(\\.({endings}))?$', 1)"
            union = f"(SELECT * EXCLUDE (file_of_row), {stem} AS {file_name} FROM {union})"
        return self.cleaned(name, union)

    def cleaned(self, name: str, sql: str) -> Relation:
        """The relation of a FROM clause whose texts are trimmed, and NULL where blank or a word for a missing value.

        It is done here, once: where every expression over a column did it, DuckDB took a minute over a wide table.
        """
        relation = self.relation(name, sql)
        words = ", ".join(quote_text(word) for word in ("", *self.reading.missing))
        columns = [
            f"CASE WHEN trim({column}) NOT IN ({words}) THEN trim({column}) END AS {column}" if is_text else column
            for column, is_text in ((quote_name(name), kind == "VARCHAR") for name, kind in relation.types.items())
        ]
        return replace(relation, sql=f"(SELECT {', '.join(columns)} FROM {sql})")

    def relation(self, name: str, sql: str) -> Relation:
        """The relation of a FROM clause, with its columns' types looked up."""
        try:
            rows = self.connection.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()
        except duckdb.Error as error:
            raise DataError(f"table {name} cannot be read: {what_is_wrong(error)}") from error
        types = {str(row[0]).lower(): str(row[1]) for row in rows}
        return Relation(name=name, sql=sql, types=types, reading=self.reading)

    def scratch_table(self, query: str, *, of: str) -> str:
        """The name of a table in the scratch database that holds the rows of a query over a table of the source.

        Raises
        ------
        DataError
            If the table cannot be read.
        """
        name = quote_name(f"scratch {len(self._scratch_tables)}")
        try:
            self.connection.execute(f"CREATE TABLE {name} AS {query}")
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise DataError(f"table {of} cannot be read: {what_is_wrong(error)}") from error
        self._scratch_tables.append(name)
        return name

    def n_rows(self, relation: Relation) -> int:
        """How many rows a table has."""
        ((n,),) = self.connection.execute(f"SELECT count(*) FROM {relation.sql}").fetchall()
        return int(n)

    def unreadable_columns(self) -> list[str]:
        """Columns of the Parquet files opened so far whose values DuckDB cannot read, each with its file.

        Parquet can hold times that DuckDB cannot, such as milliseconds beyond the year 294247; its message then names
        neither file nor column.
        """
        found = []
        for path in sorted(self._read):
            if not path.name.lower().endswith(".parquet"):
                continue
            relation = f"read_parquet({quote_text(str(path))})"
            for column, *_ in self.connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall():
                try:
                    self.connection.execute(f"SELECT min({quote_name(column)}) FROM {relation}")
                except duckdb.ConversionException:
                    found.append(f"column {column} of {path}")
        return found

    def unread(self, path: Path) -> list[str]:
        """The source's files that no table was read from, by their paths below `path`, or its tables; sorted."""
        if not path.is_dir():
            return sorted(self.unread_tables)
        files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        return sorted(str(file.relative_to(path)) for file in files if file not in self._read)

    def _unpacked(self, path: Path) -> Path:
        """A CSV file that DuckDB can read: unpacked into the scratch folder where it cannot unpack it by itself."""
        if not path.name.lower().endswith(_PACKED):
            return path
        out = self.scratch / f"unpacked-{len(list(self.scratch.glob('unpacked-*')))}" / f"{_stem(path)}.csv"
        out.parent.mkdir()
        try:
            with _open_bytes(path) as packed, out.open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be unpacked: {error}; is it damaged?") from error
        return out


class DatabaseFile:
    """A DuckDB or SQLite file as a source of tables, opened read-only.

    SQLite is read by Python's own library, as DuckDB would have to download an extension for it.
    """

    def __init__(self, reader: Reader, path: Path) -> None:
        self.reader, self.path = reader, path
        with path.open("rb") as file:
            self.is_sqlite = file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
        if self.is_sqlite:
            self._places = [("main", name) for name in self._sqlite_tables()]
            reader.unread_tables.update(self.tables)
            return
        try:
            reader.connection.execute(f"ATTACH {quote_text(str(path))} AS {_DATABASE} (TYPE duckdb, READ_ONLY)")
        except duckdb.Error as error:
            raise DataError(f"{path} cannot be opened as a DuckDB or SQLite file: {what_is_wrong(error)}") from error
        query = "SELECT table_schema, table_name FROM information_schema.tables WHERE table_catalog = ? ORDER BY 1, 2"
        found = reader.connection.execute(query, [_DATABASE]).fetchall()
        self._places = [(str(schema), str(table)) for schema, table in found]
        reader.unread_tables.update(self.tables)

    @property
    def tables(self) -> list[str]:
        """Names of all tables in the file."""
        return [table for _, table in self._places]

    def find(self, name: str) -> Relation | None:
        """The table of this name, in any case; or None.

        Raises
        ------
        DataError
            If several schemas have it.
        """
        places = [(schema, table) for schema, table in self._places if table.lower() == name]
        if len(places) > 1:
            schemas = ", ".join(schema for schema, _ in places)
            raise DataError(f"table {name} is in several schemas ({schemas}); keep one of them in the file")
        if not places:
            return None
        schema, table = places[0]
        self.reader.unread_tables.discard(table)
        if self.is_sqlite:
            return self._copied(table, name)
        return self.reader.cleaned(name, f"{_DATABASE}.{quote_name(schema)}.{quote_name(table)}")

    def _sqlite_tables(self) -> list[str]:
        query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1"
        try:
            with self._sqlite() as database:
                return [str(name) for (name,) in database.execute(query).fetchall()]
        except sqlite3.Error as error:
            raise DataError(f"{self.path} cannot be read as an SQLite file: {error}; is it damaged?") from error

    def _sqlite(self) -> sqlite3.Connection:
        try:
            # DuckDB pulls the rows from threads of its own.
            return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        except sqlite3.Error as error:
            raise DataError(f"{self.path} cannot be opened as an SQLite file: {error}") from error

    def _copied(self, table: str, name: str) -> Relation:
        """The table as text in the scratch database, copied batch by batch."""
        with self._sqlite() as database:
            database.text_factory = lambda text: text.decode("utf-8", errors="replace")
            try:
                cursor = database.execute(f"SELECT * FROM {quote_name(table)}")
            except sqlite3.Error as error:
                raise DataError(f"table {name} of {self.path} cannot be read: {error}; is it damaged?") from error
            schema = pa.schema([(column[0].lower(), pa.string()) for column in cursor.description])
            batches = pa.RecordBatchReader.from_batches(schema, _sqlite_batches(cursor, schema))
            place = quote_name(f"sqlite {name}")
            self.reader.connection.register("sqlite_batches", batches)
            try:
                self.reader.connection.execute(f"CREATE TABLE {place} AS SELECT * FROM sqlite_batches")
            except duckdb.OutOfMemoryException:
                raise
            except duckdb.Error as error:
                why = what_is_wrong(error)
                raise DataError(f"table {name} of {self.path} cannot be read: {why}; is it damaged?") from error
            finally:
                self.reader.connection.unregister("sqlite_batches")
        return self.reader.cleaned(name, place)


def table_paths(folder: Path) -> list[Path]:
    """Files of `folder` that may hold a table, and folders that hold the parts of one; sorted."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (bool(_parts(path)) if path.is_dir() else path.name.lower().endswith(TABLE_SUFFIXES))
    )


def _parts(folder: Path) -> list[Path]:
    """The tables' files in a folder, and in its folders such as ``year=2010``."""
    inner = [path for path in folder.iterdir() if path.is_dir() and "=" in path.name]
    return sorted(filter(_is_table, folder.iterdir())) + [part for path in sorted(inner) for part in _parts(path)]


def _are_parts(paths: Sequence[Path]) -> bool:
    """Whether files are numbered parts of one table, rather than the table twice."""
    names = [path.name.lower() for path in paths]
    suffixes = {next((suffix for suffix in TABLE_SUFFIXES if name.endswith(suffix)), "") for name in names}
    return all(path.is_file() for path in paths) and len(suffixes) == 1 and all(re.search(r"\d", n) for n in names)


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES)


def _stem(path: Path) -> str:
    name = path.name.lower()
    suffix = max((suffix for suffix in TABLE_SUFFIXES if name.endswith(suffix)), key=len, default="")
    return name.removesuffix(suffix)


def _csv_header(path: Path) -> tuple[str, ...]:
    """The delimiter of a CSV file, then its column names in lower case; names that stand twice get a number."""
    try:
        with _open_bytes(path) as file:
            lines = file.read(_MOST_BYTES_OF_HEADER).splitlines()  # at LF, CRLF and CR, as DuckDB does
        line = lines[0].decode("utf-8-sig") if lines else ""
        delimiter = max(_DELIMITERS, key=line.count)
        cells = next(csv.reader([line], delimiter=delimiter), [])
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}; is it damaged, or not UTF-8?") from error
    if not line.strip():
        raise DataError(f"{path} is empty, or its first line is; needed: a line of column names, then rows")
    names = [cell.strip().lower() or f"column{position}" for position, cell in enumerate(cells)]
    return (delimiter, *_told_apart(names))


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names of columns, with a number where several have the same.

    >>> _told_apart(["a", "b", "a"])
    ['a #1', 'b', 'a #2']
    """
    n_in_all, n_before = Counter(names), Counter[str]()
    apart = []
    for name in names:
        apart.append(numbered(name, n_before[name]) if n_in_all[name] > 1 else name)
        n_before[name] += 1
    return apart


def _open_bytes(path: Path) -> IO[bytes]:
    name = path.name.lower()
    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    if name.endswith(".bz2"):
        return cast(IO[bytes], bz2.open(path, "rb"))
    if name.endswith(".zst"):
        return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    if name.endswith(".zip"):
        archive = zipfile.ZipFile(path)
        members = [member for member in archive.namelist() if not member.endswith("/")]
        if len(members) != 1:
            raise DataError(f"{path} holds {len(members)} files; needed: a zip of one table")
        return archive.open(members[0])
    return path.open("rb")


def _csv_sql(paths: Sequence[Path], delimiter: str, columns: Sequence[str], *, has_file_name: bool) -> str:
    """A query of CSV files that leaves nothing to guessing: a sniffed dialect changes with the sample it sees."""
    files = ", ".join(quote_text(str(path)) for path in paths)
    types = ", ".join(f"{quote_text(column)}: 'VARCHAR'" for column in columns)
    # The vocabulary files of OHDSI's Athena are tab-separated, with bare quotation marks inside the names; R puts a
    # pair around each text.
    is_tabbed = delimiter == "\t"
    quote = "" if is_tabbed else '"'
    pair = """regexp_replace({0}, '^"(.*)"$', '\\1') AS {0}"""
    selected = "*" if not is_tabbed else ", ".join(pair.format(quote_name(column)) for column in columns)
    if has_file_name and is_tabbed:
        selected += ", file_of_row"
    named = ", filename='file_of_row'" if has_file_name else ""
    return (
        f"SELECT {selected} FROM read_csv([{files}], auto_detect=false, header=true, delim={quote_text(delimiter)}, "
        f"quote='{quote}', escape='{quote}', columns={{{types}}}{named})"
    )


def _sqlite_batches(cursor: sqlite3.Cursor, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    while rows := cursor.fetchmany(_ROWS_PER_BATCH):
        columns = zip(*rows, strict=True)
        texts = [[None if cell is None else str(cell) for cell in column] for column in columns]
        yield pa.RecordBatch.from_arrays([pa.array(column, pa.string()) for column in texts], schema=schema)
