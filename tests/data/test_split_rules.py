"""Splits by rule: who is in which, who is left out, and what is refused, with dates and groups worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import TypeAdapter

from ehrtrack.config import load_config, override, parse_config, parse_run_config, to_toml
from ehrtrack.data.cohort import Cohort, build_cohort
from ehrtrack.data.events import MedsDataset, fingerprint_of
from ehrtrack.data.record_ends import record_cutoffs
from ehrtrack.data.settings import CohortConfig, VisitConfig
from ehrtrack.data.shards import ShardWork
from ehrtrack.data.split_rules import (
    SPLIT_TABLE,
    n_read_in_pretraining,
    settle_split,
    subject_groups,
    table_fingerprint,
    with_splits,
)
from ehrtrack.data.split_settings import ColumnSplit, DatasetSplit, Split, SplitConfig, TimeSplit
from ehrtrack.data.splits import assign_splits
from ehrtrack.data.store import build_store
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import ConfigError, DataError

RULES = {"index": {"rule": "first_code", "codes": ["A"]}, "outcome": {"codes": ["X"]}, "horizon_days": 100}
SPLIT: TypeAdapter[Split] = TypeAdapter(Split)


def cohort_config(**changes: Any) -> CohortConfig:
    return CohortConfig.model_validate({**RULES, **changes})


def story(subject: int, index: str = "2020-01-01", *, days: int = 30) -> list[tuple[int, str, str]]:
    """Born 1970, an index date, contact 366 days later; subjects of odd ids have the outcome after some days."""
    start = datetime.fromisoformat(index)
    last = date.fromordinal(start.toordinal() + 366).isoformat()
    rows = [(subject, "1970-01-01", "MEDS_BIRTH"), (subject, index, "A"), (subject, last, "B")]
    outcome = date.fromordinal(start.toordinal() + days).isoformat()
    return [*rows, (subject, outcome, "X")] if subject % 2 else rows


def population(n_subjects: int = 60, index: str = "2020-01-01") -> list[tuple[int, str, str]]:
    return [row for subject in range(1, n_subjects + 1) for row in story(subject, index)]


def splits_of(cohort: Cohort) -> dict[int, str]:
    return dict(cohort.subjects.select("subject_id", "split").iter_rows())


def write_splits(dataset: MedsDataset, splits: dict[int, str]) -> None:
    table = pl.DataFrame({"subject_id": list(splits), "split": list(splits.values())})
    table.write_parquet(dataset.path / SPLIT_TABLE, mkdir=True)


# the hash, as before there were other rules


@pytest.mark.parametrize(
    ("settings", "letters", "fingerprint"),
    [
        ({}, "rrarrrearrrrrerreearrararrarrrrrrrrarrrrarrrarraararrrrrrrrr", "d987e63f4fb1b98d"),
        ({"seed": 3}, "rrrerrrrraerrarrerrrrrrerrrrrrrarerrraeeraerarrrrrrerrereree", "5cf305c2dbc689d9"),
        (
            {"train": 0.5, "validation": 0.2},
            "rrerareerrrarerreeearereraeraarrrarerrraeraaerreerearrrrrrar",
            "a10e3aab6e914460",
        ),
    ],
)
def test_a_split_without_a_rule_is_the_hash_with_the_fingerprints_of_before(
    make_dataset, settings, letters, fingerprint
):
    dataset = make_dataset(population())
    dataset.__dict__["_fingerprint"] = "0" * 16  # whatever bytes this version of polars writes
    split = SPLIT.validate_python(settings)
    cohort = build_cohort(dataset, cohort_config(), split)
    assert isinstance(split, SplitConfig)
    assert "".join(name[1] for name in cohort.subjects["split"]) == letters
    assert cohort.fingerprint == fingerprint
    said = SPLIT.validate_python({"rule": "hash", **settings})
    assert build_cohort(dataset, cohort_config(), said).fingerprint == fingerprint


def test_store_records_sweep_and_sensitivity_keep_their_fingerprints(make_dataset, tmp_path):
    dataset = make_dataset(population())
    dataset.__dict__["_fingerprint"] = "0" * 16
    cohort = build_cohort(dataset, cohort_config(), SplitConfig(train=0.5, validation=0.2))
    vocabulary = Vocabulary(tokens=(*SPECIAL_TOKENS, "A", "B"), value_edges={})
    store = build_store(dataset, cohort.cutoffs, vocabulary, VisitConfig(), tmp_path / "stores")
    assert store.fingerprint == "3830c0d396344bf3"
    cutoffs = record_cutoffs(dataset, SplitConfig(seed=5), ShardWork(tmp_path / "cache"))
    assert fingerprint_of(cutoffs) == "0fdf3c6e2cdb8e3a"
    config = parse_config(
        {
            "study": "s",
            "data": {"path": "meds", "split": {"seed": 3}},
            "cohort": {"labels": "l.csv"},
            "objective": {"name": "survival", "statics": False},  # as before there were any
            "runtime": {"cache": "c"},
        }
    )
    elsewhere = ("runtime", "registry", "sensitivity")
    assert fingerprint_of(config.identity(without=(*elsewhere, "negative_controls"))) == "264f857c0d03cc95"
    assert fingerprint_of(config.identity(without=(*elsewhere, "search"))) == "a83195905db3c5de"


# by time


TIME = TimeSplit(rule="time", train_before="2018-01-01", test_from="2019-01-01", seed=2, validation=0.5)


def in_three_periods() -> list[tuple[int, str, str]]:
    """Subjects 1 to 20 are asked about in 2017, 21 to 24 on 2018's first day and last second, 25 to 34 from 2019 on."""
    early = [row for subject in range(1, 21) for row in story(subject, "2017-06-01")]
    between = [row for s in (21, 22) for row in story(s, "2018-01-01")]
    between += [row for s in (23, 24) for row in story(s, "2018-12-31 23:59:59")]
    late = [row for s in range(25, 35) for row in story(s, "2019-01-01")]
    return early + between + late


