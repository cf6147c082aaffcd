"""Attention of short records as plain products of matrices.

What it buys: the CPU's flash kernel cuts each head into blocks of 32 queries and shares heads among threads. For
records of a hundred tokens these are products too small to be fast, and a second thread gains little (6 heads of 134
tokens and 32 features, both passes, on an AMD EPYC, Zen 4: .84 ms with one thread, .86 with two). One batched product
over the heads takes .64 and .39. Its price is that the weights are kept for the backward pass, so long records stay
with the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ehrtrack.data.batch import Batch
from ehrtrack.data.fixed import FixedBatch
from ehrtrack.models import attention

SHORT = 256
"""Tokens of a record up to which `attend_short` is as fast as the kernel with one thread, and faster with two."""

Way = Callable[[Tensor, Tensor, Tensor, Sequence[int], Sequence[int]], Tensor]


class SelfAttention(attention.SelfAttention):
    """`attention.SelfAttention` of tokens on a CPU."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, batch: Batch, places: Tensor | None) -> Tensor:
        if isinstance(batch, FixedBatch):
            return super().attend(q, k, v, batch, places)
        return attend_short_and_long(q, k, v, batch, attention.count_queries(batch, places))


def attend_short_and_long(q: Tensor, k: Tensor, v: Tensor, batch: Batch, n_queries: Tensor | None) -> Tensor:
    """As `attention.attend_in_loop`, with subjects of few tokens going another way, in runs as they lie in the row."""
    queries = batch.lengths if n_queries is None else tuple(n_queries.tolist())
    runs = list(_runs(queries, batch.lengths))
    with torch.autocast(q.device.type, enabled=False):
        rows = (q.float(), k.float(), v.float())
        if len(runs) == 1:
            attend, *counts = runs[0]
            return attend(*rows, *counts)
        n_keys = [sum(keys) for _, _, keys in runs]
        sizes = ([sum(queries) for _, queries, _ in runs], n_keys, n_keys)
        parts = zip(*map(torch.split_with_sizes, rows, sizes), strict=True)
        return torch.cat([attend(*part, *counts) for part, (attend, *counts) in zip(parts, runs, strict=True)])


def _runs(queries: Sequence[int], keys: Sequence[int]) -> Iterator[tuple[Way, tuple[int, ...], tuple[int, ...]]]:
    """Subjects in a row that attend in the same way: the way, and how many queries and keys each has."""
    for is_short, run in groupby(zip(queries, keys, strict=True), lambda counts: counts[1] <= SHORT):
        of_run = tuple(run)
        attend = attend_short if is_short else attention.attend_by_kernel
        yield attend, tuple(n for n, _ in of_run), tuple(n for _, n in of_run)


def attend_short(q: Tensor, k: Tensor, v: Tensor, n_queries: Sequence[int], n_keys: Sequence[int]) -> Tensor:
    """Scaled dot-product attention within each of some subjects, whose queries and keys lie one after the other.

    Parameters
    ----------
    q : (R, heads, D / heads)
    k, v : (T, heads, D / heads)
    n_queries, n_keys : of each subject; their sums are R and T

    Returns
    -------
    (R, heads, D / heads)
    """
    attended: Tensor = _ShortAttention.apply(q, k, v, n_queries, n_keys)  # type: ignore[no-untyped-call]
    return attended


class _ShortAttention(torch.autograd.Function):
    """Of each subject and head, with queries that are scaled before:

        P = softmax(Q K^T),  O = P V
        dV = P^T dO,  dS = softmax'(dO V^T),  dQ = dS K,  dK = dS^T Q

    One function for all subjects: autograd's own record of a loop takes as long as the small products in it. For the
    same reason views are cut before the loop: a second thread falls asleep while statements go by. softmax' is the
    kernel that autograd calls itself.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, n_queries: Sequence[int], n_keys: Sequence[int]) -> Tensor:
        q = q * q.shape[-1] ** -0.5
        attended = torch.empty_like(q)
        weights = []
        by_subject = zip(
            _rows(q, n_queries), _columns(k, n_keys), _rows(v, n_keys), _rows(attended, n_queries), strict=True
        )
        for q_i, k_i, v_i, out in by_subject:
            # Not in place: scores lie in memory that was just freed, and is in the cache; what is kept is not.
            p = torch.softmax(torch.bmm(q_i, k_i), -1)  # (heads, R_i, T_i)
            out.copy_(torch.bmm(p, v_i))
            weights.append(p)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.counts = n_queries, n_keys
        return attended

    @staticmethod
    def backward(ctx: Any, d_attended: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *weights = ctx.saved_tensors
        n_queries, n_keys = ctx.counts
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        by_subject = zip(
            weights, _rows(q, n_queries), _rows(k, n_keys), _columns(v, n_keys), _rows(d_attended, n_queries),
            _rows(dq, n_queries), _rows(dk, n_keys), _rows(dv, n_keys), strict=True,
        )  # fmt: skip
        for p, q_i, k_i, v_i, d_out, dq_i, dk_i, dv_i in by_subject:
            ds = torch.bmm(d_out, v_i)
            torch._softmax_backward_data(ds, p, -1, p.dtype, grad_input=ds)  # reads p in order: before products do
            dv_i.copy_(torch.bmm(p.mT, d_out))
            dq_i.copy_(torch.bmm(ds, k_i))
            dk_i.copy_(torch.bmm(ds.mT, q_i))
        return dq.mul_(q.shape[-1] ** -0.5), dk, dv, None, None


def _rows(x: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Views (heads, n_i, D / heads) of packed rows, subject by subject."""
    return x.transpose(0, 1).split_with_sizes(counts, 1)


def _columns(x: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """The same, transposed: (heads, D / heads, n_i)."""
    return x.permute(1, 2, 0).split_with_sizes(counts, 2)
