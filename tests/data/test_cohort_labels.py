"""Cohorts from an external label file: how it is read, clipped and joined, and what it may not be."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from ehrtrack.data import cohort as cohort_module
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.importing.candidates import hash_subject_id
from ehrtrack.data.labels import read_labels
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.splits import assign_splits
from ehrtrack.errors import DataError

HEADER = "subject_id,prediction_time,follow_up_days,is_event\n"
ROWS = [row for subject in (1, 2, 3) for row in [(subject, "1970-01-01", "MEDS_BIRTH"), (subject, "2019-06-01", "A")]]


@pytest.fixture
def label(make_dataset, tmp_path, monkeypatch):
    """Builds a cohort of labels (CSV rows) over a dataset. A few subjects cannot fill three splits."""
    monkeypatch.setattr(cohort_module, "_check_events", lambda *_: None)

    def run(lines: str, rows=ROWS, **config):
        (tmp_path / "labels.csv").write_text(HEADER + lines)
        settings = CohortConfig(labels=tmp_path / "labels.csv", **config)
        return build_cohort(make_dataset(rows), settings, SplitConfig())

    return run


def test_labels_are_taken_as_they_are(label):
    cohort = label("2,2020-01-01 14:30:00,100,1\n1,2020-01-02,50.5,false\n")
    assert cohort.subjects.drop("split").rows() == [
        (1, datetime(2020, 1, 2), 50.5, False),
        (2, datetime(2020, 1, 1, 14, 30), 100.0, True),
    ]
    assert cohort.horizon_days == 100


def test_horizon_censors_longer_follow_up_and_keeps_events_at_it(label):
    cohort = label("1,2020-01-01,100,1\n2,2020-01-01,90,1\n3,2020-01-01,30,1\n", horizon_days=90)
    assert cohort.subjects.select("follow_up_days", "is_event").rows() == [
        (90, False),
        (90, True),
        (30, True),
    ]
    assert cohort.horizon_days == 90


def test_attrition_of_labels(label):
    rows = [
        *ROWS,
        (4, "2020-06-01", "A"),
        (5, "2019-01-01", "A"),
        (5, "2019-12-31", "MEDS_DEATH"),
        (6, None, "F"),
    ]
    lines = "".join(f"{subject},2020-01-01,{10 * (subject != 3)},1\n" for subject in (1, 2, 3, 4, 5, 6, 7))
    assert label(lines, rows).attrition.rows() == [
        ("subjects in the labels", 7, 0),
        ("in the dataset", 6, 1),
        ("has an event at or before the prediction time", 4, 2),
        ("alive at the prediction time", 3, 1),
        ("age of at most 120 years at the prediction time", 3, 0),
        ("follow-up after the prediction time", 2, 1),
    ]


def test_eligibility_rules_hold_for_labels_too(label):
    cohort = label("1,2019-12-31,10,1\n2,2020-01-01,10,1\n", min_age_years=50)
    assert cohort.subjects["subject_id"].to_list() == [2]


def test_source_ids_are_looked_up(make_dataset, tmp_path):
    dataset = make_dataset(ROWS)
    (dataset.path / "metadata").mkdir()
    pl.DataFrame({"source_id": ["p-one", "p-two"], "subject_id": [1, 2]}).write_parquet(
        dataset.path / "metadata" / "subjects.parquet"
    )
    (tmp_path / "labels.csv").write_text(HEADER + "p-two,2020-01-01,1,1\np-nine,2020-01-01,1,0\np-one,2020-01-01,1,0\n")
    assert read_labels(tmp_path / "labels.csv", dataset)["subject_id"].to_list() == [2, None, 1]


def test_parquet_with_dates_and_integers_is_read(make_dataset, tmp_path):
    pl.DataFrame(
        {
            "subject_id": pl.Series([1, 2], dtype=pl.Int32),
            "prediction_time": [date(2020, 1, 1), date(2020, 1, 2)],
            "follow_up_days": [3, 4],
            "is_event": [0, 1],
            "note": ["not needed", ""],
        }
    ).write_parquet(tmp_path / "labels.parquet")
    assert read_labels(tmp_path / "labels.parquet", make_dataset(ROWS)).rows() == [
        (1, datetime(2020, 1, 1), 3.0, False),
        (2, datetime(2020, 1, 2), 4.0, True),
    ]


def test_prediction_needs_no_outcome_columns(make_dataset, tmp_path):
    (tmp_path / "labels.csv").write_text("subject_id,prediction_time\n1,2020-01-01T08:00:00\n")
    table = read_labels(tmp_path / "labels.csv", make_dataset(ROWS), needs_outcome=False)
    assert table.rows() == [(1, datetime(2020, 1, 1, 8))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEADER + "1,2020-01-01,1,1\n2,2020-01-01,1,1\n1,2020-01-01T00:00,1,0\n",
            r"1 pairs of subject_id and prediction_time .*subject 1 at 2020-01-01 00:00:00, 2 times",
        ),
        ("subject_id,time,is_event\n1,2020-01-01,1\n", "lacks prediction_time"),
        (
            HEADER + "1,2020-01-01,1,1\n2,01/02/2020,1,1\n",
            r"1 of 2 .*prediction_time .*'01/02/2020' in row 2",
        ),
        (HEADER + "1,,1,1\n", "prediction_time cannot be read"),
        (HEADER + "1,2020-01-01,long,1\n", "follow_up_days cannot be read"),
        (HEADER + "1,2020-01-01,1,maybe\n", "is_event cannot be read"),
        (HEADER + "p-one,2020-01-01,1,1\n", "subjects.parquet"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(make_dataset, tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "labels.csv", make_dataset(ROWS))


def test_labels_file_that_is_not_there_is_refused(make_dataset, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_labels(tmp_path / "labels.csv", make_dataset(ROWS))


def test_labels_of_other_subjects_leave_an_empty_cohort(label):
    with pytest.raises(DataError, match="'in the dataset' dropped the last 2 subjects"):
        label("8,2020-01-01,1,1\n9,2020-01-01,1,0\n")


def test_moving_the_labels_file_keeps_the_fingerprint(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(cohort_module, "_check_events", lambda *_: None)
    dataset = make_dataset(ROWS)
    prints = []
    for name, follow_up in [("a.csv", 5), ("b.csv", 5), ("c.csv", 6)]:
        (tmp_path / name).write_text(f"{HEADER}1,2020-01-01,{follow_up},1\n")
        prints.append(build_cohort(dataset, CohortConfig(labels=tmp_path / name), SplitConfig()).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_labels_at_a_landmark(label):
    cohort = label("1,2020-01-01,100,1\n2,2020-01-01,90,1\n3,2020-01-01,30,1\n", landmark_days=30, horizon_days=65)
    assert cohort.subjects.drop("split").rows() == [
        (1, datetime(2020, 1, 31), 65.0, False),
        (2, datetime(2020, 1, 31), 60.0, True),
    ]
    assert cohort.attrition.row(-1) == ("follow-up after the landmark", 2, 1)


def test_without_a_horizon_it_is_the_longest_follow_up_that_enough_training_subjects_reach(
    make_dataset, tmp_path, capsys
):
    """400 subjects enter over a thousand days: the last of 280 in training is not what the horizon is named for."""
    subjects = range(1, 401)
    rows = [row for i in subjects for row in [(i, "1970-01-01", "MEDS_BIRTH"), (i, "2019-06-01", "A")]]
    lines = "".join(f"{i},2020-01-01,{2.5 * i:.2f},{int(i % 3 == 0)}\n" for i in subjects)
    (tmp_path / "labels.csv").write_text(HEADER + lines)
    labels, dataset = CohortConfig(labels=tmp_path / "labels.csv"), make_dataset(rows)
    cohort = build_cohort(dataset, labels, SplitConfig())
    of_training = assign_splits(pl.Series(subjects), SplitConfig()) == "train"
    days = [2.5 * i for i, is_training in zip(subjects, of_training, strict=True) if is_training]
    third_longest = sorted(days)[-3]  # 1 % of some 280, rounded up
    assert 200 < len(days) <= 300
    assert cohort.horizon_days == third_longest // 1
    assert cohort.is_horizon_cut
    assert cohort.subjects["follow_up_days"].max() == cohort.horizon_days
    assert not cohort.subjects.filter(pl.col("subject_id") > third_longest / 2.5)["is_event"].any()
    assert f"the horizon is {cohort.horizon_days:g} days, as fewer than 1.0%" in capsys.readouterr().out
    whole = build_cohort(dataset, labels.model_copy(update={"min_followed_share": 0}), SplitConfig())
    assert (whole.horizon_days, whole.is_horizon_cut) == (1000, False)
    with pytest.raises(DataError, match=rf"is 999, and .* that would do is {cohort.horizon_days:g} days"):
        build_cohort(dataset, labels.model_copy(update={"horizon_days": 999.0}), SplitConfig())


# Times, ids and durations as the field writes them


def dataset_with(folder: Path, source_ids: list[str], *, time_zone: str = "UTC") -> MedsDataset:
    ids = pl.Series([hash_subject_id(name) for name in source_ids])
    frame = pl.DataFrame({"subject_id": ids, "time": [datetime(2010, 1, 1)] * len(ids), "code": ["A"] * len(ids)})
    frame.sort("subject_id").write_parquet(folder / "data" / "0.parquet", mkdir=True)
    pl.DataFrame({"source_id": source_ids, "subject_id": ids}).write_parquet(
        folder / "metadata" / "subjects.parquet", mkdir=True
    )
    (folder / "metadata" / "dataset.json").write_text(json.dumps({"ehrtrack_time_zone": time_zone}))
    return open_dataset(folder)


def labels_of(folder: Path, **columns: object) -> Path:
    table = {"subject_id": ["001"], "prediction_time": [datetime(2010, 2, 1, 10)], "follow_up_days": [5.0]}
    path = folder / "labels.parquet"
    pl.DataFrame(table | {"is_event": [True]} | columns).write_parquet(path)
    return path


@pytest.mark.parametrize(
    ("stamp", "utc"),
    [
        ("2010-02-01 10:00", datetime(2010, 2, 1, 2)),
        ("2010-02-01", datetime(2010, 1, 31, 16)),
        ("2010-02-01T10:00:00+08:00", datetime(2010, 2, 1, 2)),
        ("2010-02-01 10:00:00Z", datetime(2010, 2, 1, 10)),
        ("2010-02-01 10:00:00 -05", datetime(2010, 2, 1, 15)),
    ],
)
def test_text_of_labels_becomes_utc_as_events_do(tmp_path: Path, stamp: str, utc: datetime) -> None:
    dataset = dataset_with(tmp_path / "meds", ["001"], time_zone="Asia/Shanghai")
    labels = read_labels(labels_of(tmp_path, prediction_time=[stamp]), dataset)
    assert labels["index_date"].to_list() == [utc]


def test_stamps_of_labels_become_utc_as_events_do(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "meds", ["001"], time_zone="Asia/Shanghai")
    plain = pl.Series([datetime(2010, 2, 1, 10)])
    for stamps in (plain, plain.dt.replace_time_zone("Asia/Shanghai"), plain.cast(pl.Datetime("ns"))):
        labels = read_labels(labels_of(tmp_path, prediction_time=stamps), dataset)
        assert labels["index_date"].to_list() == [datetime(2010, 2, 1, 2)]
    day = read_labels(labels_of(tmp_path, prediction_time=plain.cast(pl.Date)), dataset)
    assert day["index_date"].to_list() == [datetime(2010, 1, 31, 16)]


def test_ids_with_leading_zeros_are_the_sources(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "meds", ["001", "002", "1"])
    found = read_labels(labels_of(tmp_path, subject_id=["002"]), dataset)["subject_id"]
    assert found.to_list() == [hash_subject_id("002")]
    one = read_labels(labels_of(tmp_path, subject_id=["1"]), dataset)["subject_id"]
    assert one.to_list() == [hash_subject_id("1")]


def test_ids_that_pandas_made_floats_are_integers(label, tmp_path: Path) -> None:
    cohort = label("1.0,2020-01-01,10,1\n2.0,2020-01-01,10,0\n")
    assert cohort.subjects["subject_id"].to_list() == [1, 2]
    dataset = dataset_with(tmp_path / "meds", ["a"])
    assert read_labels(labels_of(tmp_path, subject_id=[7.0]), dataset)["subject_id"].to_list() == [7]
    assert read_labels(labels_of(tmp_path, subject_id=[7.5]), dataset)["subject_id"].to_list() == [None]


def test_a_duration_is_so_many_days(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "meds", ["001"])
    labels = read_labels(labels_of(tmp_path, follow_up_days=[timedelta(days=11, hours=12)]), dataset)
    assert labels["follow_up_days"].to_list() == [11.5]
    with pytest.raises(DataError, match=r"follow_up_days is Date; it must be a number of days, or a duration"):
        read_labels(labels_of(tmp_path, follow_up_days=[date(2010, 1, 1)]), dataset)