def test_by_time_the_early_learn_the_late_test_and_those_between_are_left_out(make_dataset):
    cohort = build_cohort(make_dataset(in_three_periods()), cohort_config(), TIME)
    found = splits_of(cohort)
    half = assign_splits(pl.Series(range(1, 21)), SplitConfig(seed=2, train=0.5, validation=0.49999999))
    assert [found[subject] for subject in range(1, 21)] == half.to_list()
    assert {found[subject] for subject in range(25, 35)} == {"test"}
    assert not set(found) & {21, 22, 23, 24}
    assert (
        "asked about before split.train_before or from split.test_from on",
        30,
        4,
    ) in cohort.attrition.rows()


def test_a_subject_of_several_times_is_in_the_period_of_the_first(make_dataset):
    times = {
        1: ["2017-01-01", "2017-12-31", "2018-05-01", "2019-06-01"],  # learns: two rows stay
        2: ["2019-01-01", "2020-01-01"],  # tests, with both
        3: ["2018-06-01", "2019-06-01"],  # between
    }
    rows = pl.DataFrame(
        [(subject, datetime.fromisoformat(time)) for subject in times for time in times[subject]],
        schema={"subject_id": pl.Int64, "time": pl.Datetime("us")},
        orient="row",
    )
    divided, steps = with_splits(make_dataset(population(1)), rows, TIME)
    flow = []
    for step in steps:
        kept = divided.filter(step.holds)
        flow.append(divided.height - kept.height)
        divided = kept
    assert flow == [2, 2]  # 2018-05-01 and 2018-06-01; then 2019-06-01 of subjects 1 and 3
    assert divided.select("subject_id", pl.col("time").dt.year()).rows() == [(1, 2017), (1, 2017), (2, 2019), (2, 2020)]
    assert divided.group_by("subject_id").agg(pl.col("split").n_unique())["split"].to_list() == [1, 1]


