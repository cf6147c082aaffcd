"""Attention of short records, beside the kernel and the definition of a derivative."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ehrtrack.models.attention import attend_by_kernel
from ehrtrack.models.cpu import attention
from ehrtrack.models.cpu.attention import attend_short, attend_short_and_long


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"], autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Heads are shared out among them."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def rows(*n_tokens: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A row of q, k, v or a gradient for each number of tokens, with 2 heads of 3 features."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 2, 3, generator=generator, dtype=dtype, requires_grad=True) for n in n_tokens]


def test_gradients_are_those_of_finite_differences() -> None:
    n_queries, n_keys = (2, 0, 3), (4, 1, 3)  # the second subject is read nowhere
    q, k, v = rows(5, 8, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *qkv: attend_short(*qkv, n_queries, n_keys), (q, k, v))


@pytest.mark.parametrize("short", [0, 3, 100])
@pytest.mark.parametrize("n_queries", [(1, 3, 0, 7, 2), None])
def test_short_and_long_records_in_a_row_attend_alike(
    short: int, n_queries: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record is found in its place, whichever way it and its neighbours go."""
    lengths = (2, 3, 5, 9, 2)
    batch: Any = SimpleNamespace(lengths=lengths)
    q, k, v, d_attended = rows(sum(n_queries or lengths), sum(lengths), sum(lengths), sum(n_queries or lengths))

    def both_passes(attend: Any, counts: Any) -> tuple[Tensor, ...]:
        found = attend(q, k, v, *counts)
        return found, *torch.autograd.grad(found, (q, k, v), d_attended)

    monkeypatch.setattr(attention, "SHORT", short)
    found = both_passes(attend_short_and_long, (batch, None if n_queries is None else torch.tensor(n_queries)))
    expected = both_passes(attend_by_kernel, (n_queries or lengths, lengths))
    torch.testing.assert_close(found, expected)
