"""Self-attention within each subject of a packed row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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

    def forward(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Attend within each subject.

        Parameters
        ----------
        x : (T, D) packed tokens
        lengths : B token counts that sum to T
        """
        q, k, v = (
            projection(x).unflatten(1, (self.n_heads, -1)).transpose(0, 1)  # (heads, T, D / heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(packed_attention(q, k, v, lengths).transpose(0, 1).flatten(1))  # type: ignore[no-any-return]


def packed_attention(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Scaled dot-product attention, subject by subject: no token sees another subject's.

    `torch.split` gives views whose backward writes each gradient once; slicing in a loop would make it quadratic.

    Parameters
    ----------
    q, k, v : (heads, T, D / heads)
    """
    sizes = list(lengths)
    # The fused kernels take four axes; with three, the CPU falls back to a slower path.
    parts = zip(*(torch.split_with_sizes(x[None], sizes, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=2)[0]
