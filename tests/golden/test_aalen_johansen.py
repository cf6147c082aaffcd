"""Cumulative incidence against lifelines' Aalen-Johansen estimator; where numbers come from is in tests/README.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lifelines import AalenJohansenFitter

from ehrtrack.survival.cause_measures import aalen_johansen
from ehrtrack.survival.competing_risks import cause_likelihood, cumulative_incidence, marginal_logits
from ehrtrack.survival.time_grid import TimeGrid

N = 120
HORIZON = 180.0


def subjects() -> tuple[np.ndarray, np.ndarray]:
    """Whole days, no two alike (lifelines moves ties at random), with two causes, and half of them censored."""
    rng = np.random.default_rng(0)
    days = np.sort(rng.permutation(np.arange(1, 220))[:N]).astype(float)
    cause = rng.choice([0, 1, 2], N, p=[0.4, 0.4, 0.2])
    return days, np.where(days > HORIZON, 0, cause)


def reference(days: np.ndarray, cause: np.ndarray, of: int, at: np.ndarray) -> np.ndarray:
    fitter = AalenJohansenFitter(calculate_variance=False).fit(days, cause, event_of_interest=of)
    curve = fitter.cumulative_density_.iloc[:, 0]
    return curve.to_numpy()[np.searchsorted(curve.index.to_numpy(), at, side="right") - 1]


@pytest.mark.parametrize("of", [1, 2])
def test_the_marginal_model_on_a_grid_of_days_is_aalen_and_johansens(of: int) -> None:
    days, cause = subjects()
    grid = TimeGrid((*(float(day) for day in range(180)), HORIZON))
    interval = grid.interval_of(days, cause > 0)
    logits = torch.from_numpy(marginal_logits(interval, cause, n_intervals=grid.n_intervals, n_causes=2))
    # the thousandth of an event that keeps a logit finite would show in the sixth digit: here it is a billionth
    empty = torch.tensor([[np.sum((interval == k) & (cause == r)) == 0 for r in (1, 2)] for k in range(180)])
    logits = torch.where(empty, -40.0, logits)
    survival, incidence = cumulative_incidence(logits[None])
    edges = np.array(grid.edges_days)
    np.testing.assert_allclose(incidence[0, of - 1].numpy(), reference(days, cause, of, edges), atol=1e-6)
    np.testing.assert_allclose((survival + incidence.sum(1)).numpy(), 1, atol=1e-12)


@pytest.mark.parametrize("of", [1, 2])
def test_the_observed_incidence_is_aalen_and_johansens(of: int) -> None:
    days, cause = subjects()
    for day in (5.0, 60.0, 170.0, HORIZON):
        found = aalen_johansen(days, cause, of=of, by_day=day)
        assert found == pytest.approx(reference(days, cause, of, np.array([day]))[0], abs=1e-12)


def test_the_marginal_model_is_the_maximum_of_the_likelihood() -> None:
    days, cause = subjects()
    grid = TimeGrid((0.0, 40.0, 90.0, 130.0, HORIZON))
    interval = grid.interval_of(days, cause > 0)
    start = torch.from_numpy(marginal_logits(interval, cause, n_intervals=4, n_causes=2)).requires_grad_()
    losses = cause_likelihood(start.expand(N, -1, -1), torch.from_numpy(interval), torch.from_numpy(cause))
    losses.sum().backward()
    assert start.grad is not None
    np.testing.assert_allclose(start.grad.numpy(), 0, atol=1e-9)
