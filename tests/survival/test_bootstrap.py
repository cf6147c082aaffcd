from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ehrtrack.errors import DataError
from ehrtrack.survival import resampling
from ehrtrack.survival.bootstrap import c_index_interval, paired_difference, paired_differences
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.resampling import Interval

Array = npt.NDArray[np.float64]


def subjects(n: int, seed: int = 0) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Risk (in steps, so that some tie), follow-up in whole weeks, and events; a C-index of about .7."""
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1)
    time = rng.exponential(np.exp(-risk))
    censoring = rng.exponential(1.0, n)
    return risk, np.ceil(np.minimum(time, censoring) * 20), time <= censoring


def test_estimate_is_the_c_index_of_the_subjects_as_they_are() -> None:
    risk, days, event = subjects(200)
    interval = c_index_interval(risk, days, event, n_resamples=50)
    assert interval.estimate == c_index(risk, days, event)
    assert interval.lower < interval.estimate < interval.upper


def test_same_seed_same_interval_and_another_seed_another() -> None:
    risk, days, event = subjects(100)
    assert c_index_interval(risk, days, event, seed=3) == c_index_interval(risk, days, event, seed=3)
    assert c_index_interval(risk, days, event, seed=3) != c_index_interval(risk, days, event, seed=4)


def test_bounds_are_the_percentiles_of_resampled_c_indices() -> None:
    risk, days, event = subjects(80)
    drawn = np.random.default_rng(7).integers(80, size=(60, 80))
    expected = [c_index(risk[rows], days[rows], event[rows]) for rows in drawn]
    interval = c_index_interval(risk, days, event, n_resamples=60, seed=7)
    np.testing.assert_allclose([interval.lower, interval.upper], np.quantile(expected, [0.025, 0.975]), atol=1e-12)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    risk, days, event = subjects(120)
    whole = c_index_interval(risk, days, event, n_resamples=40)
    monkeypatch.setattr(resampling, "BLOCK_COUNTS", 500)
    assert c_index_interval(risk, days, event, n_resamples=40) == whole


def test_both_ways_of_counting_pairs_give_the_same_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    risk, days, event = subjects(300)
    tied = np.round(risk, 1), np.ceil(days * 5), event  # in risk and in days
    of_pairs = [c_index_interval(*found, n_resamples=40) for found in ((risk, days, event), tied)]
    monkeypatch.setattr(resampling, "MOST_CELLS", 0)
    assert [c_index_interval(*found, n_resamples=40) for found in ((risk, days, event), tied)] == of_pairs


def test_differences_of_several_models_are_those_of_each() -> None:
    risk, days, event = subjects(120)
    others = [np.round(risk, 1), -risk, np.cos(7 * risk)]
    expected = [paired_difference(other, risk, days, event, n_resamples=40) for other in others]
    assert paired_differences(others, risk, days, event, n_resamples=40) == expected


def test_more_subjects_narrow_the_interval() -> None:
    few, many = (c_index_interval(*subjects(n)) for n in (100, 1600))
    assert many.upper - many.lower < 0.5 * (few.upper - few.lower)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = c_index(*subjects(40_000, seed=999))
    intervals = [c_index_interval(*subjects(150, seed=seed), n_resamples=200) for seed in range(100)]
    n_covering = sum(interval.lower <= truth <= interval.upper for interval in intervals)
    assert 88 <= n_covering <= 100  # binomial(100, .95) is in here with probability .998


def test_a_model_does_not_differ_from_itself() -> None:
    risk, days, event = subjects(100)
    assert paired_difference(risk, 2 * risk + 1, days, event) == Interval(0.0, 0.0, 0.0)


def test_a_better_model_differs_by_an_interval_above_zero() -> None:
    risk, days, event = subjects(400)
    noisy = risk + np.random.default_rng(1).normal(scale=2, size=400)
    difference = paired_difference(risk, noisy, days, event)
    assert difference.estimate == c_index(risk, days, event) - c_index(noisy, days, event)
    assert 0 < difference.lower < difference.estimate < difference.upper


def test_pairing_is_narrower_than_two_separate_intervals() -> None:
    risk, days, event = subjects(300)
    other = risk + np.random.default_rng(1).normal(scale=0.1, size=300)
    paired = paired_difference(risk, other, days, event)
    alone = c_index_interval(risk, days, event)
    assert paired.upper - paired.lower < 0.5 * (alone.upper - alone.lower)


def test_swapping_the_models_turns_the_interval_round() -> None:
    risk, days, event = subjects(150)
    other = risk + np.random.default_rng(1).normal(size=150)
    ab, ba = paired_difference(risk, other, days, event), paired_difference(other, risk, days, event)
    assert (ab.estimate, ab.lower, ab.upper) == pytest.approx((-ba.estimate, -ba.upper, -ba.lower))


def test_one_event_is_too_few_for_an_interval() -> None:
    event = np.zeros(50, bool)
    event[0] = True
    with pytest.raises(DataError, match="of 500 resamples have no value: too few events"):
        c_index_interval(np.arange(50), np.arange(1, 51), event)


def test_an_interval_reads_as_reports_print_it() -> None:
    assert str(Interval(0.71234, 0.65, 0.7777)) == "0.712 [0.650, 0.778]"
