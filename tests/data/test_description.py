"""What a dataset is said to hold, counted by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ehrtrack.data.description import describe_dataset
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.errors import DataError


def event(subject: int, time: datetime | None, code: str, number: float | None = None, text: str | None = None):
    return subject, time, code, number, text


SHARDS = [
    [
        event(1, datetime(1980, 3, 1), "MEDS_BIRTH"),
        event(1, None, "GENDER//F"),
        event(1, datetime(2019, 3, 1), "LAB//GLU//mg/dL", 90),  # a day after the birthday: 39
        event(1, datetime(2019, 3, 1, 8, 30), "LAB//GLU//mmol/L", 5),
        event(1, datetime(2021, 6, 1, 22), "LAB//HIV", None, "negative"),
        event(1, datetime(2021, 6, 1, 23), "MEDS_DEATH"),
    ],
    [
        event(2, datetime(2020, 1, 1, 12), "LAB//GLU//mg/dL", 80),
        event(2, datetime(2020, 1, 1, 13), "LAB//HIV"),  # of a code with results, and without one
        event(2, datetime(9998, 1, 1), "DIAGNOSIS//X"),
        event(3, datetime(1950, 1, 1), "MEDS_BIRTH"),
    ],
]


@pytest.fixture
def dataset(tmp_path: Path) -> MedsDataset:
    (tmp_path / "data").mkdir()
    (tmp_path / "metadata").mkdir()
    names = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
    names |= {"numeric_value": pl.Float32, "text_value": pl.String}
    for number, rows in enumerate(SHARDS):
        pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "data" / f"{number}.parquet")
    splits = pl.DataFrame({"subject_id": [1, 2, 3], "split": ["train", "train", "held_out"]})
    splits.write_parquet(tmp_path / "metadata" / "subject_splits.parquet")
    return open_dataset(tmp_path)


def test_subjects_events_and_results_are_counted_over_all_shards(dataset: MedsDataset) -> None:
    found = describe_dataset(dataset)
    assert (found.n_shards, found.n_subjects, found.n_events, found.n_births, found.n_deaths) == (2, 3, 10, 2, 1)
    assert (found.n_numeric, found.n_text, found.n_empty) == (3, 1, 1)
    assert (found.n_static, found.n_timed, found.n_without_clock, found.n_future) == (1, 7, 2, 1)
    assert (found.first_time, found.last_time) == (datetime(2019, 3, 1), datetime(9998, 1, 1))
    assert found.splits == {"train": 2, "held_out": 1}


def test_codes_are_counted_by_events_and_by_subjects(dataset: MedsDataset) -> None:
    codes = {row[0]: row[1:] for row in describe_dataset(dataset).codes.drop("description").iter_rows()}
    assert codes["LAB//GLU//mg/dL"] == (2, 2, 2, 0)
    assert codes["LAB//HIV"] == (2, 2, 0, 1)
    assert codes["GENDER//F"] == (1, 1, 0, 0)


def test_codes_that_differ_in_their_unit_are_told(dataset: MedsDataset) -> None:
    assert describe_dataset(dataset).mixed_units().rows() == [("LAB//GLU", ["mg/dL", "mmol/L"], 3)]


def test_ages_and_lengths_are_in_their_bands(dataset: MedsDataset) -> None:
    found = describe_dataset(dataset)
    ages = {label: (n, subjects) for label, n, subjects in found.ages.iter_rows() if n}
    assert ages == {"30–39": (2, 1), "40–49": (2, 1), "not known": (3, 1)}
    lengths = {label: n for label, n in found.lengths.iter_rows() if n}
    assert lengths == {"2 to 5 years": 1, "20 years and more": 1}  # the third has no event beside the birth


def test_years_are_put_together_where_they_are_many(dataset: MedsDataset) -> None:
    found = describe_dataset(dataset)
    assert found.years.rows() == [("2000–2999", 6, 1, 1), ("9000–9999", 1, 1, 1)]
    near = MedsDataset(dataset.path, dataset.shards[:1])
    assert describe_dataset(near).years.rows() == [("2019", 2, 1, 1), ("2021", 2, 1, 0)]


def test_a_clock_is_that_of_the_sources_zone(dataset: MedsDataset) -> None:
    """22 o'clock in UTC is midnight of a summer day in Berlin, and midnight in UTC is one o'clock in winter."""
    (dataset.path / "metadata" / "dataset.json").write_text('{"ehrtrack_time_zone": "Europe/Berlin"}')
    found = describe_dataset(replace(dataset, shards=dataset.shards[:1]))
    assert found.n_without_clock == 1
    assert found.years["n_without_clock"].to_list() == [0, 1]


def test_a_damaged_shard_is_named(dataset: MedsDataset) -> None:
    shard = dataset.shards[1]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"1\.parquet"):
        describe_dataset(dataset)
