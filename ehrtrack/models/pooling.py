"""Pooling over each subject's tokens, in a few kernels over the whole row: softmax-weighted means, and maxima."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attention_pool(hidden: Tensor, score: nn.Linear, offsets: Tensor) -> Tensor:
    """Means of each subject's hidden states, weighted by the softmax of their scores.

    Pools stand one after the other as if each had subjects of its own, so that one kernel serves all of them.

    Parameters
    ----------
    hidden : (T, D) packed states
    score : from D to P scores, one a pool
    offsets : (B + 1,) where each subject's tokens begin, and T

    Returns
    -------
    (B, P, D) float32
    """
    n_pools = score.out_features
    lengths = offsets.diff().repeat(n_pools)  # (P B,)
    # Tokens along the rows: three times as fast as `score(hidden)`, whose result would be two columns wide.
    scores = torch.mm(score.weight, hidden.T).float().flatten()  # (P T,)
    weights: Tensor = _SegmentSoftmax.apply(scores, lengths)  # type: ignore[no-untyped-call]
    # A bag of embeddings is a weighted sum of rows, without the (P T, D) products.
    place = torch.arange(len(hidden), device=hidden.device).repeat(n_pools)
    starts = lengths.cumsum(0) - lengths
    pooled = F.embedding_bag(place, hidden.float(), starts, mode="sum", per_sample_weights=weights)  # (P B, D)
    return pooled.view(n_pools, -1, hidden.shape[1]).transpose(0, 1)


def subject_max(values: Tensor, offsets: Tensor) -> Tensor:
    """(B, D) the largest of each subject's (T, D) values; subjects begin at `offsets` (B + 1,) and are not empty."""
    largest: Tensor = _SegmentMax.apply(values, offsets)  # type: ignore[no-untyped-call]
    return largest


class _SegmentMax(torch.autograd.Function):
    """Largest value of each segment and column; all that are as large as it have its gradient.

    ``torch.segment_reduce`` takes 7 times as long without a gradient, which is most of what a head does with cached
    states, and scatter_reduce's own gradient twice as long.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, offsets: Tensor) -> Tensor:
        n_segments = len(offsets) - 1
        segment = torch.arange(n_segments, device=values.device).repeat_interleave(offsets.diff())
        place = segment[:, None].expand_as(values)
        start = values.new_zeros(n_segments, values.shape[1])
        largest = start.scatter_reduce(0, place, values, "amax", include_self=False)
        ctx.save_for_backward(values, largest, segment)
        return largest

    @staticmethod
    def backward(ctx: Any, d_largest: Tensor) -> tuple[Tensor, None]:
        values, largest, segment = ctx.saved_tensors
        place = segment[:, None].expand_as(values)
        return torch.where(values == largest.gather(0, place), d_largest.gather(0, place), 0), None


class _SegmentSoftmax(torch.autograd.Function):
    """Softmax within each segment of a row, w_i = exp(s_i) / sum_j exp(s_j), and its gradient in closed form:

        ds_i = w_i (dw_i - sum_j w_j dw_j)

    Left to autograd it is twice as many small kernels in the backward pass, which is most of what a training step on
    cached states costs.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, lengths: Tensor) -> Tensor:
        """Weights (N,) of scores (N,) in segments of these lengths, each at least 1."""
        segment = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        highest = torch.segment_reduce(scores, "max", lengths=lengths)
        weights = scores.sub(highest.index_select(0, segment)).exp_()
        total = torch.segment_reduce(weights, "sum", lengths=lengths)
        weights.div_(total.index_select(0, segment))
        ctx.save_for_backward(weights, lengths, segment)
        return weights

    @staticmethod
    def backward(ctx: Any, d_weights: Tensor) -> tuple[Tensor, None]:
        weights, lengths, segment = ctx.saved_tensors
        product = weights * d_weights
        total = torch.segment_reduce(product, "sum", lengths=lengths)
        return product.addcmul_(weights, total.index_select(0, segment), value=-1), None
