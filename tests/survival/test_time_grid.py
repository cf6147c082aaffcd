from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.survival.time_grid import TimeGrid, fit_time_grid

GRID = TimeGrid((0.0, 30.0, 90.0, 365.0))  # K = 3


@pytest.mark.parametrize(
    ("days", "interval"),
    [(0.5, 0), (29.9, 0), (30.0, 0), (30.1, 1), (90.0, 1), (90.5, 2), (365.0, 2)],
)
def test_an_event_leaves_in_the_interval_that_is_open_left_and_closed_right(days: float, interval: int) -> None:
    assert GRID.interval_of([days], [True]).tolist() == [interval]


@pytest.mark.parametrize(
    ("days", "n_survived"),
    [(0.5, 0), (29.9, 0), (30.0, 1), (30.1, 1), (89.9, 1), (90.0, 2), (364.9, 2), (365.0, 3), (400.0, 3)],
)
def test_a_censored_subject_survived_an_interval_only_if_seen_to_its_end(days: float, n_survived: int) -> None:
    assert GRID.interval_of([days], [False]).tolist() == [n_survived]


def test_interval_of_is_int64_and_takes_mixed_subjects() -> None:
    intervals = GRID.interval_of([30.0, 30.0, 365.0, 365.0], [True, False, True, False])
    assert intervals.dtype == np.int64
    assert intervals.tolist() == [0, 1, 2, 3]


def test_follow_up_that_does_not_start_after_the_index_date_is_refused() -> None:
    with pytest.raises(DataError, match=r"a follow-up of 0\.0 days; .* must be > 0"):
        GRID.interval_of([10.0, 0.0], [True, False])


def test_nan_follow_up_is_refused() -> None:
    with pytest.raises(DataError, match="a follow-up of nan days"):
        GRID.interval_of([float("nan")], [False])


def test_an_event_past_the_horizon_is_refused() -> None:
    with pytest.raises(DataError, match="an event at 366 days lies past the horizon of 365"):
        GRID.interval_of([366.0], [True])


@pytest.mark.parametrize("edges", [(0.0,), (1.0, 2.0), (0.0, 5.0, 5.0), (0.0, 9.0, 3.0), (0.0, float("nan"))])
def test_edges_must_rise_from_zero(edges: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="strictly increasing"):
        TimeGrid(edges)


def test_json_round_trip() -> None:
    assert TimeGrid.from_json(GRID.to_json()) == GRID


@pytest.mark.parametrize("text", ["", "[]", '{"edges": [0, 1]}', '{"edges_days": ["a"]}'])
def test_json_that_is_no_grid_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="needed is JSON like"):
        TimeGrid.from_json(text)


def test_edges_are_quantiles_of_event_times_and_censored_times_do_not_count() -> None:
    event_days = np.arange(10.0, 101.0, 10.0)  # 10, 20, ..., 100
    follow_up = np.concatenate([event_days, np.full(500, 3.0)])
    is_event = np.concatenate([np.ones(10, bool), np.zeros(500, bool)])
    grid = fit_time_grid(follow_up, is_event, horizon_days=365, n_intervals=5)
    assert grid.edges_days == (0.0, 20.0, 40.0, 60.0, 80.0, 365.0)


def test_tied_event_times_merge_intervals() -> None:
    grid = fit_time_grid([7.0] * 90 + [30.0] * 10, [True] * 100, horizon_days=365, n_intervals=10)
    assert grid.edges_days == (0.0, 7.0, 365.0)


def test_one_event_time_gives_one_interval() -> None:
    assert fit_time_grid([7.0, 7.0], [True, True], horizon_days=30, n_intervals=4).edges_days == (0.0, 30.0)


def test_no_event_within_the_horizon_is_refused() -> None:
    with pytest.raises(DataError, match="no event within 30 days among 2 training subjects"):
        fit_time_grid([40.0, 10.0], [True, False], horizon_days=30, n_intervals=4)


@given(
    days=st.lists(st.floats(0.01, 365), min_size=1, max_size=60),
    n_intervals=st.integers(1, 12),
)
def test_every_interval_of_a_fitted_grid_holds_a_training_event(days: list[float], n_intervals: int) -> None:
    is_event = np.ones(len(days), bool)
    grid = fit_time_grid(days, is_event, horizon_days=365, n_intervals=n_intervals)
    assert grid.n_intervals <= n_intervals
    assert set(grid.interval_of(days, is_event)) == set(range(grid.n_intervals))
