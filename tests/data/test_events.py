"""Opening a MEDS dataset: what is read, what is refused, and what a fingerprint depends on."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrtrack.data.events import (
    EVENT_SCHEMA,
    fingerprint_of,
    life_spans,
    open_dataset,
    starts_with_any,
)
from ehrtrack.data.settings import VisitConfig
from ehrtrack.errors import DataError


def write_shard(folder: Path, table: pl.DataFrame, name: str = "0.parquet") -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table.write_parquet(folder / "data" / name)
    return folder


def minimal(**columns: pl.Series) -> pl.DataFrame:
    base = {
        "subject_id": pl.Series([1], dtype=pl.Int64),
        "time": pl.Series([date(2020, 1, 1)]).cast(pl.Datetime("us")),
        "code": pl.Series(["A"]),
    }
    return pl.DataFrame({**base, **columns})


def test_missing_optional_columns_become_null(tmp_path):
    events = open_dataset(write_shard(tmp_path, minimal())).scan().collect()
    assert dict(events.schema) == EVENT_SCHEMA
    assert events.select("numeric_value", "text_value", "visit_id").row(0) == (None, None, None)


def test_shards_of_different_columns_and_types_are_read_as_one(tmp_path):
    write_shard(tmp_path, minimal(numeric_value=pl.Series([1.5], dtype=pl.Float64)))
    other = minimal(code=pl.Series(["B"], dtype=pl.Categorical), visit_id=pl.Series([7]))
    write_shard(tmp_path, other, "1.parquet")
    events = open_dataset(tmp_path).scan().collect()
    assert events["code"].to_list() == ["A", "B"]
    assert events["numeric_value"].to_list() == [1.5, None]
    assert events["visit_id"].to_list() == [None, "7"]


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        open_dataset(tmp_path / "nowhere")


def test_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no data/\*\.parquet"):
        open_dataset(tmp_path)


def test_missing_column_is_named(tmp_path):
    with pytest.raises(DataError, match="lacks the column code"):
        open_dataset(write_shard(tmp_path, minimal().drop("code")))


@pytest.mark.parametrize(
    ("name", "column", "needed"),
    [
        ("subject_id", pl.Series(["x"]), "MEDS needs an integer"),
        ("time", pl.Series(["2020-01-01"]), "MEDS needs a timestamp"),
        ("time", pl.Series([date(2020, 1, 1)]).cast(pl.Datetime("us", "UTC")), "without a time zone"),
        ("code", pl.Series([3]), "MEDS needs text"),
        ("numeric_value", pl.Series(["high"]), "MEDS needs a number"),
    ],
)
def test_column_of_wrong_type_is_refused(tmp_path, name, column, needed):
    with pytest.raises(DataError, match=f"column {name} is .*{needed}"):
        open_dataset(write_shard(tmp_path, minimal(**{name: column})))


def test_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.parquet").write_text("subject_id,time,code\n")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_dataset(tmp_path)


def test_dataset_fingerprint_follows_the_events_and_not_the_folder(tmp_path):
    here = open_dataset(write_shard(tmp_path / "here", minimal()))
    there = open_dataset(write_shard(tmp_path / "there", minimal()))
    other = open_dataset(write_shard(tmp_path / "other", minimal(code=pl.Series(["B"]))))
    assert here.fingerprint() == there.fingerprint()
    assert here.fingerprint() != other.fingerprint()
    assert len(here.fingerprint()) == 16


def test_fingerprint_of_equal_parts_is_equal_whatever_their_spelling():
    assert fingerprint_of((1, 2), {"a": 1, "b": 2}) == fingerprint_of([1, 2], {"b": 2, "a": 1})
    assert fingerprint_of(np.array([1, 2])) == fingerprint_of([1, 2])
    assert fingerprint_of(VisitConfig(unit="hour")) == fingerprint_of(VisitConfig(unit="hour").model_dump())
    assert fingerprint_of(date(2020, 1, 1)) == fingerprint_of("2020-01-01")


def test_fingerprint_of_a_table_sees_every_cell_and_the_order():
    table = pl.DataFrame({"a": [1, 2], "b": [0.1, None]})
    prints = {
        fingerprint_of(table),
        fingerprint_of(table.reverse()),
        fingerprint_of(table.with_columns(b=pl.lit(0.1))),
        fingerprint_of(table.rename({"b": "c"})),
    }
    assert len(prints) == 4


def test_fingerprint_is_the_same_in_every_process():
    assert fingerprint_of("a", 1) == "135f17a475a61afd"


def test_fingerprint_of_something_unknown_is_refused():
    with pytest.raises(TypeError, match="no fingerprint for a set"):
        fingerprint_of({1, 2})


def test_life_span_holds_birth_death_and_the_other_events(frame):
    events = frame(
        [
            (1, None, "GENDER//F"),
            (1, "1950-05-01", "MEDS_BIRTH"),
            (1, "2000-01-01", "A"),
            (1, "2001-01-01", "MEDS_DEATH"),
            (2, "1990-01-01", "MEDS_BIRTH"),
        ]
    )
    spans = life_spans(events.lazy()).sort("subject_id").collect()
    assert spans["birth"].dt.to_string("%Y-%m-%d").to_list() == ["1950-05-01", "1990-01-01"]
    assert spans["first_time"].dt.to_string("%Y-%m-%d").to_list() == ["2000-01-01", None]
    assert spans["last_time"].dt.to_string("%Y-%m-%d").to_list() == ["2001-01-01", None]
    assert spans["death"].dt.to_string("%Y-%m-%d").to_list() == ["2001-01-01", None]


def test_patterns_match_at_the_start_of_the_code_only():
    codes = pl.DataFrame({"code": ["K25.0", "XK25", "K92", "K2", "I21"]})
    matched = codes.filter(starts_with_any(("K2[5-8]", "I21$|K92")))
    assert matched["code"].to_list() == ["K25.0", "K92", "I21"]
    assert codes.filter(starts_with_any(())).is_empty()


def test_source_ids_that_are_not_kept_are_missed_with_the_way_out(tmp_path):
    with pytest.raises(DataError, match=r"subjects\.parquet"):
        open_dataset(write_shard(tmp_path, minimal())).source_ids()


def test_code_descriptions_are_those_of_the_metadata(tmp_path):
    dataset = open_dataset(write_shard(tmp_path, minimal()))
    assert dataset.code_descriptions() == {}
    (tmp_path / "metadata").mkdir()
    pl.DataFrame({"code": ["A", "B"], "description": ["Alpha", None]}).write_parquet(
        tmp_path / "metadata" / "codes.parquet"
    )
    assert dataset.code_descriptions() == {"A": "Alpha"}
