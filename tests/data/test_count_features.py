"""The baselines' feature table against counts made by hand."""

from __future__ import annotations

from datetime import datetime

import polars as pl
import pytest

from ehrtrack.data.count_features import count_features
from ehrtrack.data.settings import VisitConfig
from ehrtrack.data.store import build_store
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "A", "B", "C", "GENDER//F"), {}, exclude=("MEDS_BIRTH$", "MEDS_DEATH$"))
ROWS = [
    (1, "1980-01-01", "MEDS_BIRTH"),
    (1, None, "GENDER//F"),
    (1, "2020-01-01", "A"),
    (1, "2020-01-01", "A"),
    (1, "2020-01-01", "B"),
    (1, "2020-01-11", "A"),
    (1, "2020-01-11", "NEW"),
    (2, "1990-02-01", "MEDS_BIRTH"),
]


@pytest.fixture
def features(make_dataset, tmp_path) -> pl.DataFrame:
    cutoffs = pl.DataFrame({"subject_id": [2, 1], "cutoff": [datetime(2020, 2, 1)] * 2})
    return count_features(build_store(make_dataset(ROWS), cutoffs, VOCABULARY, VisitConfig(), tmp_path), VOCABULARY)


def test_counts_are_visits_with_the_token(features):
    assert features.columns == [
        "subject_id",
        "age_years",
        "n_visits",
        "history_days",
        "A",
        "B",
        "C",
        "GENDER//F",
    ]
    assert features.drop("age_years").rows() == [(2, 0, 0, 0, 0, 0, 0), (1, 2, 31, 2, 1, 0, 1)]


def test_age_is_that_at_the_cutoff(features):
    assert features["age_years"].to_list() == pytest.approx([30, 40 + 31 / 365.25], abs=1e-2)


def test_every_feature_is_a_number(features):
    assert features.drop("subject_id").dtypes == [pl.Float32] * 7
    assert features.null_count().sum_horizontal().item() == 0