def test_follow_up_that_is_learnt_from_ends_when_the_first_test_subject_is_asked_about(make_dataset, capsys):
    rows = [row for s in range(1, 41) for row in story(s, "2018-12-01", days=31 if s % 4 == 1 else 30)]
    rows += [row for s in range(41, 61) for row in story(s, "2019-01-01", days=31)]
    split = TIME.model_copy(update={"train_before": date(2019, 1, 1)})
    cohort = build_cohort(make_dataset(rows), cohort_config(min_followed_share=0), split)
    learning = cohort.subjects.filter(pl.col("split") != "test")
    # until 1 January: the outcome of the 30th day, and on the 31st, 00:00, are seen; who has none is followed 31 days
    assert {
        (s % 4, days, is_event)
        for s, days, is_event in learning.select("subject_id", "follow_up_days", "is_event").iter_rows()
    } == {(1, 31.0, True), (3, 30.0, True), (0, 31.0, False), (2, 31.0, False)}
    assert cohort.subjects.filter(pl.col("split") == "test")["follow_up_days"].max() == 100
    assert "the follow-up of 20 of 40 training and validation rows is cut at split.test_from" in capsys.readouterr().out


def test_at_a_landmark_subjects_stay_in_the_split_of_their_index_date(make_dataset):
    dataset = make_dataset([*in_three_periods(), *(row for s in range(41, 61) for row in story(s, "2017-12-20"))])
    split = TIME.model_copy(update={"test_from": date(2018, 1, 1)})
    at_index = splits_of(build_cohort(dataset, cohort_config(), split))
    at_landmark = splits_of(build_cohort(dataset, cohort_config(landmark_days=10), split))
    later = splits_of(build_cohort(dataset, cohort_config(landmark_days=20, min_followed_share=0), split))
    assert at_landmark == at_index
    assert set(later.items()) < set(at_index.items())  # no follow-up before 2018 is left of those of 20 December
    assert not set(later) & set(range(41, 61))


def test_records_are_cut_at_the_last_event_before_the_date_and_none_is_for_testing(make_dataset, tmp_path, capsys):
    rows = [*in_three_periods(), (50, "1970-01-01", "MEDS_BIRTH"), (50, "2017-01-01", "A")]
    rows += [(51, "1970-01-01", "MEDS_BIRTH"), (51, "2017-01-01", "A"), (51, "2018-01-01", "A")]
    table = record_cutoffs(make_dataset(rows), TIME, ShardWork(tmp_path))
    assert table["subject_id"].to_list() == [*range(1, 21), 50, 51]
    ends = dict(table.select("subject_id", pl.col("cutoff").dt.strftime("%Y-%m-%d")).iter_rows())
    assert (ends[1], ends[2], ends[50], ends[51]) == ("2017-07-01", "2017-06-01", "2017-01-01", "2017-01-01")
    assert set(table["split"]) == {"train", "validation"}
    assert "left out: 14 of 36 subjects, not: has an event before split.train_before" in capsys.readouterr().out


def test_pretraining_and_fine_tuning_by_time_agree_and_earlier_records_of_test_subjects_are_counted(
    make_dataset, tmp_path
):
    rows = [*in_three_periods(), *((s, "2016-01-01", "B") for s in range(25, 31))]
    dataset = make_dataset(rows)
    cohort = build_cohort(dataset, cohort_config(), TIME)
    records = dict(record_cutoffs(dataset, TIME, ShardWork(tmp_path)).select("subject_id", "split").iter_rows())
    learning = {s: split for s, split in splits_of(cohort).items() if split != "test"}
    assert all(records[subject] == split for subject, split in learning.items())
    training = [subject for subject in range(25, 31) if records[subject] == "train"]
    assert n_read_in_pretraining(dataset, cohort.subjects, TIME) == len(training)
    assert 0 < len(training) < 6


