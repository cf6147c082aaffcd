"""A gap before follow-up begins: who is followed from when, with dates worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import polars as pl
import pytest

from ehrtrack.data import cohort as cohort_module
from ehrtrack.data.cohort import Cohort, build_cohort
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.split_settings import SplitConfig, TimeSplit
from ehrtrack.data.visits import known_events
from ehrtrack.errors import DataError

RULES = {
    "index": {"rule": "first_code", "codes": ["A"]},
    "outcome": {"codes": ["X"]},
    "horizon_days": 100,
    "min_followed_share": 0,
}


@pytest.fixture
def build(make_dataset, monkeypatch) -> Callable[..., Cohort]:
    """A cohort of few subjects, which cannot fill three splits."""
    monkeypatch.setattr(cohort_module, "_check_events", lambda *_: None)

    def run(rows: Any, split: Any = None, **settings: Any) -> Cohort:
        config = CohortConfig.model_validate({**({} if "labels" in settings else RULES), **settings})
        return build_cohort(make_dataset(rows), config, split or SplitConfig())

    return run


def followed(cohort: Cohort) -> list[tuple[int, str, float, bool]]:
    rows = cohort.subjects.with_columns(pl.col("index_date").dt.strftime("%Y-%m-%d"))
    return rows.select("subject_id", "index_date", "follow_up_days", "is_event").rows()


ENDS = {  # the outcome, or the last contact, of subjects with an index date of 1 January 2020
    1: ("X", "2020-01-08"),  # on the gap's last moment
    2: ("X", "2020-01-08 12:00"),  # half a day after it
    3: ("B", "2020-01-08"),  # lost at the gap's end
    4: ("B", "2020-03-01"),  # followed for 60 days
    5: ("X", "2020-04-17"),  # on day 107, the horizon's last
    6: ("X", "2020-04-18"),  # a day later
    7: ("X", "2020-01-02"),
}


def with_ends() -> list[tuple[int, str, str]]:
    rows = [(s, "2020-01-01", "A") for s in ENDS] + [(s, time, code) for s, (code, time) in ENDS.items()]
    return rows + [(s, "2021-01-01", "B") for s, (code, _) in ENDS.items() if code == "X"]


def test_follow_up_begins_after_the_gap_and_what_is_known_ends_at_the_index(build, make_dataset):
    cohort = build(with_ends(), gap_days=7)
    assert followed(cohort) == [
        (2, "2020-01-01", 0.5, True),
        (4, "2020-01-01", 53.0, False),
        (5, "2020-01-01", 100.0, True),
        (6, "2020-01-01", 100.0, False),
    ]
    assert cohort.attrition.rows()[-2:] == [("no outcome within gap_days", 5, 2), ("follow-up after gap_days", 4, 1)]
    known = known_events(make_dataset(with_ends()).scan(), cohort.cutoffs).collect()
    assert known["time"].unique().to_list() == [datetime(2020, 1, 1)]


def test_a_gap_of_labels_counts_from_the_prediction_time_and_keeps_causes(build, tmp_path):
    (tmp_path / "labels.csv").write_text(
        "subject_id,prediction_time,follow_up_days,is_event,cause\n"
        "1,2020-01-01,7,1,2\n2,2020-01-01,7.5,1,2\n3,2020-01-01,7,0,0\n4,2020-01-01,60,0,0\n5,2020-01-01,90,1,1\n"
    )
    cohort = build(with_ends(), labels=tmp_path / "labels.csv", gap_days=7, horizon_days=80)
    assert cohort.subjects.select("subject_id", "follow_up_days", "is_event", "cause").rows() == [
        (2, 0.5, True, 2),
        (4, 53.0, False, 0),
        (5, 80.0, False, 0),
    ]
    assert cohort.attrition["n_dropped"].to_list()[-2:] == [1, 1]


def test_a_gap_after_a_landmark_counts_from_the_landmark(build):
    rows = [(1, "2020-01-01", "A"), (1, "2020-01-20", "X"), (1, "2021-01-01", "B")]
    assert followed(build(rows, landmark_days=10, gap_days=4)) == [(1, "2020-01-11", 5.0, True)]
    with pytest.raises(DataError, match="'no outcome within gap_days' dropped the last 1"):
        build(rows, landmark_days=10, gap_days=9)


def test_by_time_follow_up_after_a_gap_ends_at_the_test_date(build):
    rows = [(1, "2019-12-01", "A"), (1, "2020-06-01", "B"), (2, "2020-02-01", "A"), (2, "2021-01-01", "B")]
    rows += [(3, "2019-12-28", "A"), (3, "2020-06-01", "B")]  # four days to the new year: the gap alone is longer
    split = TimeSplit(rule="time", train_before="2020-01-01", test_from="2020-01-01")
    cohort = build(rows, split, gap_days=7)
    assert followed(cohort) == [(1, "2019-12-01", 24.0, False), (2, "2020-02-01", 100.0, False)]


def test_a_gap_is_part_of_the_fingerprint_where_there_is_one(build):
    prints = [build(with_ends(), **gap).fingerprint for gap in ({}, {"gap_days": 0}, {"gap_days": 7}, {"gap_days": 6})]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
