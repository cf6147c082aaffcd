"""Measures against torchsurv on made data with ties and heavy censoring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchsurv.metrics import brier_score, cindex
from torchsurv.stats import ipcw

from ehrtrack.survival.metrics import c_index, evaluation_times, integrated_brier_score


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), event_share=st.sampled_from([0.1, 0.4, 1.0]))
def test_c_index_equals_torchsurv_with_ties_and_heavy_censoring(seed: int, event_share: float) -> None:
    rng = np.random.default_rng(seed)
    risk, days, event = rng.integers(0, 8, 60) / 8, rng.integers(1, 12, 60), rng.random(60) < event_share
    assume(event.any() and days[event].min() < days.max())
    reference = cindex.ConcordanceIndex()(
        torch.from_numpy(risk), torch.from_numpy(event), torch.from_numpy(days.astype(np.float64))
    )
    assert c_index(risk, days, event) == pytest.approx(reference.item(), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_integrated_brier_score_equals_torchsurv_with_its_own_censoring_weights(seed: int) -> None:
    """Days without ties, where estimators of the censoring agree; subjects weigh themselves, as torchsurv has it."""
    rng = np.random.default_rng(seed)
    event_day, censored = rng.exponential(100, 150), rng.uniform(10, 200, 150)
    days, event = np.minimum(event_day, censored), event_day <= censored
    times = evaluation_times(days, event, days, n_times=15)
    survival = np.exp(-np.outer(rng.uniform(0.3, 3, 150), times / 100))
    of_subjects, at = (torch.from_numpy(event), torch.from_numpy(days)), torch.from_numpy(times)
    measure = brier_score.BrierScore()
    measure(
        torch.from_numpy(survival),
        *of_subjects,
        at,
        ipcw.get_ipcw(*of_subjects),
        ipcw.get_ipcw(*of_subjects, at),
    )
    ours = integrated_brier_score(days, event, days, event, survival, times)
    assert ours == pytest.approx(measure.integral().item(), abs=1e-6)
