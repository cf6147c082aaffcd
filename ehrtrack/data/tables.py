"""Tables that a user hands in beside the dataset: parquet or CSV, with the columns that are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ehrtrack.errors import DataError

READ_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises for a file that is damaged: it panics over some pages."""


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
