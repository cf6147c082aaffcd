from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import DataError
from ehrtrack.evaluation.evaluate import evaluate
from ehrtrack.evaluation.report import Report
from ehrtrack.evaluation.split import Context, EvaluationConfig, Split
from ehrtrack.survival.calibration_curve import calibration_curve, calibration_slope, spline_columns
from ehrtrack.survival.censoring import FollowUp, censored_after_events, risk_without_interval
from ehrtrack.survival.conformal import LowerBounds, covered_share, fit_lower_bounds
from ehrtrack.survival.decision import decision_curve
from ehrtrack.survival.discrimination import dynamic_auc, uno_c
from ehrtrack.survival.proportional_hazards import ProportionalHazards
from ehrtrack.survival.recalibration import fit_recalibration
from ehrtrack.survival.subgroups import score_subgroups
from ehrtrack.survival.time_grid import TimeGrid

Array = npt.NDArray[np.float64]

HORIZON = 100.0
GRID = TimeGrid(tuple(np.linspace(0, HORIZON, 11).tolist()))
RATE = 0.006


def made(n: int, seed: int) -> tuple[Array, Outcomes]:
    """True hazards a day, and outcomes followed to the horizon at most."""
    rng = np.random.default_rng(seed)
    rate = RATE * np.exp(rng.normal(size=n))
    event_day, censored = rng.exponential(1 / rate), np.minimum(rng.exponential(150, n), HORIZON)
    days, event = np.minimum(event_day, censored), event_day <= censored
    return rate, Outcomes(days, event)


def split_of(n: int, seed: int, spread: float = 1.0) -> Split:
    """The true curves, or with their log hazards spread out: risks too far apart, as of an overfitted model."""
    rate, outcomes = made(n, seed)
    told = RATE * (rate / RATE) ** spread
    return Split(np.exp(-np.outer(told, GRID.edges_days)), GRID, outcomes, outcomes)


def evaluated(test: Split, validation: Split, config: EvaluationConfig, **groups: pl.Series) -> Report:
    return evaluate(test, Context(config, 0, validation, groups))


def test_who_is_followed_to_the_horizon_outlives_it_and_an_event_on_its_day_does_not() -> None:
    follow_up = FollowUp.of([50, 100, 100], [True, False, True], [60, 100, 100], [False, False, True])
    assert follow_up.has_event_by(100).tolist() == [False, False, True]
    assert follow_up.outlives(100).tolist() == [False, True, False]
    assert follow_up.recorded_days.tolist() == [60, 100, 100]
    assert uno_c([0, 0.2, 0.9], follow_up, horizon_days=100) == 1.0


def test_the_censored_are_moved_by_less_than_any_day() -> None:
    moved = censored_after_events([5, 5], [True, False])
    assert moved[0] == 5 < moved[1] < 5 + 1e-9


def test_an_event_past_the_training_follow_up_is_censored_at_its_end() -> None:
    follow_up = FollowUp.of([10, 20], [True, False], [15, 40], [True, True])
    assert follow_up.is_event.tolist() == [True, False]
    assert follow_up.days[1] == pytest.approx(20)


def test_true_curves_are_calibrated_and_spread_ones_are_seen() -> None:
    right, wrong = split_of(4_000, 0), split_of(4_000, 0, spread=2)
    assert calibration_slope(right.risk, right.follow_up, horizon_days=HORIZON) == pytest.approx(1, abs=0.1)
    assert calibration_slope(wrong.risk, wrong.follow_up, horizon_days=HORIZON) == pytest.approx(0.5, abs=0.05)
    ici = [calibration_curve(s.risk, s.follow_up, horizon_days=HORIZON).ici for s in (right, wrong)]
    assert ici[0] < 0.02 < 0.08 < ici[1]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_recalibration_on_validation_betters_curves_that_are_too_far_apart(method: str) -> None:
    config = EvaluationConfig(n_resamples=20, recalibration=method, conformal_coverage=0)  # type: ignore[arg-type]
    report = evaluated(split_of(1_500, 1, spread=2), split_of(1_500, 2, spread=2), config)
    assert report.metrics["recalibrated_ici"] < 0.5 * report.metrics["ici"]
    assert report.metrics["recalibrated_brier"] < report.metrics["brier"]
    assert report.metrics["d_calibration_p"] < 1e-6


def test_recalibration_that_would_turn_the_order_round_is_refused() -> None:
    split = split_of(500, 3, spread=-1)
    follow_up = split.follow_up
    with pytest.raises(DataError, match="would turn the order of risks round"):
        fit_recalibration("platt", split.survival, GRID, follow_up.recorded_days, follow_up.is_event)


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_lower_bounds_hold_for_the_stated_share_whether_or_not_the_model_is_right(spread: float) -> None:
    validation, test = split_of(3_000, 4, spread), split_of(3_000, 5, spread)
    days = fit_lower_bounds(validation.survival, GRID, validation.follow_up, coverage=0.8).days(test.survival, GRID)
    assert covered_share(days, test.follow_up, horizon_days=HORIZON) == pytest.approx(0.8, abs=0.03)
    assert 0 < np.median(days) <= HORIZON


