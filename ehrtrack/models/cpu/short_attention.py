"""Attention of short records on a CPU, as plain products of matrices.

The CPU's flash kernel cuts each head into blocks of 32 queries and shares heads among threads: for records of a hundred
tokens these are products too small to be fast, and a second thread gains little (6 heads of 134 tokens and 32 features,
both passes: .84 ms with one thread, .86 with two). One batched product over the heads takes .64 and .39. Its price is
that the weights are kept for the backward pass, so long records stay with the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
        multiply = _multiplication()
        by_subject = zip(
            _rows(q, n_queries), _columns(k, n_keys), _rows(v, n_keys), _rows(attended, n_queries), strict=True
        )
        for q_i, k_i, v_i, out in by_subject:
            # Not in place: scores lie in memory that was just freed, and is in the cache; what is kept is not.
            p = torch.softmax(torch.bmm(q_i, k_i), -1)  # (heads, R_i, T_i)
            multiply(p, v_i, out)
            weights.append(p)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.counts = n_queries, n_keys
        return attended

    @staticmethod
    def backward(ctx: Any, d_attended: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *weights = ctx.saved_tensors
        n_queries, n_keys = ctx.counts
        multiply = _multiplication()
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        by_subject = zip(
            weights, _rows(q, n_queries), _rows(k, n_keys), _columns(v, n_keys), _rows(d_attended, n_queries),
            _rows(dq, n_queries), _rows(dk, n_keys), _rows(dv, n_keys), strict=True,
        )  # fmt: skip
        for p, q_i, k_i, v_i, d_out, dq_i, dk_i, dv_i in by_subject:
            ds = torch.bmm(d_out, v_i)
            torch._softmax_backward_data(ds, p, -1, p.dtype, grad_input=ds)  # reads p in order: before products do
            multiply(p.mT, d_out, dv_i)
            multiply(ds, k_i, dq_i)
            multiply(ds.mT, q_i, dk_i)
        return dq.mul_(q.shape[-1] ** -0.5), dk, dv, None, None


def _multiplication() -> Callable[[Tensor, Tensor, Tensor], object]:
    """How to put products (heads, n, D / heads) of each head's matrices to where its subject's rows are.

    These lie apart, one head beside the other. So torch makes the products elsewhere and copies them, where numpy's
    BLAS writes them in place; but torch shares heads out among threads. 6 heads of 131 tokens and 32 features: torch
    85 us with one thread and 52 with two, numpy 62.
    """
    return _by_numpy if torch.get_num_threads() == 1 else _by_torch


def _by_numpy(a: Tensor, b: Tensor, out: Tensor) -> None:
    np.matmul(a.numpy(), b.numpy(), out=out.numpy())


def _by_torch(a: Tensor, b: Tensor, out: Tensor) -> None:
    out.copy_(torch.bmm(a, b))


def _rows(x: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Views (heads, n_i, D / heads) of packed rows, subject by subject."""
    return x.transpose(0, 1).split_with_sizes(counts, 1)


def _columns(x: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """The same, transposed: (heads, D / heads, n_i)."""
    return x.permute(1, 2, 0).split_with_sizes(counts, 2)
