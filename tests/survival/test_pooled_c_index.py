"""A C-index over several landmarks, and its interval over subjects."""

from __future__ import annotations

import numpy as np
import pytest

from ehrtrack.errors import DataError
from ehrtrack.survival.bootstrap import c_index_interval
from ehrtrack.survival.landmarks import AtLandmark, pooled_c_index
from ehrtrack.survival.metrics import c_index


def _subjects(n: int, seed: int = 0) -> AtLandmark:
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    days = rng.exponential(np.exp(-risk) * 100).round() + 1
    return AtLandmark(np.arange(n) * 3, risk, days, rng.random(n) < 0.6)


def test_one_landmark_is_the_ordinary_c_index_with_its_interval():
    at = _subjects(150)
    ordinary = c_index_interval(at.risk, at.follow_up_days, at.is_event, seed=4)
    assert pooled_c_index([at], seed=4) == ordinary


def test_pairs_of_different_landmarks_are_not_compared():
    first = AtLandmark(np.array([1, 2]), [0.9, 0.1], [10, 20], [True, False])  # concordant
    later = AtLandmark(np.array([2, 5]), [0.2, 0.8], [5, 50], [True, False])  # discordant
    as_one = AtLandmark(np.arange(4), [0.9, 0.1, 0.2, 0.8], [10, 20, 5, 50], [True, False, True, False])
    many = [first, later] * 20
    subjects = [AtLandmark(at.subject + 10 * i, at.risk, at.follow_up_days, at.is_event) for i, at in enumerate(many)]
    assert pooled_c_index(subjects).estimate == 0.5
    assert c_index(as_one.risk, as_one.follow_up_days, as_one.is_event) == pytest.approx(3 / 5)


def test_a_subject_is_drawn_with_all_its_landmarks():
    """The same rows three times over are no new subjects: the interval stays what it is."""
    at = _subjects(120)
    once, thrice = pooled_c_index([at], seed=1), pooled_c_index([at, at, at], seed=1)
    assert thrice.estimate == pytest.approx(once.estimate, abs=1e-12)
    assert (thrice.lower, thrice.upper) == pytest.approx((once.lower, once.upper), abs=1e-6)
    as_if_others = [AtLandmark(at.subject + 1000 * i, at.risk, at.follow_up_days, at.is_event) for i in range(3)]
    too_narrow = pooled_c_index(as_if_others, seed=1)
    assert too_narrow.upper - too_narrow.lower < 0.75 * (once.upper - once.lower)


def test_a_landmark_without_a_comparable_pair_is_refused():
    nobody = AtLandmark(np.array([1, 2]), [0.9, 0.1], [10, 20], [False, False])
    with pytest.raises(DataError, match="comparable pair"):
        pooled_c_index([_subjects(50), nobody])
