"""Pooling over each subject's tokens, in a few kernels over the whole row: softmax-weighted means, and maxima."""

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


def subject_max(values: Tensor, subject: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The largest of each subject's values, or of its values times each of several weights; every subject has some.

    Parameters
    ----------
    values : (T, D)
    subject : (T,) int64, which of the B subjects each token is of
    offsets : (B + 1,) where each subject's tokens begin, and T
    weights : (T, S)

    Returns
    -------
    (B, D), or (B, S D) with weights
    """
    largest: Tensor = _SubjectMax.apply(values, subject, offsets, weights)  # type: ignore[no-untyped-call]
    return largest


class _SubjectMax(torch.autograd.Function):
    """Largest value of each subject and column; the first that is as large has its gradient.

    A bag of embeddings in the mode "max" knows where it found them. So the backward pass visits these places alone and
    nothing of the values' size is kept for it: with seven weights two thirds of the time of both passes, where the
    backward one compares all values again. Where there is none, as with cached states, places are not looked for.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, subject: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        if not ctx.needs_input_grad[0]:
            start, group = values.new_zeros(len(offsets) - 1, values.shape[1]), subject[:, None].expand_as(values)
            parts = _parts(values, weights)
            return torch.cat([start.scatter_reduce(0, group, part, "amax", include_self=False) for part in parts], 1)
        place = torch.arange(len(values), device=values.device)
        largest, found_at = [], []
        for part in _parts(values, weights):
            # Of F.embedding_bag, this returns what it keeps for its own backward pass too. Mode 2 is "max".
            most, _, _, at = torch.embedding_bag(part, place, offsets[:-1], False, 2)
            largest.append(most)
            found_at.append(at)
        ctx.save_for_backward(weights, *found_at)
        ctx.shape = values.shape
        return torch.cat(largest, dim=1)

    @staticmethod
    def backward(ctx: Any, d_largest: Tensor) -> tuple[Tensor, None, None, None]:
        weights, *found_at = ctx.saved_tensors
        d_values = d_largest.new_zeros(ctx.shape)
        for number, (at, d_part) in enumerate(zip(found_at, torch.split(d_largest, ctx.shape[1], dim=1), strict=True)):
            d_values.scatter_add_(0, at, d_part if weights is None else d_part * weights[:, number][at])
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
