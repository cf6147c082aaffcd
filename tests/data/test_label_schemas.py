"""Labels as the field writes them: MEDS's schema, ends of follow-up, and folders of shards."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from meds import LabelSchema

from ehrtrack.data import cohort as cohort_module
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.events import MedsDataset
from ehrtrack.data.importing.candidates import hash_subject_id
from ehrtrack.data.labels import read_labels
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.errors import ConfigError, DataError

ROWS = [row for subject in (1, 2, 3) for row in [(subject, "1970-01-01", "MEDS_BIRTH"), (subject, "2019-06-01", "A")]]
NOON = datetime(2020, 1, 1, 12)


@pytest.fixture
def dataset(make_dataset) -> MedsDataset:
    return make_dataset(ROWS)


def table(**columns: Any) -> pl.DataFrame:
    """Labels of subjects 1 to 3 at noon of the first day of 2020."""
    return pl.DataFrame({"subject_id": [1, 2, 3], "prediction_time": [NOON] * 3} | columns)


def outcome_of(folder: Path, dataset: MedsDataset, labels: pl.DataFrame) -> list[tuple[Any, ...]]:
    labels.write_parquet(folder / "labels.parquet")
    return read_labels(folder / "labels.parquet", dataset).drop("subject_id", "index_date").rows()


def test_a_file_of_the_schema_of_meds_has_classes_and_no_follow_up(dataset, tmp_path):
    labels = table(boolean_value=[False, True, False])
    LabelSchema.validate(labels.to_arrow())
    labels.write_parquet(tmp_path / "labels.parquet")
    found = read_labels(tmp_path / "labels.parquet", dataset)
    assert found.columns == ["subject_id", "index_date", "is_event"]
    assert found.rows() == [(1, NOON, False), (2, NOON, True), (3, NOON, False)]


def test_value_columns_that_aces_leaves_empty_are_not_there(dataset, tmp_path):
    empty = {
        "integer_value": pl.Series([None] * 3, dtype=pl.Int64),
        "float_value": pl.Series([None] * 3, dtype=pl.Float64),
        "categorical_value": pl.Series([None] * 3, dtype=pl.String),
    }
    assert outcome_of(tmp_path, dataset, table(boolean_value=[True, False, True], **empty)) == [
        (True,),
        (False,),
        (True,),
    ]
    with pytest.raises(DataError, match=r"lacks is_event .*wholly empty: boolean_value, integer_value, float_value"):
        outcome_of(tmp_path, dataset, table(boolean_value=pl.Series([None] * 3, dtype=pl.Boolean), **empty))


def test_an_empty_follow_up_is_no_reason_to_take_the_labels_for_classes(dataset, tmp_path):
    labels = table(follow_up_days=pl.Series([None] * 3, dtype=pl.Float64), boolean_value=[True, False, True])
    with pytest.raises(DataError, match="3 of 3 values of follow_up_days cannot be read"):
        outcome_of(tmp_path, dataset, labels)


@pytest.mark.parametrize("values", [[0, 1, 0], [0.0, 1.0, 0.0], ["0", "1", "0"]])
def test_integers_0_and_1_are_classes(dataset, tmp_path, values):
    assert outcome_of(tmp_path, dataset, table(integer_value=values)) == [(False,), (True,), (False,)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"integer_value": [0, 1, 3]}, r"1 of 3 values of integer_value .*first: 3 in row 3.* a boolean_value"),
        ({"float_value": [0.0, 1.0, 0.0]}, r"labels of float_value .*make it a boolean_value"),
        ({"categorical_value": ["a", "b", "a"]}, r"labels of categorical_value .*make it a boolean_value"),
        ({"boolean_value": [True, None, False]}, r"1 of 3 values of boolean_value cannot be read"),
        ({"is_event": [True, False, True]}, r"lacks follow_up_days .*censor_time.*boolean_value alone"),
        ({"follow_up_days": [1, 2, 3]}, r"lacks is_event \(it has subject_id, prediction_time, follow_up_days\)"),
    ],
)
def test_labels_of_what_is_not_foretold_are_refused(dataset, tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        outcome_of(tmp_path, dataset, table(**columns))


@pytest.mark.parametrize("truth", ["is_event", "boolean_value"])
def test_the_end_of_follow_up_stands_for_its_length(dataset, tmp_path, truth):
    ends = [datetime(2020, 1, 2), datetime(2020, 1, 11, 12), datetime(2020, 1, 1)]
    columns = {"censor_time": ends, truth: [True, False, True]}
    assert outcome_of(tmp_path, dataset, table(**columns)) == [(0.5, True), (10.0, False), (-0.5, True)]


def test_the_end_of_follow_up_is_read_in_the_zone_of_the_events(make_dataset, tmp_path):
    dataset = make_dataset(ROWS)
    (dataset.path / "metadata").mkdir()
    (dataset.path / "metadata" / "dataset.json").write_text('{"ehrtrack_time_zone": "Asia/Shanghai"}')
    (tmp_path / "labels.csv").write_text(
        "subject_id,prediction_time,censor_time,is_event\n1,2020-01-01T12:00,2020-01-02T04:00Z,1\n"
    )
    assert read_labels(tmp_path / "labels.csv", dataset)["follow_up_days"].to_list() == [1.0]  # both are 04:00 UTC


def test_length_goes_before_end_and_event_before_boolean(dataset, tmp_path):
    columns = {"follow_up_days": [1, 2, 3], "censor_time": [datetime(2021, 1, 1)] * 3}
    truths = {"is_event": [True, False, True], "boolean_value": [False, True, False]}
    assert outcome_of(tmp_path, dataset, table(**columns, **truths)) == [(1.0, True), (2.0, False), (3.0, True)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards as ACES writes them, one a split, with what writers leave beside them."""
    folder = tmp_path / "task"
    for split, subjects in (("train", [1, 2]), ("tuning", [3]), ("held_out", [])):
        (folder / split).mkdir(parents=True)
        frame = pl.DataFrame(
            {
                "subject_id": subjects,
                "prediction_time": [NOON] * len(subjects),
                "boolean_value": [subject == 2 for subject in subjects],
                "integer_value": [None] * len(subjects),
            },
            schema_overrides={
                "subject_id": pl.Int64,
                "prediction_time": pl.Datetime("us"),
                "boolean_value": pl.Boolean,
            },
        )
        frame.write_parquet(folder / split / "0.parquet")
    return folder