def test_dates_outside_the_data_are_refused_with_their_range(make_dataset, tmp_path):
    dataset = make_dataset(population())
    for changes, side in (
        ({"train_before": date(2010, 1, 1)}, r"before split\.train_before = 2010-01-01"),
        ({"train_before": date(2021, 1, 1), "test_from": date(2021, 1, 1)}, r"at or after split\.test_from = 2021"),
    ):
        with pytest.raises(DataError, match=rf"{side}.*60 there are run from 2020-01-01.* to 2020-01-01.*between"):
            build_cohort(dataset, cohort_config(), TIME.model_copy(update=changes))
    with pytest.raises(DataError, match=r"none of 60 records has an event before split\.train_before.*2021-01-01"):
        record_cutoffs(dataset, TIME, ShardWork(tmp_path))
    with pytest.raises(ConfigError, match=r"test_from is 2010-01-01, before split\.train_before, 2018-01-01"):
        TimeSplit(rule="time", train_before="2018-01-01", test_from="2010-01-01")


# by group


def with_hospitals(n_subjects: int = 60, n_hospitals: int = 6) -> list[tuple[int, str | None, str]]:
    """Subject s is in hospital s % 6; the last has none."""
    hospitals = [(s, None, f"HOSPITAL//{s % n_hospitals}") for s in range(1, n_subjects)]
    return [*population(n_subjects), *hospitals]


def test_named_groups_go_whole_to_their_split_and_who_has_none_is_counted(make_dataset):
    split = ColumnSplit(rule="column", code_prefix="HOSPITAL//", test=[3, 0], validation=["5"])
    cohort = build_cohort(make_dataset(with_hospitals()), cohort_config(), split)
    where = {3: "test", 0: "test", 5: "validation"}
    assert splits_of(cohort) == {s: where.get(s % 6, "train") for s in range(1, 60)}
    assert cohort.attrition.rows()[-1] == ("has a group by data.split", 59, 1)


def test_shares_are_of_groups_that_are_not_named_and_stays_of_a_patient_stay_together(make_dataset):
    rows = [*population(120), *((s, None, f"PATIENT//{s // 3}") for s in range(1, 121))]
    split = ColumnSplit(rule="column", code_prefix="PATIENT//", test=["7"], validation=0.3, seed=4)
    found = splits_of(build_cohort(make_dataset(rows), cohort_config(), split))
    assert all(found[s] == found[s + 1] == found[s + 2] for s in range(3, 118, 3))
    assert {s for s, name in found.items() if name == "test"} == {21, 22, 23}
    groups = pl.Series([str(group) for group in range(41)])
    drawn = assign_splits(groups, SplitConfig(seed=4, train=0.7, validation=0.29999999))
    assert [found[max(3 * g, 1)] for g in range(41) if g != 7] == [name for g, name in enumerate(drawn) if g != 7]


def test_groups_are_read_from_a_table_with_ids_and_groups_as_they_are_written(make_dataset, tmp_path):
    dataset = make_dataset(population(4))
    (tmp_path / "sites.csv").write_text("subject_id,site\n1,North\n2, South \n3,\n3,North\n")
    split = ColumnSplit(rule="column", column="site", path=tmp_path / "sites.csv", test=["North"])
    assert subject_groups(dataset, split).rows() == [(1, "North"), (2, "South"), (3, "North")]
    pl.DataFrame({"subject_id": [1.0, 2.0, 3.0], "site": [3.0, None, 7.0]}).write_parquet(tmp_path / "sites.parquet")
    floats = split.model_copy(update={"path": tmp_path / "sites.parquet"})
    assert subject_groups(dataset, floats).rows() == [(1, "3"), (3, "7")]
    (dataset.path / "metadata").mkdir()
    subjects = pl.DataFrame({"source_id": ["4"], "subject_id": [4], "site": ["East"]})
    subjects.write_parquet(dataset.path / "metadata" / "subjects.parquet")
    own = split.model_copy(update={"path": None})
    assert subject_groups(dataset, own).rows() == [(4, "East")]
    assert table_fingerprint(dataset, own) != table_fingerprint(dataset, split)


