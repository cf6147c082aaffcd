"""The learning rate over the steps of a run."""

from __future__ import annotations

import pytest
import torch

from ehrtrack.training.schedule import warmup_cosine


def rates(n_steps: int, warmup_share: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, n_steps=n_steps, warmup_share=warmup_share)
    found = []
    for _ in range(n_steps + 1):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_rises_to_its_peak_and_falls_by_half_a_cosine_to_a_tenth() -> None:
    # two steps of warm-up, then 0.1 + 0.45 (1 + cos(pi k / 8)) for k = 0 .. 8
    expected = [0.5, 1.0, 1.0, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254, 0.1]
    assert rates(10, 0.2) == pytest.approx(expected, abs=1e-6)


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert rates(10, 0.0)[0] == 1.0


def test_one_step_is_enough() -> None:
    assert rates(1, 0.5) == pytest.approx([1.0, 1.0])
