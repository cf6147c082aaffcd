"""The likelihood read from curves is that of the training loss; its gain over Kaplan-Meier shows what was learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ehrtrack.survival.curves import survival_curve
from ehrtrack.survival.likelihood import LEAST_PROBABILITY, likelihood_gain, log_likelihood
from ehrtrack.survival.losses import negative_log_likelihood
from ehrtrack.survival.time_grid import TimeGrid

GRID = TimeGrid((0.0, 10.0, 20.0, 30.0))


def test_it_is_the_likelihood_of_the_training_loss() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(200, 3)))
    days, event = rng.choice([3.0, 10.0, 15.0, 20.0, 29.0, 30.0], 200), rng.random(200) < 0.5
    found = log_likelihood(survival_curve(logits).numpy(), GRID, days, event)
    survived = torch.from_numpy(GRID.survived(days, event))
    assert -found.mean() == pytest.approx(
        negative_log_likelihood(logits, survived, torch.from_numpy(event)).item(), abs=1e-12
    )


def test_by_hand_with_an_event_a_censored_subject_and_one_that_was_ruled_out() -> None:
    curves = np.array([[1, 0.9, 0.6, 0.5], [1, 0.9, 0.6, 0.5], [1, 1, 1, 0.5]])
    found = log_likelihood(curves, GRID, np.array([15.0, 15.0, 5.0]), np.array([True, False, True]))
    half_of_the_second = 0.9 * (0.6 / 0.9) ** 0.5
    np.testing.assert_allclose(np.exp(found), [0.3, half_of_the_second, LEAST_PROBABILITY])


def test_the_gain_is_positive_for_the_true_risk_zero_for_kaplan_meier_and_negative_for_the_reverse() -> None:
    rng = np.random.default_rng(1)
    rate = np.exp(rng.normal(size=1000)) / 30
    days = np.minimum(rng.exponential(1 / rate), 30.0)
    event = days < 30
    population = np.array([1, *(np.mean(days > edge) for edge in (10, 20)), np.mean(~event)])

    def gain(rate: np.ndarray):
        return likelihood_gain(np.exp(-np.outer(rate, GRID.edges_days)), population, GRID, days, event)

    assert gain(rate).lower > 0
    assert gain(1 / rate / 900).upper < 0
    same = likelihood_gain(np.tile(population, (1000, 1)), population, GRID, days, event)
    assert (same.estimate, same.lower, same.upper) == (0, 0, 0)
