"""Drift of codes and values, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import log

import numpy as np
import polars as pl
import pytest

from ehrtrack.data.drift import Drift, Seen, events_by_token, silent_days_limit, stability_index
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, UNK, Vocabulary
from ehrtrack.errors import CheckpointError

BINS = ("LAB//Q1", "LAB//Q2", "LAB//Q3", "LAB//Q4")
VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "A", *BINS), {"LAB": (1.0, 2.0, 3.0)})
NO_SILENCE = np.zeros(1, dtype=np.float32)


def events(unknown: int, a: int, *bins: int) -> np.ndarray:
    return np.array([0, unknown, 0, 0, a, *bins], dtype=np.int64)


SEEN = Seen.of(events(2, 198, 25, 25, 25, 25), VOCABULARY, np.array([10.0, 3000.0], dtype=np.float32))


def test_what_was_seen_is_shares_and_whole_years() -> None:
    # 2 of 300 events unknown; 3,000 days are 8.2 years
    assert asdict(SEEN) == {"share_unknown": 0.0067, "bin_shares": {"LAB": (0.25,) * 4}, "silent_years": 9}
    assert Seen.from_json(json.loads(json.dumps(asdict(SEEN)))) == SEEN


def test_what_was_seen_does_not_tell_how_often() -> None:
    twice = Seen.of(2 * events(2, 198, 25, 25, 25, 25), VOCABULARY, np.array([3000.0], dtype=np.float32))
    assert twice == SEEN


def test_bins_of_a_code_with_few_values_are_not_kept() -> None:
    assert Seen.of(events(0, 10, 24, 25, 25, 25), VOCABULARY, NO_SILENCE).bin_shares == {}


def test_events_are_counted_by_token_and_others_are_unknown() -> None:
    counts = pl.DataFrame({"name": ["A", "LAB//Q2", "LAB", "B", "[UNK]"], "n_events": [5, 4, 3, 2, 1]})
    assert events_by_token(counts, VOCABULARY).tolist() == events(6, 5, 0, 4, 0, 0).tolist()
    assert VOCABULARY.tokens[UNK] == "[UNK]"


def test_the_stability_index_by_hand() -> None:
    # (.5 - .25) ln 2 twice, and (.01 - .25) ln(.01 / .25) twice, an empty bin being 1 %
    expected = 2 * 0.25 * log(2) + 2 * (0.01 - 0.25) * log(0.01 / 0.25)
    assert stability_index(np.array([0.5, 0.5, 0, 0]), np.full(4, 0.25)) == pytest.approx(expected)
    assert stability_index(np.full(4, 0.25), np.full(4, 0.25)) == 0


def test_shares_here_stand_beside_those_of_training() -> None:
    drift = Drift.between(events(40, 60, 0, 10, 10, 80), VOCABULARY, SEEN)
    assert (drift.n_events, drift.n_unknown, drift.share_unknown) == (200, 40, 0.2)
    assert drift.outermost == (0, 0.8)
    assert drift.outermost_then == (0.25, 0.25)
    assert (drift.n_values, drift.n_codes, list(drift.moved)) == (100, 1, ["LAB"])
    assert drift.has_new_codes
    assert drift.has_new_extremes
    assert json.loads(drift.to_json())["is_over_limit"]


def test_few_values_are_counted_and_not_judged() -> None:
    drift = Drift.between(events(0, 0, 0, 0, 0, 99), VOCABULARY, SEEN)
    assert (drift.outermost, drift.n_codes, drift.is_over_limit) == ((0, 1), 0, False)


def test_a_share_within_five_points_of_that_of_training_is_no_drift() -> None:
    assert not Drift.between(events(5, 95, 0, 0, 0, 0), VOCABULARY, SEEN).is_over_limit
    assert Drift.between(events(6, 94, 0, 0, 0, 0), VOCABULARY, SEEN).has_new_codes


def test_no_events_are_no_drift() -> None:
    drift = Drift.between(events(0, 0, 0, 0, 0, 0), VOCABULARY, SEEN)
    assert (drift.share_unknown, drift.is_over_limit) == (0, False)


def test_silence_is_ten_years_or_twice_as_long_as_in_the_cohort() -> None:
    assert silent_days_limit(None) == 10 * 365.25
    assert silent_days_limit(SEEN) == 18 * 365.25


@pytest.mark.parametrize("fields", [{}, {"share_unknown": 0, "bin_shares": [], "silent_years": 1}])
def test_fields_of_something_else_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="what the model saw in training"):
        Seen.from_json(fields)
