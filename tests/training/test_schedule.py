"""The learning rate over a run."""

from __future__ import annotations

import pytest

from ehrtrack.training.schedule import warmup_cosine


def test_the_rate_rises_to_its_peak_and_falls_by_half_a_cosine_to_a_tenth() -> None:
    # a fifth of warm-up, then 0.1 + 0.45 (1 + cos(pi k / 8)) for k = 0 .. 8
    expected = [0.0, 0.5, 1.0, 0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254, 0.1]
    assert [warmup_cosine(k / 10, warmup_share=0.2) for k in range(11)] == pytest.approx(expected, abs=1e-6)


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert warmup_cosine(0.0, warmup_share=0.0) == 1.0
