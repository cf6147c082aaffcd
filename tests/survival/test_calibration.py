from __future__ import annotations

import numpy as np
import pytest

from ehrtrack.errors import DataError
from ehrtrack.survival.calibration import calibration_table, risk_groups


def test_groups_hold_equal_shares_in_order_of_risk() -> None:
    risk = np.random.default_rng(0).permutation(100) / 100
    group = risk_groups(risk, 4)
    assert np.bincount(group).tolist() == [25, 25, 25, 25]
    assert [risk[group == number].min() for number in range(4)] == [0, 0.25, 0.5, 0.75]


def test_equal_risks_share_a_group() -> None:
    assert risk_groups([0.1] * 60 + [0.2] * 20 + [0.9] * 20, 5).tolist() == [0] * 60 + [1] * 20 + [2] * 20
    assert set(risk_groups([0.3] * 10, 5)) == {0}


def test_table_by_hand_without_censoring() -> None:
    risk = [0.1] * 10 + [0.6] * 10
    days = [365.0] * 9 + [100.0] + [365.0] * 4 + [100.0] * 6
    event = [False] * 9 + [True] + [False] * 4 + [True] * 6
    table = calibration_table(risk, days, event, horizon_days=365, n_groups=2)
    assert table["group"].to_list() == [1, 2]
    assert table["n_subjects"].to_list() == [10, 10]
    assert table["n_events"].to_list() == [1, 6]
    assert table["predicted"].to_list() == pytest.approx([0.1, 0.6])
    assert table["observed"].to_list() == pytest.approx([0.1, 0.6])
    assert (table["lower"] < table["observed"]).all()
    assert (table["upper"] > table["observed"]).all()


def test_events_after_the_horizon_do_not_count() -> None:
    table = calibration_table([0.2] * 4, [10.0, 50.0, 50.0, 50.0], [True] * 4, horizon_days=30)
    assert table["n_events"].to_list() == [1]
    assert table["observed"].to_list() == pytest.approx([0.25])


def test_a_group_without_events_has_risk_zero_and_a_bound_by_the_rule_of_three() -> None:
    table = calibration_table([0.2] * 30, [30.0] * 30, [False] * 30, horizon_days=30)
    assert table.select("observed", "lower", "upper").row(0) == pytest.approx((0.0, 0.0, 0.1))


def test_a_group_in_which_all_have_the_event_has_risk_one() -> None:
    table = calibration_table([0.9] * 30, np.arange(1.0, 31.0), [True] * 30, horizon_days=30)
    assert table.select("observed", "lower", "upper").row(0) == pytest.approx((1.0, 0.9, 1.0))


def test_true_risks_are_found_calibrated() -> None:
    rng = np.random.default_rng(0)
    risk = rng.uniform(0.05, 0.6, 8000)
    days = rng.exponential(-365 / np.log1p(-risk))
    censoring = rng.uniform(0, 1000, 8000)
    follow_up = np.minimum(np.minimum(days, censoring), 365)
    table = calibration_table(risk, follow_up, (days <= censoring) & (days <= 365), horizon_days=365)
    assert table.height == 10
    np.testing.assert_allclose(table["observed"], table["predicted"], atol=0.05)


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match="risks from -1 to 2; calibration needs probabilities"):
        calibration_table([-1.0, 2.0], [1.0, 2.0], [True, False], horizon_days=30)


def test_one_subject_is_refused() -> None:
    with pytest.raises(DataError, match="1 subjects; a calibration table needs at least 2"):
        calibration_table([0.5], [1.0], [True], horizon_days=30)