def test_groups_that_nobody_is_in_and_subjects_of_two_groups_are_refused(make_dataset):
    dataset = make_dataset(with_hospitals())
    split = ColumnSplit(rule="column", code_prefix="HOSPITAL//", test=["3", "9"])
    with pytest.raises(DataError, match=r"split\.test names 9, and nobody is in.*there are 0, 1, 2, 3, 4, 5$"):
        build_cohort(dataset, cohort_config(), split)
    with pytest.raises(DataError, match=r"nobody has a group by split\.code_prefix = 'SITE//'"):
        build_cohort(dataset, cohort_config(), ColumnSplit(rule="column", code_prefix="SITE//"))
    twice = make_dataset([*with_hospitals(), (7, None, "HOSPITAL//3")])
    with pytest.raises(DataError, match=r"1 of 59 subjects are in several groups .*subject 7, in 1 and 3"):
        build_cohort(twice, cohort_config(), split)


def test_a_split_without_subjects_says_what_to_change(make_dataset, tmp_path):
    dataset = make_dataset(with_hospitals())
    split = ColumnSplit(rule="column", code_prefix="HOSPITAL//", test=["1", "2", "3", "4", "5"], validation=["0"])
    with pytest.raises(
        DataError, match=r"the train split has no events \(0 subjects.*name other groups in split\.test"
    ):
        build_cohort(dataset, cohort_config(), split)
    with pytest.raises(DataError, match=r"leaves 0 train, 9 validation, 50 test subjects of 60"):
        record_cutoffs(dataset, split, ShardWork(tmp_path))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "exactly one of split.column and split.code_prefix"),
        ({"column": "a", "code_prefix": "A//"}, "exactly one of split.column and split.code_prefix"),
        ({"code_prefix": "A//", "path": "t.csv"}, "split.path is a table"),
        ({"column": "a", "test": 0.6, "validation": 0.4}, "leaves no group to train"),
        ({"column": "a", "test": 1.5}, "split.test is 1.5; give a share"),
        ({"column": "a", "test": []}, "name at least one group"),
        ({"column": "a", "test": ["3"], "validation": ["3"]}, "both name 3"),
    ],
)
def test_settings_of_groups_that_cannot_be_meant_are_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        ColumnSplit(rule="column", **settings)


# as the dataset has it


OWN = {s: ("train", "tuning", "held_out", "train", "held_out_2")[s % 5] for s in range(1, 60)}


def test_the_datasets_own_split_holds_and_who_is_not_in_it_is_counted(make_dataset, tmp_path, capsys):
    dataset = make_dataset(population())
    write_splits(dataset, OWN)
    split = DatasetSplit(rule="dataset")
    cohort = build_cohort(dataset, cohort_config(), split)
    names = {"train": "train", "tuning": "validation", "held_out": "test"}
    expected = {s: names[name] for s, name in OWN.items() if name in names}
    assert splits_of(cohort) == expected
    assert cohort.attrition.rows()[-1] == (f"train, tuning or held_out in {SPLIT_TABLE}", 47, 13)
    records = record_cutoffs(dataset, split, ShardWork(tmp_path))
    assert dict(records.select("subject_id", "split").iter_rows()) == expected
    assert f"left out: 13 of 60 subjects, not: train, tuning or held_out in {SPLIT_TABLE}" in capsys.readouterr().out


def test_a_dataset_without_tuning_subjects_says_how_to_split_otherwise(make_dataset):
    dataset = make_dataset(population())
    write_splits(dataset, {s: "held_out" if s > 50 else "train" for s in range(1, 61)})
    with pytest.raises(
        DataError, match=r'validation split has no events \(0 subjects.*such as by split\.rule = "hash"'
    ):
        build_cohort(dataset, cohort_config(), DatasetSplit(rule="dataset"))


