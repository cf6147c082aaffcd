"""Linear maps of many tokens, by oneDNN where its float32 is the faster one.

What it buys: on an AMD EPYC of Zen 4 little (medium encoder, a pretraining step: ×1.04 with one thread), on one of
Zen 5 much (×2.2 of Hugging Face's BERT where it is ×1.39 without, minutes apart on one machine). On processors with
matrix units for bfloat16 (Intel's AMX), and on those without AVX-512, nothing: they are not asked. Nor are encoders
of fewer than 128 features, the small one among them.

torch multiplies float32 matrices by MKL unless it is told that bfloat16 would do, and then asks oneDNN. On processors
that have no AMX oneDNN answers in full float32 all the same. `gains` looks at an answer, so that no processor rounds in
secret. The leave is given to these products alone, and not once round a step: attention's many small products would
go that way too, which takes ×1.13 of the time of a step, and they are not the same to the bit.

oneDNN compiles a kernel for each shape (.5 to 1 ms), and no two batches have the same number of tokens. So it is given
whole blocks of 32, of which batches of a budget soon have every number, and MKL the few tokens that are left. Fewer
tokens than `FEWEST` are not worth a kernel, and with fewer features than `NARROWEST` nothing is gained.

Every statement between two products costs 10 to 30 us, as these push the interpreter's own memory out of the caches: so
a pass cuts its rows once, and asks oneDNN in one place.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

ONEDNN: Any = torch.backends.mkldnn  # torch's older name for it
SETTINGS: Any = ONEDNN.matmul
BLOCK = 32
FEWEST = 256
NARROWEST = 128


class Linear(nn.Linear):
    """`nn.Linear` of tokens (T, in_features) on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        is_plain = self.bias is not None and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if is_plain and x.ndim == 2 and len(x) >= FEWEST and gains(self.in_features, self.out_features):
            return _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]
        return super().forward(x)


def multiply(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w`` of (T, in) and (in, out), without a gradient, as `Linear` computes it."""
    if x.dtype != torch.float32 or len(x) < FEWEST or not gains(*w.shape):
        return torch.mm(x, w)
    return _in_blocks(x, w)


def _in_blocks(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w`` by oneDNN, but for the few tokens that make no whole block."""
    y, counts = x.new_empty(len(x), w.shape[1]), (len(x) - len(x) % BLOCK, len(x) % BLOCK)
    (x_blocks, x_rest), (y_blocks, y_rest) = (rows.split_with_sizes(counts) for rows in (x, y))
    with by_onednn():
        torch.mm(x_blocks, w, out=y_blocks)
    torch.mm(x_rest, w, out=y_rest)
    return y


class by_onednn:  # noqa: N801  # used like a function that is a context manager, which would take twice as long
    """Multiply float32 matrices by oneDNN, where torch was built with it and the processor has AVX-512."""

    def __enter__(self) -> None:
        self.before = SETTINGS.fp32_precision
        SETTINGS.fp32_precision = "bf16"

    def __exit__(self, *error: object) -> None:
        SETTINGS.fp32_precision = self.before


@lru_cache
def gains(in_features: int, out_features: int) -> bool:
    """Whether oneDNN is worth asking, is asked, and does not round matrices of this shape to bfloat16."""
    is_wide = min(in_features, out_features) >= NARROWEST
    if not is_wide or torch.backends.cpu.get_cpu_capability() != "AVX512" or not ONEDNN.is_available():
        return False
    x = torch.full((FEWEST, in_features), 1 + 2**-12)  # which is 1 in bfloat16
    with by_onednn():
        product = torch.mm(x, torch.eye(in_features, out_features))
    return torch.equal(product[:, :in_features], x[:, :out_features])


class _Linear(torch.autograd.Function):
    """y = x W^T + b;  dx = dy W,  dW = dy^T x,  db = the sum of dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = len(x) - len(x) % BLOCK, len(x) % BLOCK
        return _in_blocks(x, weight.mT).add_(bias)  # addmm fills y with the bias first, and reads it again: slower

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx = torch.empty_like(x)
        (x_blocks, x_rest), (dy_blocks, dy_rest), (dx_blocks, dx_rest) = (
            rows.split_with_sizes(ctx.counts) for rows in (x, dy, dx)
        )
        with by_onednn():
            dw = torch.mm(dy_blocks.mT, x_blocks) if needs_weight else None
            db = dy.sum(0) if needs_bias else None
            if needs_x:  # the last: it is read next, and still in the cache
                torch.mm(dy_blocks, weight, out=dx_blocks)
        if dw is not None:
            dw.addmm_(dy_rest.mT, x_rest)
        if needs_x:
            torch.mm(dy_rest, weight, out=dx_rest)
        return dx if needs_x else None, dw, db
