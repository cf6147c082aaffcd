"""MEDS datasets on disk: opened, checked at the border, and scanned lazily with canonical columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ehrtrack.data.tables import READ_ERRORS, read_table
from ehrtrack.errors import DataError
from ehrtrack.files import sha256_of
from ehrtrack.section import Section

BIRTH = "MEDS_BIRTH"
DEATH = "MEDS_DEATH"

EVENT_SCHEMA: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": pl.Datetime("us"),
    "code": pl.String(),
    "numeric_value": pl.Float32(),
    "text_value": pl.String(),
    "visit_id": pl.String(),
}
"""The columns of every event frame. `time` is null for static facts; the last three may be all null."""

NEEDED_COLUMNS = ("subject_id", "time", "code")


class Events(Protocol):
    """Where events come from: a dataset on disk, or a frame (`held.HeldEvents`)."""

    @property
    def shards(self) -> tuple[Path, ...]:
        """The files, none of events in memory."""

    def scan(self) -> pl.LazyFrame:
        """All events, lazily, with the columns of `EVENT_SCHEMA`."""


@dataclass(frozen=True)
class MedsDataset:
    """A MEDS dataset: a folder with `data/*.parquet`, and `metadata/` that describes it."""

    path: Path
    shards: tuple[Path, ...]

    def scan(self) -> pl.LazyFrame:
        """All events, lazily, with the columns of `EVENT_SCHEMA`; a column that a shard lacks is null."""
        return pl.concat([_canonical(shard) for shard in self.shards])

    def fingerprint(self) -> str:
        """16 hex characters over the bytes of the shards: equal data, equal fingerprint, wherever it lies."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of("meds", [sha256_of(shard) for shard in self.shards])

    def code_descriptions(self) -> dict[str, str]:
        """What the codes mean, for those that `metadata/codes.parquet` describes."""
        path = self.path / "metadata" / "codes.parquet"
        if not path.is_file():
            return {}
        try:
            codes = pl.read_parquet(path)
        except READ_ERRORS as error:
            raise DataError(f"{path} cannot be read ({error}); remove it, or import the data again") from error
        if not {"code", "description"} <= set(codes.columns):
            return {}
        described = codes.select(pl.col("code", "description").cast(pl.String)).drop_nulls()
        return dict(zip(described["code"].to_list(), described["description"].to_list(), strict=True))

    @cached_property
    def time_zone(self) -> str:
        """The zone in which the import read stamps that named none; UTC where it does not say."""
        path = self.path / "metadata" / "dataset.json"
        if not path.is_file():
            return "UTC"
        try:
            return str(json.loads(path.read_text(encoding="utf-8")).get("ehrtrack_time_zone", "UTC"))
        except (ValueError, AttributeError) as error:
            raise DataError(f"{path} cannot be read ({error}); import the data again") from error

    def has_hashed_ids(self) -> bool:
        """Whether subject ids are hashes of the source's, which are no integers."""
        path = self.path / "metadata" / "subjects.parquet"
        if not path.is_file():
            return False
        source = self.source_ids()
        return not (source["source_id"] == source["subject_id"].cast(pl.String)).all()

    def source_ids(self) -> pl.DataFrame:
        """The source's own subject ids: `source_id` str, `subject_id` i64.

        Raises
        ------
        DataError
            If the dataset keeps no such table.
        """
        path = self.path / "metadata" / "subjects.parquet"
        if not path.is_file():
            raise DataError(
                f"subject ids that are not integers need {path}, which maps the source's ids to subject_id, "
                "and there is none; import the data with `ehrtrack import`, or give integer subject ids"
            )
        table = read_table(path, ("source_id", "subject_id"), "metadata/subjects.parquet")
        return table.select(pl.col("source_id").cast(pl.String), pl.col("subject_id").cast(pl.Int64))


