"""Subjects whose birth is not known: left out and counted, or kept with an age that is unknown and never 0."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
import pytest
import torch
from simulated import History, Visit, store_of

from ehrtrack.data.batch import collate
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.events import MedsDataset
from ehrtrack.data.record_ends import record_cutoffs
from ehrtrack.data.settings import Births, CohortConfig, VisitConfig
from ehrtrack.data.shards import ShardWork
from ehrtrack.data.split_settings import SplitConfig, TimeSplit
from ehrtrack.data.store import TokenStore, build_store, mean_age
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import DataError
from ehrtrack.models.behrt import Embeddings
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.record_columns import Levels

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "A", "B", "GENDER//F"), {}, exclude=("MEDS_BIRTH$",))
UNKNOWN = 121
NAN = float("nan")
DAYS = ("2020-02-01", "2020-06-01")


def rows_of(n_subjects: int, *, without: tuple[int, ...] = ()) -> list[tuple[int, str, str]]:
    """Born 1970, index 1 January 2020; every second has the outcome 30 days later."""
    rows = []
    for subject in range(1, n_subjects + 1):
        rows += [] if subject in without else [(subject, "1970-01-01", "MEDS_BIRTH")]
        rows += [(subject, "2020-01-01", "A"), (subject, "2021-01-01", "B")]
        rows += [(subject, "2020-01-31", "X")] if subject % 2 else []
    return rows


def rules(**changes: object) -> CohortConfig:
    index = {"rule": "first_code", "codes": ["A"]}
    return CohortConfig.model_validate({"index": index, "outcome": {"codes": ["X"]}, "horizon_days": 100} | changes)


def test_subjects_without_a_birth_are_a_step_of_the_attrition(make_dataset):
    late = [(61, "2020-06-01", "MEDS_BIRTH"), (61, "2020-01-01", "A")]
    without_index = [(62, "1970-01-01", "MEDS_BIRTH"), (62, "2020-01-01", "B")]
    dataset = make_dataset([*rows_of(60, without=(7, 9)), *late, *without_index])
    left_out = build_cohort(dataset, rules(), SplitConfig(), births="left_out")
    assert left_out.attrition.rows()[:4] == [
        ("subjects in the dataset", 62, 0),
        ("has a birth", 60, 2),
        ("born by the index date", 59, 1),
        ("has an index date", 58, 1),
    ]
    assert not set(left_out.subjects["subject_id"]) & {7, 9, 61}
    kept = build_cohort(dataset, rules(), SplitConfig(), births="unknown")
    assert set(kept.subjects["subject_id"]) == set(range(1, 61))
    assert kept.attrition.rows()[1] == ("born by the index date", 61, 1)


def test_where_all_births_are_known_cohorts_are_as_before(make_dataset):
    dataset = make_dataset(rows_of(60))
    of = [
        build_cohort(dataset, rules(), SplitConfig(), births=births) for births in ("required", "left_out", "unknown")
    ]
    assert len({cohort.fingerprint for cohort in of}) == 1
    assert of[0].attrition.equals(of[1].attrition)
    assert of[0].attrition.equals(of[2].attrition)


def test_rules_that_need_an_age_take_those_who_have_one_or_refuse_by_name(make_dataset):
    dataset = make_dataset(rows_of(60, without=(7, 9)))
    of_an_age = rules(index={"rule": "age", "years": 50})  # on 1 January 2020
    assert build_cohort(dataset, of_an_age, SplitConfig(), births="left_out").subjects.height == 58
    assert build_cohort(dataset, rules(max_age_years=90), SplitConfig(), births="left_out").subjects.height == 58
    with pytest.raises(DataError, match=r"2 of 60 subjects have no MEDS_BIRTH .*rule = 'age' needs their ages"):
        build_cohort(dataset, of_an_age, SplitConfig(), births="unknown")
    with pytest.raises(DataError, match=r"2 of 60 subjects have no MEDS_BIRTH .*max_age_years needs their ages"):
        build_cohort(dataset, rules(max_age_years=90), SplitConfig(), births="unknown")


def cutoffs_of(dataset: MedsDataset, folder, births: Births) -> pl.DataFrame:
    return record_cutoffs(dataset, SplitConfig(), ShardWork(folder), births=births)


def test_whole_records_without_a_birth_are_left_out_and_counted(make_dataset, tmp_path, capsys):
    dataset = make_dataset(rows_of(5, without=(2,)))
    assert cutoffs_of(dataset, tmp_path, "left_out")["subject_id"].to_list() == [1, 3, 4, 5]
    said = capsys.readouterr().out
    assert "left out: 1 of 5 subjects, who have no MEDS_BIRTH event in their records" in said
    assert 'data.births = "unknown" keeps' in said
    assert cutoffs_of(dataset, tmp_path, "unknown")["subject_id"].to_list() == [1, 2, 3, 4, 5]
    with pytest.raises(DataError, match=r'none of 2 subjects has a MEDS_BIRTH .*data.births = "unknown" keeps'):
        cutoffs_of(make_dataset(rows_of(2, without=(1, 2))), tmp_path, "left_out")


def test_records_that_are_cut_before_the_birth_have_none(make_dataset, tmp_path, capsys):
    """Subject 1's only event before the date is older than its birth: nothing of that is known at the cut."""
    rows = [*rows_of(40, without=(1,)), (1, "2019-06-01", "MEDS_BIRTH")]
    dataset = make_dataset([*rows, *((subject, "2018-01-01", "A") for subject in range(1, 41))])
    split = TimeSplit(rule="time", train_before="2019-01-01", test_from="2020-01-01", validation=0.5)
    for births, subjects in (("left_out", range(2, 41)), ("unknown", range(1, 41))):
        cutoffs = record_cutoffs(dataset, split, ShardWork(tmp_path), births=births)
        assert cutoffs["subject_id"].to_list() == list(subjects)
        assert cutoffs.columns == ["subject_id", "cutoff", "split"]
        assert ("left out: 1 of 40 subjects, who have no MEDS_BIRTH" in capsys.readouterr().out) == (
            births == "left_out"
        )
        store = build_store(dataset, cutoffs, VOCABULARY, VisitConfig(), tmp_path, births=births)
        assert np.isnan(store.end_age_years).tolist() == [births == "unknown", *[False] * 39][-len(store) :]


