"""Linear maps of many tokens on a CPU, by oneDNN where its float32 is the faster one.

torch multiplies float32 matrices by MKL unless it is told that bfloat16 would do, and then asks oneDNN. On processors
that have no matrix units for bfloat16 (AMX), oneDNN answers in full float32 all the same, and on AMD's it is faster
than MKL: 103 to 112 against 96 to 102 GFlop/s on one core of an EPYC (Zen 4), for 2,304 tokens and 192 or 768 features.
The leave is given to these products alone: the small ones of attention are slower by it. `gains` looks at an answer, so
that no processor rounds in secret.

oneDNN compiles a kernel for each shape (.5 to 1 ms), and no two batches have the same number of tokens. So it is given
whole blocks of 256, and MKL the rest. A step of the medium and of the large encoder is 4 to 5 % faster with one thread,
and about 2 % with two; with fewer features than `NARROWEST` nothing is gained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

ONEDNN: Any = torch.backends.mkldnn  # torch's older name for it
BLOCK = 256
NARROWEST = 128


class Linear(nn.Linear):
    """`nn.Linear` with a bias, of tokens (T, in_features)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        is_plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if is_plain and len(x) >= BLOCK and gains(self.in_features, self.out_features):
            return _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]
        return super().forward(x)


@contextmanager
def by_onednn() -> Iterator[None]:
    """Multiply float32 matrices by oneDNN, where torch was built with it and the processor has AVX-512."""
    settings = ONEDNN.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@lru_cache
def gains(in_features: int, out_features: int) -> bool:
    """Whether oneDNN is worth asking, is asked, and does not round matrices of this shape to bfloat16."""
    is_wide = min(in_features, out_features) >= NARROWEST
    if not is_wide or torch.backends.cpu.get_cpu_capability() != "AVX512" or not ONEDNN.is_available():
        return False
    x = torch.full((BLOCK, in_features), 1 + 2**-12)  # which is 1 in bfloat16
    with by_onednn():
        product = torch.mm(x, torch.eye(in_features, out_features))
    return torch.equal(product[:, :in_features], x[:, :out_features])


class _Linear(torch.autograd.Function):
    """y = x W^T + b;  dx = dy W,  dW = dy^T x,  db = the sum of dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight.t()).add_(bias)  # addmm fills y with the bias first, and reads it again: slower

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dw = _product_of_transposed(dy, x) if needs_weight else None
        db = dy.sum(0) if needs_bias else None
        dx = _product(dy, weight) if needs_x else None  # the last: it is read next, and still in the cache
        return dx, dw, db


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A B of tokens (T, n) and a matrix (n, m), of as many tokens as make whole blocks by oneDNN."""
    n = _in_blocks(a)
    product = a.new_empty(len(a), b.shape[1])
    with by_onednn():
        torch.mm(a[:n], b, out=product[:n])
    torch.mm(a[n:], b, out=product[n:])
    return product


def _product_of_transposed(a: Tensor, b: Tensor) -> Tensor:
    """A^T B of tokens (T, n) and (T, m), likewise."""
    n = _in_blocks(a)
    with by_onednn():
        product = torch.mm(a[:n].t(), b[:n])
    return product.addmm_(a[n:].t(), b[n:])


def _in_blocks(tokens: Tensor) -> int:
    return len(tokens) - len(tokens) % BLOCK