def test_a_bound_is_where_the_curve_falls_to_the_level_and_the_horizon_where_it_stays_above() -> None:
    grid = TimeGrid((0.0, 10.0, 20.0))
    bounds = LowerBounds(0.9, 0.8).days([[1, 0.9, 0.7], [1, 0.95, 0.9], [1, 0.8, 0.8]], grid)
    np.testing.assert_allclose(bounds, [15, 20, 10])


def test_bounds_from_too_few_subjects_are_refused() -> None:
    split = split_of(15, 6)
    with pytest.raises(DataError, match=r"from 15 validation subjects; needed .* at least 19 subjects"):
        fit_lower_bounds(split.survival, GRID, split.follow_up, coverage=0.95)


def test_risks_that_do_not_vary_have_no_slope_and_the_rest_is_still_reported() -> None:
    split = split_of(400, 7, spread=0)
    report = evaluated(split, split, EvaluationConfig(n_resamples=20))
    assert report.left_out["calibration_slope"].endswith("use a larger split")
    assert report.metrics["uno_c"] == report.metrics["auc_horizon"] == 0.5
    assert report.metrics["brier"] > 0


def test_a_column_that_separates_the_events_has_no_fit() -> None:
    days = np.arange(1.0, 41)
    with pytest.raises(DataError, match="has no solution"):
        ProportionalHazards(-days[:, None], days, np.ones(40, bool)).fit()


def test_a_spline_without_three_knots_is_a_line() -> None:
    assert spline_columns(np.array([0.0, 0, 0, 0, 0, 1])).shape == (6, 1)
    assert spline_columns(np.linspace(0, 1, 20)).shape == (20, 2)


def test_auc_before_the_first_event_is_refused_by_name() -> None:
    follow_up = FollowUp.of([5, 9], [True, False], [5, 9], [True, False])
    with pytest.raises(DataError, match="0 events by day 2 and 2 subjects followed beyond it"):
        dynamic_auc([0.5, 0.1], follow_up, [2.0])


def test_net_benefit_of_calling_everybody_is_that_of_the_observed_risk() -> None:
    split = split_of(500, 8)
    table = decision_curve(np.ones(500), split.follow_up, horizon_days=HORIZON, thresholds=[0.2])
    observed = risk_without_interval(split.follow_up.days, split.follow_up.is_event, HORIZON)
    assert table["net_benefit"].item() == pytest.approx(observed - (1 - observed) * 0.25)
    assert table["treat_all"].item() == pytest.approx(table["net_benefit"].item())


def test_a_group_without_events_is_listed_with_the_reason_and_has_no_gap() -> None:
    split = split_of(200, 9)
    group = pl.Series(np.where(split.follow_up.is_event, "ill", "well"))
    scored = score_subgroups(split.risk, split.follow_up, {"state": group}, horizon_days=HORIZON, n_resamples=20)
    well = scored.table.row(by_predicate=pl.col("group") == "well", named=True)
    assert (well["n_events"], well["c_index"], well["left_out"]) == (0, None, "0 events, fewer than 5")
    assert scored.gaps.is_empty()


def test_rows_of_an_enum_come_in_its_order() -> None:
    split = split_of(120, 10)
    bands = pl.Series(["under 1", "10 and over"] * 60, dtype=pl.Enum(["under 1", "10 and over"]))
    table = score_subgroups(split.risk, split.follow_up, {"history": bands}, horizon_days=HORIZON, n_resamples=20).table
    assert table["group"].to_list() == ["all", "under 1", "10 and over"]


@pytest.mark.parametrize("n_events", [0, 1, 4, 10])
def test_no_number_of_events_fails_an_evaluation(n_events: int) -> None:
    days = np.linspace(3, 99, 60)
    event = np.zeros(60, bool)
    event[:n_events] = True
    train = split_of(200, 11).follow_up
    outcomes = Outcomes(train.recorded_days, train.is_event), Outcomes(days, event)
    split = Split(split_of(60, 11).survival, GRID, *outcomes)
    report = evaluated(split, split, EvaluationConfig(n_resamples=20), sex=pl.Series(["F", "M"] * 30))
    assert {"calibration_slope", "decision_curve"} <= set(report.left_out)
    assert all(np.isfinite(value) for value in report.metrics.values())
    assert all(reason for reason in report.left_out.values())