def test_prediction_times_before_the_birth_are_left_out_one_by_one(make_dataset, tmp_path):
    """Subject 1 is asked about before and after its birth, subject 2 has none; both times of the others are kept."""
    dataset = make_dataset([*rows_of(60, without=(1, 2)), (1, "2020-03-01", "MEDS_BIRTH")])
    times = [f"{subject},{day}T00:00:00,50,{subject % 2}" for subject in range(1, 61) for day in DAYS]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["subject_id,prediction_time,follow_up_days,is_event", *times]) + "\n")
    config = CohortConfig.model_validate({"labels": labels, "horizon_days": 50})
    left_out = build_cohort(dataset, config, SplitConfig(), births="left_out")
    steps = left_out.attrition.select("step", "n_subjects", "n_dropped", "n_times", "n_times_dropped").rows()
    assert steps[2:4] == [("has a birth", 59, 1, 118, 2), ("born by the prediction time", 59, 0, 117, 1)]
    assert left_out.subjects.filter(pl.col("subject_id") <= 2)["index_date"].to_list() == [datetime(2020, 6, 1)]
    kept = build_cohort(dataset, config, SplitConfig(), births="unknown")
    assert kept.subjects.filter(pl.col("subject_id") <= 2)["index_date"].to_list() == [
        datetime(2020, 6, 1),
        *[datetime.fromisoformat(day) for day in DAYS],
    ]
    of_one = kept.cutoffs.filter(pl.col("subject_id") == 2)
    with pytest.raises(DataError, match=r"^1 of 1 subjects have no MEDS_BIRTH event at or before their cutoff"):
        build_store(dataset, of_one, VOCABULARY, VisitConfig(), tmp_path)


