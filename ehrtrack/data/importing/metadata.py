"""The metadata of an imported dataset: its codes, its subjects' identifiers in the source, and how it was made."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrtrack.errors import DataError

# `meds.schema.CodeMetadataSchema`, which takes 0.14 s to import.
_CODES_SCHEMA = pa.schema(
    {"code": pa.string(), "description": pa.string(), "parent_codes": pa.list_(pa.field("item", pa.string()))}
)
_SPLITS_SCHEMA = pa.schema([pa.field("subject_id", pa.int64()), pa.field("split", pa.string())])
_SUBJECTS_SCHEMA = pa.schema([pa.field("source_id", pa.string()), pa.field("subject_id", pa.int64())])


def write_codes(path: Path, codes: pl.DataFrame) -> None:
    """Every code that is used, with its description and its parents where there are any."""
    codes = codes.sort("code").select("code", "description", "parent_codes")
    pq.write_table(codes.to_arrow().cast(_CODES_SCHEMA), path)


def write_subjects(path: Path, subjects: pl.DataFrame) -> None:
    """Which of the source's identifiers each subject had."""
    pq.write_table(subjects.select("source_id", "subject_id").to_arrow().cast(_SUBJECTS_SCHEMA), path)


def write_splits(path: Path, subjects: pl.DataFrame, splits: pl.DataFrame) -> None:
    """Which subjects are to train, tune and judge, as the source has it.

    Raises
    ------
    DataError
        If a subject is in two splits.
    """
    of_subjects = subjects.join(splits, on="source_id").select("subject_id", "split").unique().sort("subject_id")
    twice = of_subjects.filter(pl.col("subject_id").is_duplicated())
    if twice.height:
        raise DataError(
            f"the source's subject_splits.parquet puts {twice['subject_id'].n_unique():,} subjects into several splits "
            f"(first: subject {twice['subject_id'][0]}); keep one row a subject"
        )
    pq.write_table(of_subjects.to_arrow().cast(_SPLITS_SCHEMA), path)


def write_description(path: Path, source: str, *, time_zone: str) -> None:
    """What the dataset is, by the words of MEDS; and the zone in which stamps without one were read."""
    description = {
        "dataset_name": source,
        "etl_name": f"ehrtrack import {source}",
        "etl_version": version("ehrtrack"),
        "meds_version": version("meds"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "raw_source_id_columns": ["visit_id"],
        "ehrtrack_time_zone": time_zone,
    }
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
