"""The survival head: what it reads of a record, and how risks may change in time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack.data.batch import Batch, Batches
from ehrtrack.models.heads import HazardHead

WIDTH = 6


@pytest.fixture
def batch() -> Batch:
    return next(iter(Batches(random_store(4, 20, longest=9), np.arange(4), 64, 16)))


def states(batch: Batch) -> torch.Tensor:
    return torch.randn(len(batch.token), WIDTH, generator=torch.Generator().manual_seed(0))


def head_of(baseline: torch.Tensor) -> HazardHead:
    torch.manual_seed(0)
    head = HazardHead(WIDTH, baseline).eval()
    torch.nn.init.normal_(head.out.weight)
    return head


def test_it_is_the_baseline_and_a_line_in_time_for_each_subject(batch: Batch) -> None:
    baseline = torch.linspace(-3, -2, 5)
    effects = head_of(baseline)(states(batch), batch, torch.zeros(0)) - baseline  # (B, K)
    steps = effects.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))
    assert steps[:, 0].unique().numel() == 4  # and no two subjects have the same
    assert effects.mean(dim=1).unique().numel() == 4


def test_each_cause_has_a_line_of_its_own(batch: Batch) -> None:
    baseline = torch.randn(5, 3)
    logits = head_of(baseline)(states(batch), batch, torch.zeros(0))
    assert logits.shape == (4, 15)
    steps = (logits.reshape(4, 5, 3) - baseline).diff(dim=1)  # causes lie side by side
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))
    assert steps[0, 0].unique().numel() == 3


def test_one_interval_has_no_drift(batch: Batch) -> None:
    head = head_of(torch.tensor([-2.0]))
    assert head.out.weight.shape == (1, 3 * WIDTH)
    head(states(batch), batch, torch.zeros(0)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_a_code_among_many_is_kept_by_the_largest_value(batch: Batch) -> None:
    """One state that stands out, at any place, changes the subject's risk, and nobody else's."""
    hidden, head = states(batch), head_of(torch.zeros(3))
    torch.nn.init.zeros_(head.query)
    before = head(hidden, batch, torch.zeros(0))
    first = int(batch.offsets[1])
    hidden[first] += 5.0
    moved = (head(hidden, batch, torch.zeros(0)) - before).abs().amax(dim=1)
    assert moved[1] > 0.1
    assert moved[[0, 2, 3]].max() == 0


def test_logits_keep_full_precision_beside_products_in_bf16(batch: Batch) -> None:
    baseline = torch.full((4,), -7.123456)
    head = head_of(baseline)
    torch.nn.init.zeros_(head.out.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(states(batch).bfloat16(), batch, torch.zeros(0))
    assert (logits == -7.123456).all()