def test_a_folder_of_shards_is_one_table_in_the_order_of_paths(dataset, folder, capsys):
    (folder / "_SUCCESS").write_text("")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "0.parquet").write_bytes(b"not a part")
    (folder / "task.yaml").write_text("predicates: {}\n")
    assert read_labels(folder, dataset).rows() == [(1, NOON, False), (2, NOON, True), (3, NOON, False)]
    assert "not read as parts of the table: .cache/0.parquet, _SUCCESS, task.yaml" in capsys.readouterr().out
    assert read_labels(folder, dataset, needs_outcome=False).height == 3


def test_csv_shards_keep_ids_with_leading_zeros(make_dataset, tmp_path):
    dataset = make_dataset(ROWS)
    (dataset.path / "metadata").mkdir()
    source = pl.DataFrame({"source_id": ["001", "002"], "subject_id": [hash_subject_id(i) for i in ("001", "002")]})
    source.write_parquet(dataset.path / "metadata" / "subjects.parquet")
    (tmp_path / "task").mkdir()
    for number in (1, 2):
        text = f"subject_id,prediction_time,boolean_value\n00{number},2020-01-01,{number == 2}\n"
        (tmp_path / "task" / f"{number}.csv").write_text(text)
    found = read_labels(tmp_path / "task", dataset)
    assert found["subject_id"].to_list() == source["subject_id"].to_list()
    assert found["is_event"].to_list() == [False, True]


def test_ids_that_pandas_made_floats_in_one_shard_are_integers(dataset, folder):
    shard = folder / "train" / "0.parquet"
    pl.read_parquet(shard).with_columns(pl.col("subject_id").cast(pl.Float64)).write_parquet(shard)
    assert read_labels(folder, dataset)["subject_id"].to_list() == [1, 2, 3]


def test_shards_that_differ_are_refused(dataset, folder):
    shard = folder / "tuning" / "0.parquet"
    frame = pl.read_parquet(shard)
    frame.drop("integer_value").write_parquet(shard)
    with pytest.raises(
        DataError, match=r"integer_value is in one alone of .*held_out/0.parquet and .*tuning/0.parquet"
    ):
        read_labels(folder, dataset)
    frame.with_columns(pl.col("subject_id").cast(pl.String)).write_parquet(shard)
    with pytest.raises(DataError, match=r"subject_id is numbers in .*held_out/0.parquet and String in .*tuning"):
        read_labels(folder, dataset)


def test_a_folder_without_tables_is_refused(dataset, tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "labels.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds no \*.parquet or \*.csv \(it has labels.json\); cohort.labels needs"):
        read_labels(tmp_path / "task", dataset)


def class_cohort(dataset: MedsDataset, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any):
    monkeypatch.setattr(cohort_module, "_check_events", lambda *_: None)
    return build_cohort(dataset, CohortConfig(labels=folder, **settings), SplitConfig())


def test_classes_are_outcomes_that_are_known_of_everybody(dataset, folder, monkeypatch):
    cohort = class_cohort(dataset, folder, monkeypatch)
    assert (cohort.task, cohort.horizon_days, cohort.is_horizon_cut) == ("classification", 1.0, False)
    assert cohort.subjects.drop("split").rows() == [(1, NOON, 1.0, False), (2, NOON, 1.0, True), (3, NOON, 1.0, False)]
    assert "follow-up after the prediction time" not in cohort.attrition["step"].to_list()


def test_labels_with_a_follow_up_are_of_survival(dataset, tmp_path, monkeypatch):
    table(follow_up_days=[1.0] * 3, is_event=[False, True, False]).write_parquet(tmp_path / "labels.parquet")
    of_time = class_cohort(dataset, tmp_path / "labels.parquet", monkeypatch)
    assert of_time.task == "survival"
    table(boolean_value=[False, True, False]).write_parquet(tmp_path / "labels.parquet")
    of_class = class_cohort(dataset, tmp_path / "labels.parquet", monkeypatch)
    assert of_class.subjects.equals(of_time.subjects)
    assert of_class.fingerprint != of_time.fingerprint


@pytest.mark.parametrize("settings", [{"horizon_days": 30}, {"landmark_days": 7}])
def test_classes_have_no_horizon_and_no_landmark(dataset, folder, monkeypatch, settings):
    (name, days), *_ = settings.items()
    with pytest.raises(ConfigError, match=rf"cohort.{name} is {days}, and .*whether the outcome comes and not when"):
        class_cohort(dataset, folder, monkeypatch, **settings)
