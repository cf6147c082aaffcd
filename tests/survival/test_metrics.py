from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ehrtrack.errors import DataError
from ehrtrack.survival.metrics import c_index, evaluation_times, integrated_brier_score


@pytest.mark.parametrize(
    ("risk", "days", "event", "expected"),
    [
        pytest.param([3, 2, 1], [1, 2, 3], [1, 1, 1], 1.0, id="right order"),
        pytest.param([1, 2, 3], [1, 2, 3], [1, 1, 1], 0.0, id="reversed"),
        pytest.param([5, 5, 5], [1, 2, 3], [1, 1, 1], 0.5, id="equal risks count one half"),
        # Pairs: (0,1) right, (0,2) wrong; subject 1 is censored at 2, so (1,2) is not comparable.
        pytest.param([2, 1, 3], [1, 2, 3], [1, 0, 1], 0.5, id="a censored subject is compared only before"),
        # Two events at day 1 are not comparable with each other; each is with day 3: one right, one wrong.
        pytest.param([3, 1, 2], [1, 1, 3], [1, 1, 0], 0.5, id="tied events are not comparable"),
        pytest.param([2, 1], [1, 1], [1, 0], 1.0, id="an event tied with a censoring came first"),
    ],
)
def test_c_index_by_hand(risk: list[int], days: list[int], event: list[int], expected: float) -> None:
    assert c_index(risk, days, event) == expected


@pytest.mark.parametrize(
    ("days", "event"),
    [
        pytest.param([1, 2], [0, 0], id="all censored"),
        pytest.param([1, 2], [0, 1], id="event last"),
        pytest.param([3, 3], [1, 1], id="events tied"),
        pytest.param([3], [1], id="one subject"),
    ],
)
def test_no_comparable_pair_is_refused(days: list[int], event: list[int]) -> None:
    with pytest.raises(DataError, match=f"no comparable pair among {len(days)} subjects"):
        c_index(np.arange(len(days)), days, event)


def test_nan_risk_is_refused_and_named() -> None:
    with pytest.raises(DataError, match=r"1 of 3 values of risk are not finite \(first: row 1\)"):
        c_index([0.1, np.nan, 0.3], [1, 2, 3], [1, 1, 1])


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="one value per subject"):
        c_index([0.1, 0.2], [1, 2, 3], [1, 1, 1])


@given(st.integers(0, 10_000))
def test_c_index_is_about_order_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    days, event, risk = rng.integers(1, 9, 20), rng.random(20) < 0.5, rng.normal(size=20)
    assume(event[days < days.max()].any())
    order = rng.permutation(20)
    c = c_index(risk, days, event)
    assert c_index(np.exp(3 * risk), days, event) == c
    assert c_index(-risk, days, event) == pytest.approx(1 - c)
    assert c_index(risk[order], days[order], event[order]) == c


def test_evaluation_times_span_the_middle_of_training_follow_up() -> None:
    train = np.arange(1.0, 101.0)
    times = evaluation_times(train, np.ones(100, bool), np.arange(1.0, 101.0), n_times=9)
    np.testing.assert_allclose(times, np.linspace(*np.percentile(train, [10, 90]), 9))


def test_evaluation_times_end_below_a_horizon_that_most_subjects_reach() -> None:
    train = np.concatenate([np.arange(1.0, 61.0), np.full(60, 365.0)])
    times = evaluation_times(train, train < 365, train)
    assert 364.99 < times[-1] < 365


def test_with_rare_events_the_range_starts_at_the_event_times() -> None:
    # 4 events among 100: both percentiles of follow-up are the horizon.
    train = np.concatenate([[50.0, 60.0, 70.0, 80.0], np.full(96, 365.0)])
    times = evaluation_times(train, train < 365, train)
    assert times[0] == pytest.approx(53.0)  # 10th percentile of 50, 60, 70, 80
    assert 364.99 < times[-1] < 365


def test_evaluation_times_stay_within_the_evaluated_follow_up() -> None:
    times = evaluation_times(np.arange(1.0, 101.0), np.ones(100, bool), np.array([30.0, 40.0, 50.0]))
    assert times[0] == 30
    assert 49.99 < times[-1] < 50


def test_no_common_range_is_refused() -> None:
    with pytest.raises(DataError, match=r"no range to evaluate survival in: .* evaluated follow-up in 200 to 300"):
        evaluation_times(np.arange(1.0, 101.0), np.ones(100, bool), np.array([200.0, 300.0]))


def test_without_censoring_the_score_is_the_mean_squared_error() -> None:
    days = np.array([10.0, 20.0, 30.0, 40.0])
    event = np.ones(4, bool)
    times = np.array([15.0, 25.0])
    survival = np.array([[0.2, 0.1], [0.7, 0.4], [0.9, 0.8], [0.6, 0.5]])
    truth = days[:, None] > times
    expected = ((truth - survival) ** 2).mean(axis=0).mean()  # the trapezium of two points is their mean
    assert integrated_brier_score(days, event, days, event, survival, times) == pytest.approx(expected)


def test_follow_up_past_the_training_follow_up_is_scored_as_event_free() -> None:
    # The last training subject has the event, so the weights do not end at 0 and the library would refuse
    # day 900.
    train_days, train_event = np.array([5.0, 20.0, 35.0, 50.0]), np.array([True, False, True, True])
    times = np.array([16.0, 30.0])
    survival = np.array([[0.9, 0.7], [0.6, 0.2], [0.8, 0.75]])
    event = np.array([True, True, True])
    inside = integrated_brier_score(train_days, train_event, [15, 25, 49], event, survival, times)
    past = integrated_brier_score(train_days, train_event, [15, 25, 900], event, survival, times)
    assert past == inside


@pytest.mark.parametrize(
    ("times", "columns"),
    [
        pytest.param([10.0], 1, id="one time"),
        pytest.param([20.0, 10.0], 2, id="falling"),
        pytest.param([1.0, 20.0], 2, id="before the shortest follow-up"),
        pytest.param([10.0, 40.0], 2, id="at the longest follow-up"),
    ],
)
def test_times_outside_the_follow_up_are_refused(times: list[float], columns: int) -> None:
    days, event = np.array([5.0, 20.0, 40.0]), np.array([True, False, True])
    with pytest.raises(DataError, match="take them from evaluation_times"):
        integrated_brier_score(days, event, days, event, np.full((3, columns), 0.5), times)


def test_survival_of_another_shape_is_refused() -> None:
    days, event = np.array([5.0, 20.0, 40.0]), np.array([True, False, True])
    with pytest.raises(DataError, match=r"shape \(3, 4\); 3 subjects at 2 times"):
        integrated_brier_score(days, event, days, event, np.full((3, 4), 0.5), [10.0, 20.0])


def test_survival_that_is_not_finite_is_refused() -> None:
    days, event = np.array([5.0, 20.0, 40.0]), np.array([True, False, True])
    with pytest.raises(DataError, match="values of survival are not finite"):
        integrated_brier_score(days, event, days, event, np.full((3, 2), np.nan), [10.0, 20.0])
