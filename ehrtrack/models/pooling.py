"""Pooling over each subject's tokens, in a few kernels over the whole row: softmax-weighted means, and maxima.

Both take `subject`, (T,) int64: which of the B subjects each token is of (`Batch.subject`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_pool(hidden: Tensor, query: Tensor, subject: Tensor, offsets: Tensor) -> Tensor:
    """Means of each subject's hidden states, weighted by the softmax of their inner products with a query.

    Parameters
    ----------
    hidden : (T, D) packed states
    query : (D,)
    offsets : (B + 1,) where each subject's tokens begin, and T

    Returns
    -------
    (B, D) float32
    """
    scores = torch.mv(hidden, query.to(hidden.dtype)).float()  # (T,)
    weights: Tensor = _SubjectSoftmax.apply(scores, subject, len(offsets) - 1)  # type: ignore[no-untyped-call]
    # A bag of embeddings is a weighted sum of rows, without the (T, D) products.
    place = torch.arange(len(hidden), device=hidden.device)
    return F.embedding_bag(place, hidden.float(), offsets[:-1], mode="sum", per_sample_weights=weights)


def subject_max(values: Tensor, subject: Tensor, n_subjects: int, weights: Tensor | None = None) -> Tensor:
    """The largest of each subject's values, or of its values times each of several weights; every subject has some.

    Parameters
    ----------
    values : (T, D)
    weights : (T, S)

    Returns
    -------
    (B, D), or (B, S D) with weights
    """
    largest: Tensor = _SubjectMax.apply(values, subject, n_subjects, weights)  # type: ignore[no-untyped-call]
    return largest


class _SubjectMax(torch.autograd.Function):
    """Largest value of each subject and column; all that are as large as it have its gradient.

    ``torch.segment_reduce`` takes 7 times as long without a gradient, which is most of what a head does with cached
    states, and scatter_reduce's own gradient twice as long. Values are weighted again in the backward pass: S times
    as large as the states, they would be a sixth of what a small encoder keeps for it.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, subject: Tensor, n_subjects: int, weights: Tensor | None) -> Tensor:
        place = subject[:, None].expand_as(values)
        start = values.new_zeros(n_subjects, values.shape[1])
        parts = [start.scatter_reduce(0, place, part, "amax", include_self=False) for part in _parts(values, weights)]
        ctx.save_for_backward(values, subject, weights, *parts)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, d_largest: Tensor) -> tuple[Tensor, None, None, None]:
        values, subject, weights, *largest = ctx.saved_tensors
        d_parts = torch.split(d_largest, values.shape[1], dim=1)
        d_values, spread = torch.zeros_like(values), torch.empty_like(values)
        is_less = torch.empty_like(values, dtype=torch.bool)
        for number, (part, most, d_part) in enumerate(zip(_parts(values, weights), largest, d_parts, strict=True)):
            torch.lt(part, torch.index_select(most, 0, subject, out=spread), out=is_less)
            torch.index_select(d_part, 0, subject, out=spread).masked_fill_(is_less, 0)
            d_values += spread if weights is None else spread.mul_(weights[:, number, None])
        return d_values, None, None, None


def _parts(values: Tensor, weights: Tensor | None) -> Iterator[Tensor]:
    """The values, or their products with each weight; all in the same memory, as new pages cost more than products."""
    if weights is None:
        yield values
        return
    product = torch.empty_like(values)
    for weight in weights.T:
        yield torch.mul(values, weight[:, None], out=product)


class _SubjectSoftmax(torch.autograd.Function):
    """Softmax within each subject, w_i = exp(s_i) / sum_j exp(s_j), and its gradient in closed form:

        ds_i = w_i (dw_i - sum_j w_j dw_j)

    Left to autograd it is twice as many small kernels in the backward pass, which is most of what a training step on
    cached states costs.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, subject: Tensor, n_subjects: int) -> Tensor:
        """Weights (T,) of scores (T,)."""
        highest = scores.new_zeros(n_subjects).scatter_reduce_(0, subject, scores, "amax", include_self=False)
        weights = scores.sub(highest.index_select(0, subject)).exp_()
        weights.div_(_totals(weights, subject, n_subjects).index_select(0, subject))
        ctx.save_for_backward(weights, subject)
        ctx.n_subjects = n_subjects
        return weights

    @staticmethod
    def backward(ctx: Any, d_weights: Tensor) -> tuple[Tensor, None, None]:
        weights, subject = ctx.saved_tensors
        product = weights * d_weights
        total = _totals(product, subject, ctx.n_subjects)
        return product.addcmul_(weights, total.index_select(0, subject), value=-1), None, None


def _totals(values: Tensor, subject: Tensor, n_subjects: int) -> Tensor:
    return values.new_zeros(n_subjects).index_add_(0, subject, values)
