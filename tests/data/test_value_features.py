"""Summaries of recorded values against ones worked by hand, and by the same rule of what is known as tokens."""

from __future__ import annotations

import math
from datetime import datetime

import numpy as np
import polars as pl
import pytest

from ehrtrack.data.cutoffs import one_history_a_cutoff
from ehrtrack.data.histories import histories_of
from ehrtrack.data.settings import VisitConfig
from ehrtrack.data.shards import ShardWork
from ehrtrack.data.store import build_store
from ehrtrack.data.value_features import SUMMARIES, summarise, value_features, value_summaries
from ehrtrack.data.visits import is_known
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import DataError

INDEX = "2020-01-10 12:00"
ROWS = [
    (1, "1970-01-01", "MEDS_BIRTH"),
    (1, None, "GENDER//F"),
    (1, "2020-01-01", "LAB", 4.0, None),
    (1, "2020-01-02", "LAB", 9.0, None),
    (1, "2020-01-02", "LAB"),  # without a value
    (1, "2020-01-03", "LAB", math.inf, None),
    (1, "2020-01-09", "LAB", 5.0, None),
    (1, "2020-01-10 12:00", "HR", 80.0, None),  # at the prediction time itself
    (2, "1970-01-01", "MEDS_BIRTH"),
    (2, "2020-01-05", "OTHER"),
]
VOCABULARY = Vocabulary(
    (*SPECIAL_TOKENS, "LAB//Q1", "LAB//Q2", "LAB", "HR", "OTHER", "GENDER//F"), {"LAB": (5.0,)}, exclude=("MEDS_BIRTH",)
)


def cutoffs(*rows: tuple[int, str]) -> pl.DataFrame:
    times = [datetime.fromisoformat(time) for _, time in rows]
    return pl.DataFrame(
        {"subject_id": [subject for subject, _ in rows], "cutoff": times},
        schema_overrides={"cutoff": pl.Datetime("us")},
    )


def summary(frame, rows, code="LAB", times=((1, INDEX),), **settings) -> dict[int, tuple[float, ...]]:
    """Of a code, by row: last, mean, lowest, highest and number."""
    table = summarise(histories_of(frame(rows)), cutoffs(*times), **settings).filter(pl.col("code") == code)
    return {row[0]: row[2:] for row in table.iter_rows()}


def test_values_up_to_the_prediction_time_are_summarised(frame):
    assert summary(frame, ROWS) == {0: (5.0, 6.0, 4.0, 9.0, 3.0)}
    assert summary(frame, ROWS, "HR") == {0: (80.0, 80.0, 80.0, 80.0, 1.0)}


def test_no_value_after_the_prediction_time_is_read(frame):
    """Values planted from a microsecond later on change nothing."""
    planted = [(1, "2020-01-10 12:00:00.000001", "LAB", -1e6, None), (1, "2020-03-01", "LAB", 1e6, None)]
    assert summary(frame, ROWS + planted) == summary(frame, ROWS)
    assert summary(frame, [*ROWS, (1, "2020-03-01", "NEW", 1e6, None)], "NEW") == {}


def test_values_are_those_of_events_that_are_known(frame):
    """Of random events, birth, death and delays among them, by `is_known` itself."""
    rng = np.random.default_rng(0)
    rows = [
        (
            int(subject),
            f"2020-01-{day:02d} {hour:02d}:00",
            str(rng.choice(["LAB", "HR", "MEDS_DEATH"], p=[0.6, 0.38, 0.02])),
            float(v),
            None,
        )
        for subject, day, hour, v in zip(
            rng.integers(1, 20, 500),
            rng.integers(1, 28, 500),
            rng.integers(0, 24, 500),
            rng.normal(size=500),
            strict=True,
        )
    ]
    events, times = histories_of(frame(rows)), cutoffs(*((subject, INDEX) for subject in range(1, 20)))
    delays = {"LAB": 30.0}
    known = is_known(events, times, delays)
    assert 0 < known.sum() < len(known) / 2
    table = summarise(events, times, delay_hours=delays)
    assert table["n_values"].sum() == known.sum()
    expected = pl.DataFrame(
        {
            "row": events.subject_id[known] - 1,
            "code": [events.codes[c] for c in events.code[known]],
            "v": events.value[known],
        }
    )
    expected = (
        expected.group_by("row", "code")
        .agg(lowest_value=pl.col("v").min(), last_value=pl.col("v").last())
        .sort("row", "code")
    )
    assert table.sort("row", "code").select(expected.columns).equals(expected)