def open_dataset(path: Path) -> MedsDataset:
    """Open a MEDS dataset; its shards' columns are checked, its events are not read.

    Raises
    ------
    DataError
        If the folder, its `data/*.parquet`, or a needed column is missing, or a column has a wrong type.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(
            f"{path} is not a folder; a MEDS dataset is a folder with data/*.parquet: "
            "set data.path to one, or make one with `ehrtrack import SOURCE PATH OUT`"
        )
    shards = tuple(sorted(file for file in (path / "data").rglob("*.parquet") if not file.is_dir()))
    if not shards:
        raise DataError(
            f"{path} has no data/*.parquet; a MEDS dataset keeps its events there: "
            "make one with `ehrtrack import SOURCE PATH OUT`"
        )
    for shard in shards:
        _check_columns(shard)
    return MedsDataset(path=path, shards=shards)


def life_spans(events: pl.LazyFrame) -> pl.LazyFrame:
    """One row a subject: `birth`, `death`, and `first_time`, `last_time` of the events other than birth."""
    is_birth = pl.col("code") == BIRTH
    return events.group_by("subject_id").agg(
        birth=pl.col("time").filter(is_birth).min(),
        death=pl.col("time").filter(pl.col("code") == DEATH).min(),
        first_time=pl.col("time").filter(~is_birth).min(),
        last_time=pl.col("time").filter(~is_birth).max(),
    )


def starts_with_any(patterns: tuple[str, ...]) -> pl.Expr:
    """Whether a code matches one of the regular expressions at its start; a plain prefix is one.

    >>> pl.DataFrame({"code": ["ICD10//I21", "OLD//ICD10//I21"]}).filter(starts_with_any(("ICD10//I2[12]",)))
    shape: (1, 1)
    ┌────────────┐
    │ code       │
    │ ---        │
    │ str        │
    ╞════════════╡
    │ ICD10//I21 │
    └────────────┘
    """
    if not patterns:
        return pl.lit(False)
    return pl.col("code").str.contains("^(?:" + "|".join(f"(?:{pattern})" for pattern in patterns) + ")")


def fingerprint_of(*parts: object) -> str:
    """16 hex characters over the canonical JSON of the parts: sections, tables, arrays and plain values.

    >>> fingerprint_of({"b": 1, "a": (1, 2)}) == fingerprint_of({"a": [1, 2], "b": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(part: object) -> Any:
    if isinstance(part, Section):
        return part.identity()
    if isinstance(part, BaseModel):
        return part.model_dump(mode="json")
    if isinstance(part, pl.DataFrame):
        return [part.columns, hashlib.sha256(part.write_csv().encode()).hexdigest()]
    if isinstance(part, np.ndarray | np.generic):
        return part.tolist()
    if isinstance(part, date):
        return part.isoformat()
    if isinstance(part, Path):
        return str(part)
    if is_dataclass(part) and not isinstance(part, type):
        return asdict(part)
    raise TypeError(f"no fingerprint for a {type(part).__name__}")


def _canonical(shard: Path) -> pl.LazyFrame:
    present = pl.read_parquet_schema(shard)
    return pl.scan_parquet(shard).select(
        (pl.col(name) if name in present else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in EVENT_SCHEMA.items()
    )


def _check_columns(shard: Path) -> None:
    if not shard.is_file():
        raise DataError(f"{shard} is a pipe, a device or a link to nowhere; MEDS events are in parquet files")
    try:
        schema = pl.read_parquet_schema(shard)
    except READ_ERRORS as error:
        raise DataError(f"{shard} cannot be read as parquet ({error}); import the data again") from error
    check_schema(schema, shard)
    _check_subjects(shard)


def check_schema(schema: Mapping[str, pl.DataType], what: Path) -> None:
    """Make sure that columns are those of MEDS events.

    Parameters
    ----------
    what : has the columns, in a message

    Raises
    ------
    DataError
        If a needed column is missing, or one has a wrong type.
    """
    missing = [name for name in NEEDED_COLUMNS if name not in schema]
    if missing:
        raise DataError(
            f"{what} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)} (it has "
            f"{', '.join(schema)}); MEDS events need subject_id, time and code"
        )
    for name, dtype in schema.items():
        expected = _wrong_type(name, dtype)
        if expected:
            raise DataError(f"{what}: column {name} is {dtype}; MEDS needs {expected}; import the data again")


def _check_subjects(shard: Path) -> None:
    """Every event is of a subject; the file's statistics tell, or else the column itself."""
    try:
        with pq.ParquetFile(shard) as file:
            column = file.schema_arrow.names.index("subject_id")
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            told = [group.column(column).statistics for group in groups]
            if all(statistics is not None and statistics.has_null_count for statistics in told):
                n_missing = sum(statistics.null_count for statistics in told)
            else:
                n_missing = file.read(["subject_id"])["subject_id"].null_count
            n_events = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shard} cannot be read as parquet ({error}); import the data again") from error
    if n_missing:
        raise DataError(
            f"{shard}: {n_missing} of {n_events} events have no subject_id, and nobody's history can take them; "
            "import the data again with `ehrtrack import meds`, which leaves them out and counts them"
        )


def _wrong_type(name: str, dtype: pl.DataType) -> str | None:
    """What was expected, if the type of a column is not it."""
    if name == "subject_id" and not dtype.is_integer():
        return "an integer"
    if name == "time" and not (isinstance(dtype, pl.Datetime) and dtype.time_zone is None):
        return "a timestamp without a time zone"
    is_text = isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)
    if name in ("code", "text_value", "visit_id") and not (is_text or (name == "visit_id" and dtype.is_integer())):
        return "text"
    if name == "numeric_value" and not (dtype.is_numeric() or isinstance(dtype, pl.Null)):
        return "a number"
    return None