def store(dataset: MedsDataset, folder, births: Births = "unknown") -> TokenStore:
    cutoffs = pl.DataFrame({"subject_id": [1, 2], "cutoff": [datetime(2020, 6, 1)] * 2})
    return build_store(dataset, cutoffs, VOCABULARY, VisitConfig(), folder, births=births)


BOTH = [
    *[(1, "2020-01-01", "MEDS_BIRTH"), (1, None, "GENDER//F"), (1, "2020-01-01", "A")],
    *[(2, None, "GENDER//F"), (2, "2020-01-01", "A")],
]


def test_an_unknown_age_is_not_the_age_of_a_newborn(make_dataset, tmp_path):
    newborn_and_unknown = store(make_dataset(BOTH), tmp_path)
    assert newborn_and_unknown.age_years.tolist()[:3] == [0, 0, 0]
    assert np.isnan(newborn_and_unknown.age_years[3])
    assert np.isnan(newborn_and_unknown.end_age_years[1])
    batch = collate(newborn_and_unknown, np.arange(2), max_tokens=10)
    assert batch.age.tolist() == [0, 0, 0, 0, UNKNOWN, UNKNOWN]  # static fact, visit and [CLS] of each
    embeddings = Embeddings(4, len(VOCABULARY), 0.0, may_lack_age=True).eval()
    torch.nn.init.normal_(embeddings.age.weight)
    of_newborn, of_unknown = embeddings(batch)[[2, 5]]
    assert not torch.allclose(of_newborn, of_unknown)
    assert Embeddings(4, len(VOCABULARY), 0.0).age.weight.shape == (121, 4)


def test_what_is_not_known_of_a_birth_at_the_cutoff_has_no_say(make_dataset, tmp_path):
    """Born after the cutoff, whenever that is, is the same as not known: the later record is not read."""
    stores = [
        store(make_dataset([*BOTH, *births]), tmp_path)
        for births in ([], [(2, "2020-07-01", "MEDS_BIRTH")], [(2, "2021-09-09", "MEDS_BIRTH")])
    ]
    batches = [collate(one, np.arange(2), max_tokens=10) for one in stores]
    for name in ("token", "age", "position", "gap", "segment", "days_to_end"):
        assert all(torch.equal(getattr(batches[0], name), getattr(other, name)) for other in batches[1:]), name


def test_stores_of_known_births_keep_their_names(make_dataset, tmp_path):
    dataset = make_dataset([*BOTH, (2, "1980-01-01", "MEDS_BIRTH")])
    of = {births: store(dataset, tmp_path, births).fingerprint for births in ("required", "left_out", "unknown")}
    assert of["required"] == of["left_out"] != of["unknown"]


def test_the_mean_age_is_of_those_that_are_known():
    ages = [History([Visit([4], 30.0)], end_age_years=age) for age in (30.0, NAN, 50.0, 99.0)]
    assert mean_age(store_of(ages), np.arange(3)) == 40
    assert mean_age(store_of(ages), np.array([1])) == 0


def test_a_regression_reads_the_mean_for_an_unknown_age_and_tells_it_apart():
    ages = [History([Visit([4], 30.0)], end_age_years=age) for age in (35.0, NAN)]
    batch = collate(store_of(ages), np.arange(2), max_tokens=8)
    levels = Levels(torch.full((6,), -1), torch.zeros(6))
    entries = CodeEffects.nothing(levels, (7.0,), 1, mean_age=35.0).entries(batch)
    columns = torch.zeros(2, 5 + 6 * 3)
    columns[entries.subject, entries.column] = entries.value
    assert columns[:, 0].tolist() == [35, 35]
    assert columns[:, 4].tolist() == [0, 1]
    assert torch.equal(columns[0, 5:], columns[1, 5:])
    kept = CodeEffects.from_weights(
        {f"codes.{name}": value for name, value in CodeEffects.nothing(levels, (7.0,), 1, 35.0).state_dict().items()},
        "codes.",
    )
    assert kept is not None
    assert float(kept.mean_age) == 35
    old = CodeEffects.nothing(levels, (7.0,), 1)
    assert "mean_age" not in old.state_dict()
    assert len(old.effect) == 4 + 6 * 3
