"""Self-attention within each subject of a packed row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch
from ehrtrack.models.cpu.linear import Linear
from ehrtrack.models.cpu.short_attention import attend_short

SHORT = 256
"""Tokens of a record up to which `attend_short` is as fast as the kernel with one thread, and faster with two."""

Way = Callable[[Tensor, Tensor, Tensor, Sequence[int], Sequence[int]], Tensor]


class SelfAttention(nn.Module):
    """Multi-head attention with separate q, k, v and out projections, so that adapters can wrap each.

    `nn.MultiheadAttention` keeps q, k and v in one parameter and bypasses ``out_proj.forward``: an adapter on it
    would never run.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

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
        return self.out_proj(packed_attention(q, k, v, batch, places).flatten(1))  # type: ignore[no-any-return]


def packed_attention(q: Tensor, k: Tensor, v: Tensor, batch: Batch, places: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention within each subject of a packed row: no token sees another subject's.

    Two ways to the same numbers: one kernel for ragged rows where there is one (CUDA, 16 bits), else a loop.

    Parameters
    ----------
    q : (R, heads, D / heads) of the tokens at `places`
    k, v : (T, heads, D / heads)

    Returns
    -------
    (R, heads, D / heads)
    """
    n_queries = None if places is None else torch.bincount(batch.subject[places], minlength=len(batch.lengths))  # (B,)
    attend = attend_varlen if q.device.type == "cuda" and q.dtype == torch.bfloat16 else attend_in_loop
    return attend(q, k, v, batch, n_queries)


def attend_in_loop(q: Tensor, k: Tensor, v: Tensor, batch: Batch, n_queries: Tensor | None) -> Tensor:
    """Subject by subject, in float32: the CPU's kernel for bfloat16 is 7 times slower in the backward pass.

    On a CPU, subjects with few tokens go another way, in runs as they lie in the row.
    """
    queries = batch.lengths if n_queries is None else tuple(n_queries.tolist())
    runs = list(_runs(queries, batch.lengths, SHORT if q.device.type == "cpu" else 0))
    with torch.autocast(q.device.type, enabled=False):
        rows = (q.float(), k.float(), v.float())
        if len(runs) == 1:
            attend, *counts = runs[0]
            return attend(*rows, *counts)
        n_keys = [sum(keys) for _, _, keys in runs]
        sizes = ([sum(queries) for _, queries, _ in runs], n_keys, n_keys)
        parts = zip(*map(torch.split_with_sizes, rows, sizes), strict=True)
        return torch.cat([attend(*part, *counts) for part, (attend, *counts) in zip(parts, runs, strict=True)])


def _runs(
    queries: Sequence[int], keys: Sequence[int], short: int
) -> Iterator[tuple[Way, tuple[int, ...], tuple[int, ...]]]:
    """Subjects in a row that attend in the same way: the way, and how many queries and keys each has."""
    for is_short, run in groupby(zip(queries, keys, strict=True), lambda counts: counts[1] <= short):
        of_run = tuple(run)
        yield attend_short if is_short else attend_by_kernel, tuple(n for n, _ in of_run), tuple(n for _, n in of_run)


def attend_by_kernel(q: Tensor, k: Tensor, v: Tensor, n_queries: Sequence[int], n_keys: Sequence[int]) -> Tensor:
    """One fused kernel a subject, with the parameters of `attend_short`.

    `torch.split` gives views whose backward writes each gradient once; slicing in a loop would make it quadratic.
    The fused kernels take four axes; with three, the CPU falls back to a slower path. They keep the tokens' order in
    memory, so that parts are cut and joined along it: whole rows are copied, both ways.
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
