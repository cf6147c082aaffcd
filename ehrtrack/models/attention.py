"""Self-attention within each subject of a packed row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch
from ehrtrack.data.fixed import FixedBatch


class SelfAttention(nn.Module):
    """Multi-head attention with separate q, k, v and out projections, so that adapters can wrap each.

    `nn.MultiheadAttention` keeps q, k and v in one parameter and bypasses ``out_proj.forward``: an adapter on it
    would never run.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, batch: Batch, places: Tensor | None = None) -> Tensor:
        """Attend within each subject of a batch.

        Parameters
        ----------
        x : (T, D) packed tokens
        places : (R,) int64, rising: the tokens that attend, to all of their subject's; None is all T

        Returns
        -------
        (R, D)
        """
        attending = x if places is None else x[places]
        q, k, v = (
            projection(tokens).unflatten(1, (self.n_heads, -1))  # (R or T, heads, D / heads)
            for projection, tokens in ((self.q_proj, attending), (self.k_proj, x), (self.v_proj, x))
        )
        return self.out_proj(self.attend(q, k, v, batch, places).flatten(1))  # type: ignore[no-any-return]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, batch: Batch, places: Tensor | None) -> Tensor:
        """`packed_attention`; a device may have a faster way to the same numbers (`ehrtrack.models.device`)."""
        return packed_attention(q, k, v, batch, places)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, batch: Batch, places: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention within each subject of a packed row: no token sees another subject's.

    Three ways to the same numbers: one kernel for ragged rows where there is one (CUDA, 16 bits), else a loop, or where
    only tensors tell which subject a token is of, all pairs under a mask.

    Parameters
    ----------
    q : (R, heads, D / heads) of the tokens at `places`
    k, v : (T, heads, D / heads)

    Returns
    -------
    (R, heads, D / heads)
    """
    if q.device.type == "cuda" and q.dtype == torch.bfloat16:
        return attend_varlen(q, k, v, batch, count_queries(batch, places))
    if isinstance(batch, FixedBatch):
        return attend_masked(q, k, v, batch, places)
    return attend_in_loop(q, k, v, batch, count_queries(batch, places))


def count_queries(batch: Batch, places: Tensor | None) -> Tensor | None:
    """(B,) how many tokens of each subject are at `places`; None where these are all of them."""
    if places is None:
        return None
    nobody = batch.offsets.new_zeros(len(batch.lengths))
    # Not `bincount`, for which a GPU waits to see how many there are.
    return nobody.index_add(0, batch.subject[places], torch.ones_like(places))


def attend_in_loop(q: Tensor, k: Tensor, v: Tensor, batch: Batch, n_queries: Tensor | None) -> Tensor:
    """Subject by subject, in float32: the CPU's kernel for bfloat16 is 7 times slower in the backward pass."""
    queries = batch.lengths if n_queries is None else tuple(n_queries.tolist())
    with torch.autocast(q.device.type, enabled=False):
        return attend_by_kernel(q.float(), k.float(), v.float(), queries, batch.lengths)


def attend_masked(q: Tensor, k: Tensor, v: Tensor, batch: Batch, places: Tensor | None) -> Tensor:
    """All pairs of tokens, with a mask of those of one subject, in float32: (R, T) numbers for each head.

    It is for rows of some thousand tokens at most, where nothing may depend on how long records are.
    """
    asking = batch.subject if places is None else batch.subject[places]
    mask = asking[:, None] == batch.subject  # (R, T)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (x.float().transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, R or T, D / heads)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def attend_by_kernel(q: Tensor, k: Tensor, v: Tensor, n_queries: Sequence[int], n_keys: Sequence[int]) -> Tensor:
    """One fused kernel a subject, whose queries and keys lie one after the other.

    `torch.split` gives views whose backward writes each gradient once; slicing in a loop would make it quadratic.
    The fused kernels take four axes; with three, the CPU falls back to a slower path. They keep the tokens' order in
    memory, so that parts are cut and joined along it: whole rows are copied, both ways.

    Parameters
    ----------
    q : (R, heads, D / heads)
    k, v : (T, heads, D / heads)
    n_queries, n_keys : of each subject; their sums are R and T

    Returns
    -------
    (R, heads, D / heads)
    """
    sizes = (list(n_queries), list(n_keys), list(n_keys))
    rows = (x[None] for x in (q, k, v))  # (1, R or T, heads, D / heads)
    parts = zip(*map(partial(torch.split_with_sizes, dim=1), rows, sizes), strict=True)
    attended = [F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in part)) for part in parts]
    return torch.cat([x.transpose(1, 2) for x in attended], dim=1)[0]


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, batch: Batch, n_queries: Tensor | None) -> Tensor:
    """One flash kernel over all subjects; CUDA, 16 bits."""
    from torch.nn.attention.varlen import varlen_attn  # brings in torch's compiler: seconds

    keys, longest = batch.offsets.to(torch.int32), max(batch.lengths)
    queries = keys if n_queries is None else F.pad(n_queries.cumsum(0), (1, 0)).to(torch.int32)
    return cast(Tensor, varlen_attn(q, k, v, queries, keys, longest, longest))