def test_delays_move_what_is_known(frame):
    assert summary(frame, ROWS, delay_hours={"LAB": 37.0}) == {0: (9.0, 6.5, 4.0, 9.0, 2.0)}


def test_codes_of_a_group_are_summarised_together(frame):
    rows = [*ROWS, (1, "2020-01-09 06:00", "GLU", 7.0, None)]
    assert summary(frame, rows, "G", groups={"LAB": "G", "GLU": "G"}) == {0: (7.0, 6.25, 4.0, 9.0, 4.0)}


def test_excluded_codes_have_none(frame):
    assert summary(frame, ROWS, exclude=("LAB",)) == {}


def test_a_static_value_comes_before_all_others(frame):
    rows = [*ROWS, (1, None, "LAB", 1.0, None)]
    assert summary(frame, rows) == {0: (5.0, 4.75, 1.0, 9.0, 4.0)}
    assert summary(frame, rows, times=((1, "2019-01-01"),)) == {0: (1.0, 1.0, 1.0, 1.0, 1.0)}


def test_each_prediction_time_of_a_subject_has_its_own(frame):
    times = ((1, INDEX), (2, INDEX), (1, "2020-01-01 12:00"))
    assert summary(frame, ROWS, times=times) == {0: (5.0, 6.0, 4.0, 9.0, 3.0), 2: (4.0, 4.0, 4.0, 4.0, 1.0)}
    events, several = one_history_a_cutoff(histories_of(frame(ROWS)), cutoffs(*times))
    assert len(summarise(events, several)) == 3


@pytest.fixture
def features(make_dataset, tmp_path):
    dataset, times = make_dataset(ROWS), cutoffs((2, INDEX), (1, INDEX))
    store = build_store(dataset, times, VOCABULARY, VisitConfig(), tmp_path)
    return value_features(store, VOCABULARY, value_summaries(dataset, times, VOCABULARY, ShardWork(tmp_path)))


def test_the_table_has_numbers_in_the_place_of_bins(features):
    values = [f"{name} {code}" for code in ("HR", "LAB") for name in SUMMARIES]
    counts = ["subject_id", "age_years", "n_visits", "history_days", "LAB", "HR", "OTHER", "GENDER//F"]
    assert features.columns == counts + values
    assert features["last_value LAB"].to_list() == pytest.approx([math.nan, 5.0], nan_ok=True)
    assert features["n_values LAB"].to_list() == [0.0, 3.0]
    assert features["OTHER"].to_list() == [1.0, 0.0]


def test_codes_that_the_vocabulary_does_not_know_have_no_columns(make_dataset, tmp_path):
    dataset, times = make_dataset([*ROWS, (1, "2020-01-09", "RARE", 1.0, None)]), cutoffs((1, INDEX))
    table = value_summaries(dataset, times, VOCABULARY, ShardWork(tmp_path))
    assert table["code"].to_list() == ["HR", "LAB"]


def test_summaries_of_other_rows_are_refused(make_dataset, tmp_path):
    dataset, times = make_dataset(ROWS), cutoffs((2, INDEX), (1, INDEX))
    summaries = value_summaries(dataset, times, VOCABULARY, ShardWork(tmp_path))
    store = build_store(dataset, times[:1], VOCABULARY, VisitConfig(), tmp_path)
    with pytest.raises(DataError, match="go up to row 1, and the token store has 1 rows"):
        value_features(store, VOCABULARY, summaries)
