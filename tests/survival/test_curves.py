from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ehrtrack.errors import DataError
from ehrtrack.survival.curves import risk_at_horizon, survival_curve
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.time_grid import TimeGrid

LOGITS = torch.logit(torch.tensor([[0.1, 0.5], [0.2, 0.25]], dtype=torch.float64))


def test_survival_is_the_product_of_one_minus_hazard_from_one() -> None:
    expected = torch.tensor([[1.0, 0.9, 0.45], [1.0, 0.8, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(survival_curve(LOGITS), expected)


def test_risk_is_one_minus_survival_at_the_horizon() -> None:
    torch.testing.assert_close(risk_at_horizon(LOGITS), 1 - survival_curve(LOGITS)[:, -1])


def test_tiny_risks_keep_their_digits_and_so_their_order() -> None:
    # In single precision 1 - S would be 0 for both.
    risk = risk_at_horizon(torch.tensor([[-19.0], [-18.0]]))
    assert risk.tolist() == pytest.approx([5.6028e-09, 1.5230e-08], rel=1e-4)


@given(st.lists(st.lists(st.floats(-60, 60), min_size=4, max_size=4), min_size=1, max_size=5))
def test_survival_starts_at_one_and_never_rises(rows: list[list[float]]) -> None:
    curve = survival_curve(torch.tensor(rows))
    assert (curve[:, 0] == 1).all()
    assert (curve.diff(dim=1) <= 0).all()
    assert (curve >= 0).all()


def test_interpolation_is_exact_at_edges_and_straight_between_them() -> None:
    grid = TimeGrid((0.0, 10.0, 30.0))
    curve = np.array([[1.0, 0.8, 0.4]])
    at = interpolate_survival(curve, grid, [0.0, 5.0, 10.0, 15.0, 30.0])
    np.testing.assert_allclose(at, [[1.0, 0.9, 0.8, 0.7, 0.4]])


@pytest.mark.parametrize("day", [-0.1, 30.1])
def test_days_outside_the_grid_are_refused(day: float) -> None:
    with pytest.raises(DataError, match="the model covers 0 to 30"):
        interpolate_survival(np.ones((1, 2)), TimeGrid((0.0, 30.0)), [day])


def test_curves_of_another_grid_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(4, 3\); this time grid needs \(subjects, 2\)"):
        interpolate_survival(np.ones((4, 3)), TimeGrid((0.0, 30.0)), [3.0])
