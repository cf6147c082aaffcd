"""Several prediction times a subject: a row is a pair, an event is counted once, and a subject stays in one split."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrtrack.data import cohort as cohort_module
from ehrtrack.data.cohort import Cohort, build_cohort, summarise_cohort
from ehrtrack.data.count_features import count_features
from ehrtrack.data.cutoffs import latest, one_history_a_cutoff
from ehrtrack.data.events import EVENT_SCHEMA, MedsDataset, open_dataset
from ehrtrack.data.fitting import count_tokens, fit_vocabulary
from ehrtrack.data.histories import NO_TIME, histories_of
from ehrtrack.data.settings import CohortConfig, VisitConfig, VocabularyConfig
from ehrtrack.data.shards import ShardWork
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.splits import assign_splits
from ehrtrack.data.store import PER_TOKEN, build_store
from ehrtrack.data.timing_features import timing_features
from ehrtrack.data.vocabulary import NEVER_TOKENS, SPECIAL_TOKENS, Vocabulary
from ehrtrack.privacy import hide_in_attrition, hide_in_summary

HEADER = "subject_id,prediction_time,follow_up_days,is_event\n"
ROWS = [
    (1, None, "SEX//F"),
    (1, "1970-01-01", "MEDS_BIRTH"),
    (1, "2019-01-01", "A"),
    (1, "2019-03-01", "B"),
    (1, "2019-05-01", "A"),
    (1, "2019-06-01", "MEDS_DEATH"),
    (2, "1980-01-01", "MEDS_BIRTH"),
    (2, "2019-02-01", "A"),
]


def cutoffs(*pairs: tuple[int, str], split: str = "train") -> pl.DataFrame:
    rows = [(subject, datetime.fromisoformat(time), split) for subject, time in pairs]
    schema = {"subject_id": pl.Int64, "cutoff": pl.Datetime("us"), "split": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_a_history_is_laid_out_once_for_each_cutoff(frame):
    events = histories_of(frame(ROWS))
    times = cutoffs((2, "2019-01-01"), (1, "2019-04-01"), (9, "2019-04-01"), (1, "2019-01-01"))
    laid_out, renamed = one_history_a_cutoff(events, times)
    assert renamed["subject_id"].to_list() == [0, 1, 2, 3]
    found = [(int(row), laid_out.codes[code]) for row, code in zip(laid_out.subject_id, laid_out.code, strict=True)]
    assert found == [
        (0, "MEDS_BIRTH"),
        *((1, code) for code in ("SEX//F", "MEDS_BIRTH", "A", "B")),
        *((3, code) for code in ("SEX//F", "MEDS_BIRTH", "A")),
    ]
    assert (laid_out.time_us[[1, 5]] == NO_TIME).all()
    assert laid_out.visit_id is not None
    assert len(laid_out.visit_id) == len(laid_out)


def test_one_cutoff_a_subject_leaves_the_events_as_they_are(frame):
    events, times = histories_of(frame(ROWS)), cutoffs((2, "2019-01-01"), (1, "2019-04-01"))
    assert one_history_a_cutoff(events, times) == (events, times)
    assert latest(times) is times


def random_dataset(folder: Path, n_subjects: int = 20) -> MedsDataset:
    """Events at random hours in two shards; encounters overlap, and some subjects die."""
    rng = np.random.default_rng(1)
    (folder / "data").mkdir(parents=True)
    for shard, subjects in enumerate(np.array_split(np.arange(1, n_subjects + 1), 2)):
        n = 30 * len(subjects)
        events = pl.DataFrame(
            {
                "subject_id": rng.choice(subjects, n),
                "time": [datetime(2019, 1, 1) + timedelta(hours=int(h)) for h in rng.integers(0, 9000, n)],
                "code": rng.choice(["A", "B", "C", "LAB"], n),
                "numeric_value": rng.normal(size=n).astype(np.float32),
                "visit_id": [str(v) if v else None for v in rng.integers(0, 9, n)],
            }
        )
        dead = subjects[::4]
        whole = [
            events,
            pl.DataFrame({"subject_id": subjects, "code": "SEX//F"}),
            pl.DataFrame({"subject_id": subjects, "time": datetime(1960, 1, 1), "code": "MEDS_BIRTH"}),
            pl.DataFrame({"subject_id": dead, "time": datetime(2019, 9, 1), "code": "MEDS_DEATH"}),
        ]
        frame = pl.concat([part.with_columns(pl.col("subject_id").cast(pl.Int64)) for part in whole], how="diagonal")
        frame = frame.with_columns(text_value=pl.lit(None, pl.String)).select(*EVENT_SCHEMA)
        frame.sort("subject_id", "time", nulls_last=False).write_parquet(folder / "data" / f"{shard}.parquet")
    return open_dataset(folder)


@pytest.mark.parametrize("unit", ["day", "encounter", "hour"])
def test_each_row_of_a_store_is_that_of_its_cutoff_alone(tmp_path, unit):
    dataset, visits = random_dataset(tmp_path / "meds"), VisitConfig(unit=unit)
    vocabulary = Vocabulary((*SPECIAL_TOKENS, "A", "B", "LAB", "LAB//Q1", "LAB//Q2", "SEX//F"), {"LAB": (0.0,)})
    moments = [datetime(2019, 3, 1), datetime(2019, 8, 1, 12), datetime(2020, 1, 1)]
    alone = []
    for number, moment in enumerate(moments):
        of_all = pl.DataFrame({"subject_id": range(1, 21), "cutoff": [moment] * 20})
        alone.append(build_store(dataset, of_all, vocabulary, visits, tmp_path / f"cache{number}"))
    pairs = pl.DataFrame(
        {"subject_id": [*range(1, 21)] * 3, "cutoff": [moment for moment in moments for _ in range(20)]}
    )
    order = np.random.default_rng(0).permutation(60)
    for rows in (np.lexsort((pairs["cutoff"], pairs["subject_id"])), order):
        store = build_store(dataset, pairs[rows], vocabulary, visits, tmp_path / "cache")
        assert store.subject_ids.tolist() == pairs["subject_id"].to_numpy()[rows].tolist()
        for place, row in enumerate(rows):
            other, subject = alone[row // 20], row % 20
            mine, theirs = (slice(*s.offsets[[i, i + 1]]) for s, i in ((store, place), (other, subject)))
            for name in PER_TOKEN:
                assert getattr(store, name)[mine].tolist() == getattr(other, name)[theirs].tolist(), name
            assert store.end_age_years[place] == other.end_age_years[subject]
            assert store.end_gap_days[place] == other.end_gap_days[subject]


def test_features_are_of_what_was_known_at_each_time(make_dataset, tmp_path):
    vocabulary = Vocabulary((*SPECIAL_TOKENS, "A", "B"), {}, exclude=NEVER_TOKENS)
    times = cutoffs((1, "2019-02-01"), (1, "2019-05-02"), (2, "2019-02-02"))
    store = build_store(make_dataset(ROWS), times, vocabulary, VisitConfig(), tmp_path / "cache")
    counts = count_features(store, vocabulary)
    assert counts.select("subject_id", "n_visits", "A", "B").rows() == [(1, 1, 1, 0), (1, 3, 2, 1), (2, 1, 1, 0)]
    timing = timing_features(store, vocabulary)
    assert timing["days_since_last A"].to_list() == [31, 1, 1]
    assert timing["days_since_first A"].to_list() == [31, 121, 1]


def test_an_event_of_a_subject_is_counted_once_up_to_the_last_cutoff(make_dataset, tmp_path):
    dataset, work = make_dataset(ROWS), ShardWork(tmp_path / "cache")
    several = cutoffs((1, "2019-02-01"), (1, "2019-04-01"), (1, "2019-03-15"), (2, "2019-03-01"), (2, "2019-02-01"))
    config = VocabularyConfig(min_subjects=1)
    vocabulary = fit_vocabulary(dataset, several, config, work)
    assert dict(zip(vocabulary.tokens, vocabulary.counts, strict=True)) == {
        **dict.fromkeys(SPECIAL_TOKENS, 0),
        "A": 2,
        "B": 1,
        "SEX//F": 1,
    }
    once = cutoffs((1, "2019-04-01"), (2, "2019-03-01"))
    assert vocabulary == fit_vocabulary(dataset, once, config, ShardWork(tmp_path / "other"))
    counts = count_tokens(dataset, several, vocabulary, work).sort("name")
    assert counts.select("name", "n_events", "n_subjects").rows() == [("A", 2, 2), ("B", 1, 1), ("SEX//F", 1, 1)]


@pytest.fixture
def cohort(make_dataset, tmp_path, monkeypatch) -> Cohort:
    monkeypatch.setattr(cohort_module, "_check_events", lambda *_: None)
    (tmp_path / "labels.csv").write_text(
        HEADER
        + "2,2019-03-01,40,1\n1,2019-06-01,10,1\n1,2019-04-01,30,0\n"
        + "1,2018-01-01,9,0\n2,2019-02-01,0,1\n1,2019-02-01,20,1\n"
    )
    return build_cohort(make_dataset(ROWS), CohortConfig(labels=tmp_path / "labels.csv"), SplitConfig())


def test_rules_hold_for_each_row_and_the_flow_tells_rows_and_subjects(cohort):
    assert cohort.subjects.drop("split").rows() == [
        (1, datetime(2019, 2, 1), 20.0, True),
        (1, datetime(2019, 4, 1), 30.0, False),
        (2, datetime(2019, 3, 1), 40.0, True),
    ]
    assert cohort.has_several_times
    columns = ["n_subjects", "n_dropped", "n_times", "n_times_dropped", "n_subjects_with_dropped"]
    assert cohort.attrition.columns == ["step", *columns]
    assert cohort.attrition.rows() == [
        ("subjects in the labels", 2, 0, 6, 0, 0),
        ("in the dataset", 2, 0, 6, 0, 0),
        ("has an event at or before the prediction time", 2, 0, 5, 1, 1),
        ("alive at the prediction time", 2, 0, 4, 1, 1),
        ("age of at most 120 years at the prediction time", 2, 0, 4, 0, 0),
        ("follow-up after the prediction time", 2, 0, 3, 1, 1),
    ]


def test_a_summary_counts_subjects_beside_their_times(cohort):
    summary = summarise_cohort(cohort).filter(pl.col("n_subjects") > 0)
    assert summary["n_subjects"].sum() == 2
    assert summary["n_times"].sum() == 3
    assert summary["n_events"].sum() == 2
    assert summary["n_subjects_with_event"].sum() == 2


def test_a_subject_never_straddles_splits(make_dataset, tmp_path):
    births = [(subject, "1970-01-01", "MEDS_BIRTH") for subject in range(1, 201)]
    dataset = make_dataset([*births, *((subject, "2019-01-01", "A") for subject in range(1, 201))])
    lines = [f"{s},2019-0{month}-01,10,{int(s % 2)}\n" for month in (2, 3, 4) for s in range(1, 201)]
    (tmp_path / "labels.csv").write_text(HEADER + "".join(lines))
    subjects = build_cohort(dataset, CohortConfig(labels=tmp_path / "labels.csv"), SplitConfig()).subjects
    assert subjects.height == 600
    assert subjects.group_by("subject_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert subjects["split"].to_list() == assign_splits(subjects["subject_id"], SplitConfig()).to_list()
    assert set(subjects["split"]) == {"train", "validation", "test"}


def test_rows_of_a_few_subjects_are_hidden_however_many_they_are():
    attrition = pl.DataFrame(
        [("start", 100, 0, 500, 0, 0), ("alive", 98, 2, 460, 40, 3), ("followed", 80, 18, 380, 80, 30)],
        schema=["step", "n_subjects", "n_dropped", "n_times", "n_times_dropped", "n_subjects_with_dropped"],
        orient="row",
    )
    assert hide_in_attrition(attrition).rows() == [
        ("start", "100", "0", "500", "0", "0"),
        ("alive", None, "<11", None, None, "<11"),
        ("followed", "80", None, "380", None, None),
    ]
    of_three = attrition.with_columns(n_subjects=pl.Series([100, 100, 82]), n_dropped=pl.Series([0, 0, 18]))
    assert hide_in_attrition(of_three).rows() == [  # nobody is gone, and the 40 rows were those of 3
        ("start", "100", "0", "500", "0", "0"),
        ("alive", None, "0", None, None, "<11"),
        ("followed", "82", None, "380", None, None),
    ]
    apart = attrition.with_columns(n_subjects_with_dropped=pl.Series([0, 20, 30]), n_dropped=pl.Series([0, 0, 18]))
    assert hide_in_attrition(apart)["n_times_dropped"].to_list() == ["0", "40", "80"]


def test_events_of_a_few_subjects_are_hidden_however_many_they_are():
    summary = pl.DataFrame(
        {
            "split": ["train", "test"],
            "n_subjects": [100, 60],
            "n_times": [300, 180],
            "n_subjects_with_event": [40, 6],
            "n_events": [90, 25],
            "event_rate": [0.3, 0.14],
        }
    )
    assert hide_in_summary(summary).select("n_subjects_with_event", "n_events", "event_rate").rows() == [
        ("40", "90", 0.3),
        ("<11", None, None),
    ]
