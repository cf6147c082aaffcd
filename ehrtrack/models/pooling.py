"""Pooling over each subject's tokens, in a few kernels over the whole row: softmax-weighted means, and maxima.

Both take `subject`, (T,) int64: which of the B subjects each token is of (`Batch.subject`).
"""

from __future__ import annotations

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


def subject_max(values: Tensor, subject: Tensor, n_subjects: int) -> Tensor:
    """(B, D) the largest of each subject's (T, D) values; every subject has some."""
    largest: Tensor = _SubjectMax.apply(values, subject, n_subjects)  # type: ignore[no-untyped-call]
    return largest


class _SubjectMax(torch.autograd.Function):
    """Largest value of each subject and column; all that are as large as it have its gradient.

    ``torch.segment_reduce`` takes 7 times as long without a gradient, which is most of what a head does with cached
    states, and scatter_reduce's own gradient twice as long.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, subject: Tensor, n_subjects: int) -> Tensor:
        place = subject[:, None].expand_as(values)
        start = values.new_zeros(n_subjects, values.shape[1])
        largest = start.scatter_reduce_(0, place, values, "amax", include_self=False)
        ctx.save_for_backward(values, largest, subject)
        return largest

    @staticmethod
    def backward(ctx: Any, d_largest: Tensor) -> tuple[Tensor, None, None]:
        values, largest, subject = ctx.saved_tensors
        place = subject[:, None].expand_as(values)
        return torch.where(values == largest.gather(0, place), d_largest.gather(0, place), 0), None, None


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
