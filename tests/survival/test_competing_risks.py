"""Several causes: likelihood by hand, one cause as the single-risk model, and a C-index for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ehrtrack.survival.cause_measures import cause_c_index
from ehrtrack.survival.competing_risks import cause_likelihood, cumulative_incidence
from ehrtrack.survival.curves import survival_curve
from ehrtrack.survival.losses import negative_log_likelihood
from ehrtrack.survival.metrics import c_index


def logits_of(*hazards: tuple[float, float]) -> torch.Tensor:
    """(1, K, 2) logits whose hazards are these."""
    h = torch.tensor(hazards, dtype=torch.float64)
    return (h / (1 - h.sum(1, keepdim=True))).log()[None]


def test_by_hand_with_two_causes_and_two_intervals() -> None:
    logits = logits_of((0.1, 0.2), (0.3, 0.5))
    survival, incidence = cumulative_incidence(logits)
    np.testing.assert_allclose(survival[0], [1, 0.7, 0.14])
    np.testing.assert_allclose(incidence[0], [[0, 0.1, 0.31], [0, 0.2, 0.55]])
    interval = torch.tensor([0, 1, 1, 2, 0])
    cause = torch.tensor([2, 1, 0, 0, 0])
    found = cause_likelihood(logits.expand(5, -1, -1), interval, cause)
    # cause 2 first; cause 1 second; censored after one interval; after both; within the first, which says nothing
    np.testing.assert_allclose(torch.exp(-found), [0.2, 0.7 * 0.3, 0.7, 0.14, 1.0])


def test_with_one_cause_it_is_the_single_risk_model() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 6, dtype=torch.float64, generator=generator)
    interval, event = torch.randint(0, 6, (50,), generator=generator), torch.rand(50, generator=generator) < 0.5
    found = cause_likelihood(logits[:, :, None], interval, event.long()).mean()
    assert found.item() == pytest.approx(negative_log_likelihood(logits, interval, event).item(), abs=1e-12)
    survival, incidence = cumulative_incidence(logits[:, :, None])
    np.testing.assert_allclose(survival, survival_curve(logits), atol=1e-12)
    np.testing.assert_allclose(incidence[:, 0], 1 - survival_curve(logits), atol=1e-12)


def test_another_cause_is_a_subject_that_never_has_this_one() -> None:
    days, cause = np.array([10.0, 5.0, 20.0, 15.0]), np.array([1, 2, 0, 1])
    incidence = np.array([0.5, 0.6, 0.1, 0.7])
    # pairs: day 10 with those of the other cause (higher: discordant), day 15 (discordant) and 20; day 15 with both
    assert cause_c_index(incidence, days, cause, of=1) == pytest.approx(3 / 5)
    as_censored = c_index(incidence, days, cause == 1)
    assert as_censored == pytest.approx(2 / 3)  # what would come out if they were taken for censored


def test_the_censored_are_never_dropped() -> None:
    logits = torch.zeros(1, 3, 2, dtype=torch.float64)
    found = cause_likelihood(logits, torch.tensor([3]), torch.tensor([0]))
    assert found.item() == pytest.approx(3 * np.log(3))
