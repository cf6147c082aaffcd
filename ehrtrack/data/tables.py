"""Tables that a user hands in beside the dataset: parquet or CSV, with the columns that are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ehrtrack.errors import DataError

READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises for a file that is damaged: it panics over some pages."""
MOST_NAMED = 5
"""Files that a message names one by one."""


def read_table(path: Path, columns: Sequence[str], setting: str) -> pl.DataFrame:
    """A parquet or CSV file (text, without types) that has at least these columns.

    Parameters
    ----------
    setting : which setting names the file, for messages

    Raises
    ------
    DataError
        If the file is missing, cannot be read, or lacks a column.
    """
    need = f"{setting} needs a parquet or CSV file with the columns {', '.join(columns)}"
    table = open_table(path, need)
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)} (it has {', '.join(table.columns)}); {need}")
    return table


def open_table(path: Path, need: str) -> pl.DataFrame:
    """A parquet or CSV file (text, without types), whatever its columns.

    Parameters
    ----------
    need : what is needed, for messages

    Raises
    ------
    DataError
        If the file is missing or cannot be read.
    """
    if not path.exists():
        raise DataError(f"the file {path} does not exist; {need}")
    if not path.is_file():
        raise DataError(f"{path} is a folder, a pipe or a device; {need}")
    try:
        table = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read ({error}); {need}") from error
    return table


def open_tables(path: Path, need: str) -> pl.DataFrame:
    """As `open_table`, and also a folder whose parquet or CSV files are parts of one table, at any depth.

    Parts are read in the order of their paths. What is no part is named: other files, and those whose name, or a
    folder's above them, begins with a dot or an underscore, which writers keep for themselves.

    Raises
    ------
    DataError
        If nothing can be read, or parts differ in their columns or in what these hold.
    """
    if not path.is_dir():
        return open_table(path, need)
    parts, others = parts_of(path, need)
    if others:
        print(f"{path}: not read as parts of the table: {_listed(others)}", flush=True)
    tables = [open_table(part, need) for part in parts]
    for part, table in zip(parts, tables, strict=True):
        _check_alike(table, part, tables[0], parts[0])
    named = [table.select(tables[0].columns) for table in tables]
    for name in tables[0].columns:
        _check_kinds(name, [table[name] for table in named], parts)
    return pl.concat(named, how="vertical_relaxed")


def parts_of(folder: Path, need: str) -> tuple[list[Path], list[str]]:
    """The files of a folder that are parts of one table, and the names of the others; as in `open_tables`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    parts = [file for file in files if file.suffix in (".parquet", ".csv") and not _is_hidden(file.relative_to(folder))]
    others = [str(file.relative_to(folder)) for file in files if file not in parts]
    if not parts:
        found = _listed(others) or "no file"
        raise DataError(f"the folder {folder} holds no *.parquet or *.csv (it has {found}); {need}")
    return parts, others


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _check_alike(table: pl.DataFrame, part: Path, first: pl.DataFrame, first_part: Path) -> None:
    if differing := sorted(set(table.columns) ^ set(first.columns)):
        raise DataError(
            f"the parts of a table have the same columns, and {', '.join(differing)} is in one alone of {first_part} "
            f"and {part}; move what is another table out of the folder"
        )


def _check_kinds(name: str, columns: Sequence[pl.Series], parts: Sequence[Path]) -> None:
    """Text beside numbers would make 001 and 1 the same, or not, by which part comes first."""
    typed = zip((column.dtype for column in columns), parts, strict=True)
    known = [(_kind(dtype), part) for dtype, part in typed if dtype != pl.Null]
    for kind, part in known[1:]:
        if kind != known[0][0]:
            raise DataError(
                f"{name} is {known[0][0]} in {known[0][1]} and {kind} in {part}; write it alike in all parts of the "
                "table (parts as CSV and as parquet do not mix)"
            )


def _kind(dtype: pl.DataType) -> str:
    if dtype.is_numeric():
        return "numbers"
    return f"times of zone {dtype.time_zone}" if isinstance(dtype, pl.Datetime) else str(dtype.base_type())