def test_a_subject_in_two_splits_of_the_dataset_is_refused(make_dataset):
    dataset = make_dataset(population())
    table = pl.DataFrame({"subject_id": [7, 7, 8], "split": ["train", "held_out", "train"]})
    table.write_parquet(dataset.path / SPLIT_TABLE, mkdir=True)
    with pytest.raises(DataError, match=r"puts 1 subjects into several splits \(first: subject 7\)"):
        build_cohort(dataset, cohort_config(), DatasetSplit(rule="dataset"))


# which rule holds


def test_the_datasets_split_is_taken_where_no_rule_is_said(make_dataset, capsys):
    dataset = make_dataset(population(2))
    settled = settle_split(SplitConfig(), dataset.path)
    assert (settled, settled.model_fields_set) == (SplitConfig(), {"rule"})
    write_splits(dataset, {1: "train", 2: "held_out"})
    assert settle_split(SplitConfig(), dataset.path) == DatasetSplit(rule="dataset")
    assert "has a split of its own" in capsys.readouterr().out
    assert settle_split(settled, dataset.path) == SplitConfig()  # a stored configuration of before has the rule
    assert settle_split(SplitConfig(rule="hash", seed=3), dataset.path) == SplitConfig(seed=3)
    with pytest.raises(ConfigError, match=r"data\.split\.seed = 3 asks for another one.*Leave data\.split\.seed"):
        settle_split(SplitConfig(seed=3), dataset.path)


def test_what_a_run_logged_before_there_were_rules_was_split_by_the_hash():
    values = parse_config({"study": "s", "data": {"path": "meds"}}).to_json()
    values["data"].pop("delay_hours", None)
    del values["data"]["split"]["rule"]
    read = parse_run_config(values)
    assert read.data.split == SplitConfig()
    assert "rule" in read.data.split.model_fields_set
    assert "rule" not in parse_config(values).data.split.model_fields_set


# configuration files


TOML = """
study = "s"
data = { path = "meds", split = { rule = "time", train_before = 2015-01-01, test_from = 2016-01-01, validation = 0.1 } }
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def run(*overrides: tuple[str, str], text: str = TOML) -> Any:
        (tmp_path / "run.toml").write_text(text)
        return load_config(tmp_path / "run.toml", overrides)

    return run


def test_a_rule_is_a_table_and_another_rule_drops_its_settings(load, tmp_path, capsys):
    config = load()
    assert config.data.split == TimeSplit(
        rule="time", train_before="2015-01-01", test_from="2016-01-01", validation=0.1
    )
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml") == config
    assert parse_config(config.to_json()) == config
    other = load(("data.split.rule", "column"), ("data.split.column", "site"))
    assert other.data.split == ColumnSplit(rule="column", column="site")
    shares = 'study = "s"\n[data]\npath = "meds"\n[data.split]\ntrain = 0.5\nvalidation = 0.2\n'
    assert load(("data.split.rule", "dataset"), text=shares).data.split == DatasetSplit(rule="dataset")
    assert "data.split.rule=dataset: train, validation of hash no longer apply" in capsys.readouterr().out
    assert override(config, {"data.split.seed": 4}).data.split.seed == 4


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("data.split.rule", "date", "there is no such rule; there are: hash, time, column, dataset"),
        ("data.split.train_befor", "2015-01-01", "did you mean 'train_before'"),
        ("data.split.train_before", "soon", "config key 'data.split.train_before' is 'soon'"),
        ("data.split.validation", "1.5", "config key 'data.split.validation' is 1.5"),
    ],
)
def test_a_wrong_setting_of_a_rule_is_named_as_it_was_written(load, key, value, reason):
    with pytest.raises(ConfigError, match=reason):
        load((key, value))


def test_identity_leaves_out_where_a_table_lies():
    here, there = (ColumnSplit(rule="column", column="site", path=path) for path in ("here.csv", "there.csv"))
    assert here.identity() == there.identity()
    assert here.identity() != SplitConfig().identity()
