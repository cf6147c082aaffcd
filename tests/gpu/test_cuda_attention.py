"""The flash kernel over ragged rows against the loop over subjects, which tests of the CPU hold to padded attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import Tensor

from ehrtrack.data.batch import Batch, collate
from ehrtrack.models.attention import attend_in_loop, attend_varlen, packed_attention

HEADS, WIDTH = 4, 24


def batch_of(n_subjects: int) -> Batch:
    return collate(random_store(n_subjects, 40, longest=60), np.arange(n_subjects), max_tokens=100)


def attended(attend: object, batch: Batch, places: Tensor | None) -> list[Tensor]:
    """The output and the gradients of q, k and v, in float32."""
    torch.manual_seed(0)
    n_queries = None if places is None else torch.bincount(batch.subject[places], minlength=len(batch.lengths))
    sizes = (batch.n_tokens if places is None else len(places), batch.n_tokens, batch.n_tokens)
    q, k, v = (torch.randn(n, HEADS, WIDTH, device="cuda").bfloat16().requires_grad_() for n in sizes)
    out = attend(q, k, v, batch, n_queries)  # type: ignore[operator]
    out.float().square().sum().backward()
    gradients = [x.grad for x in (q, k, v) if x.grad is not None]
    return [x.detach().float() for x in (out, *gradients)]


@pytest.mark.parametrize("only_some", [False, True])
def test_the_kernel_for_ragged_rows_equals_the_loop_over_subjects(only_some: bool) -> None:
    """Of some subjects no token attends at all, and of others every one."""
    batch = batch_of(40).to(torch.device("cuda"))
    places = batch.cls_positions[::3] if only_some else None
    kernel, loop = (attended(attend, batch, places) for attend in (attend_varlen, attend_in_loop))
    assert len(kernel) == len(loop) == 4
    for found, expected in zip(kernel, loop, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 0.01


def test_sixteen_bits_take_the_kernel_and_float32_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from ehrtrack.models import attention

    batch = batch_of(5).to(torch.device("cuda"))
    q = torch.randn(batch.n_tokens, HEADS, WIDTH, device="cuda")
    taken: list[str] = []
    for name in ("attend_varlen", "attend_in_loop"):
        monkeypatch.setattr(attention, name, lambda q, *rest, name=name: taken.append(name) or q)
    for rows in (q.bfloat16(), q):
        packed_attention(rows, rows, rows, batch)
    assert taken == ["attend_varlen", "attend_in_loop"]
