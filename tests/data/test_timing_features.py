"""The table of counts and times against one made by hand."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from simulated import History, Visit, random_store, store_of

from ehrtrack.data.timing_features import timing_features
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary(
    (*SPECIAL_TOKENS, "A", "LAB//Q1", "LAB//Q2", "LAB//Q3", "LAB", "GENDER//F", "Q//Q1"), {"LAB": (1.0, 2.0)}
)
A, LOW, MIDDLE, HIGH, LAB, FEMALE = range(4, 10)
HISTORIES = [
    History(
        [
            Visit([FEMALE], is_static=True),
            Visit([A, LOW, MIDDLE], 50.0),  # day 0
            Visit([HIGH], 50.0, gap_days=400.0),
            Visit([A, LAB], 51.0, gap_days=5.5),
            Visit([MIDDLE], 51.0, gap_days=20.0),
        ],
        end_gap_days=30.0,
    ),
    History([], end_gap_days=0.0),
    History([Visit([A], 40.0)], end_gap_days=7.0),
]


@pytest.fixture(scope="module")
def features() -> pl.DataFrame:
    return timing_features(store_of(HISTORIES), VOCABULARY)


def column(features: pl.DataFrame, name: str) -> list[float | None]:
    """NaN as None, so that lists can be compared."""
    return [None if math.isnan(value) else value for value in features[name]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("days_since_visit", [30.0, 0.0, 7.0]),
        ("n_visits_last_year", [3.0, 0.0, 1.0]),
        ("A", [2.0, 0.0, 1.0]),
        ("days_since_first A", [455.5, None, 7.0]),
        ("days_since_last A", [50.0, None, 7.0]),
        ("days_since_first LAB", [455.5, None, None]),
        ("days_since_last LAB", [30.0, None, None]),
        ("days_since_last LAB (no value)", [50.0, None, None]),
        ("last LAB", [2.0, None, None]),
        ("mean LAB", [2.0, None, None]),  # 1, 2, 3 and 2
        ("lowest LAB", [1.0, None, None]),
        ("highest LAB", [3.0, None, None]),
        ("trend LAB", [0.0, None, None]),  # 2, the highest of the first visit, to 2
    ],
)
def test_times_and_values_are_those_by_hand(features: pl.DataFrame, name: str, expected: list[float | None]) -> None:
    assert column(features, name) == expected


def test_codes_without_bins_and_static_facts_have_no_values_and_no_times(features: pl.DataFrame) -> None:
    assert not {"last A", "trend A", "days_since_last GENDER//F", "last Q//Q1"} & set(features.columns)
    assert features["GENDER//F"].to_list() == [1.0, 0.0, 0.0]


def test_a_row_is_of_its_subject_alone() -> None:
    vocabulary = Vocabulary((*SPECIAL_TOKENS, *"ABCDEFGHIJKLMNOP"), {})
    store = random_store(40, len(vocabulary), seed=3)
    together = timing_features(store, vocabulary)
    own = slice(int(store.offsets[11]), int(store.offsets[12]))
    single = type(store)(
        subject_ids=store.subject_ids[11:12],
        offsets=np.array([0, own.stop - own.start]),
        **{name: getattr(store, name)[own] for name in ("token", "age_years", "visit", "gap_days")},
        end_age_years=store.end_age_years[11:12],
        end_gap_days=store.end_gap_days[11:12],
        fingerprint="one",
    )
    alone = timing_features(single, vocabulary)
    shared = together.select(alone.columns)
    np.testing.assert_allclose(alone.to_numpy(), shared[11].to_numpy(), rtol=1e-6)
