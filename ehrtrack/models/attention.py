"""Self-attention within each subject of a packed row."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch


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

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """Attend within each subject of a batch.

        Parameters
        ----------
        x : (T, D) packed tokens
        """
        q, k, v = (
            projection(x).unflatten(1, (self.n_heads, -1))  # (T, heads, D / heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(packed_attention(q, k, v, batch).flatten(1))  # type: ignore[no-any-return]


def packed_attention(q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
    """Scaled dot-product attention within each subject of a packed row: no token sees another subject's.

    Two ways to the same numbers: one kernel for ragged rows where there is one (CUDA, 16 bits), else a loop.

    Parameters
    ----------
    q, k, v : (T, heads, D / heads)

    Returns
    -------
    (T, heads, D / heads)
    """
    attend = attend_varlen if q.device.type == "cuda" and q.dtype == torch.bfloat16 else attend_in_loop
    return attend(q, k, v, batch)


def attend_in_loop(q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
    """Subject by subject, in float32: the CPU's kernel for bfloat16 is 7 times slower in the backward pass.

    `torch.split` gives views whose backward writes each gradient once; slicing in a loop would make it quadratic.
    The fused kernels take four axes; with three, the CPU falls back to a slower path.
    """
    sizes = list(batch.lengths)
    with torch.autocast(q.device.type, enabled=False):
        heads_first = (x.float().transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, T, D / heads)
        parts = zip(*(torch.split_with_sizes(x, sizes, dim=2) for x in heads_first), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=2)[0].transpose(0, 1)


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
    """One flash kernel over all subjects; CUDA, 16 bits."""
    from torch.nn.attention.varlen import varlen_attn  # brings in torch's compiler: seconds

    offsets, longest = batch.offsets.to(torch.int32), max(batch.lengths)
    return cast(Tensor, varlen_attn(q, k, v, offsets, offsets, longest, longest))
