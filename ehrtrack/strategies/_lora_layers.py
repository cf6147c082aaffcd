"""Layers with adapters of `peft` that compute what peft's do, with less time and memory.

    y = W x + b + (alpha / rank) B A (m x),    m the mask of dropout (Hu et al. 2022, "LoRA", eq. 3)

peft stays the format and the reference: parameters, their names and what is saved are its own, and predictions and
gradients are equal to rounding. What differs is how they are computed.

- Without dropout, as in validation, the product is that of one matrix, ``W + (alpha / rank) B A``.
- Adapters of one input (q, k, v) share its mask and the product with their A.
- The backward pass makes the input of an adapter again, by a norm or a GELU, of what is kept anyway. It serves the
  gradient of A alone, and would be most of what a layer keeps.
- Masks are parts of one stretch of random numbers, which a pass draws once (`Masks`). Drawing an own mask for each
  adapter took more time than adapters save.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch
from ehrtrack.models import cpu
from ehrtrack.models.behrt import EhrModel, Layer

ADAPTER = "default"
GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, without their whole parts, are spread evenly, however many there are."""
SPARE = 1.25
"""Random numbers of a pass, as a multiple of what its widest adapter takes."""


class Masks:
    """Dropout masks of all layers of a model.

    A pass draws one stretch of independent numbers for each probability of dropout, and each mask is a part of it that
    begins at a place of its own, so that a token loses other features in each layer. Parts overlap: two masks are not
    independent as a whole, and each by itself is what dropout would draw. What layers keep for the backward pass are
    views of the one stretch. Places are the same in each pass, as a step that is recorded (`training.graphs`) has fixed
    addresses.
    """

    def __init__(self) -> None:
        self._stretches: dict[float, Tensor] = {}

    def draw(self, x: Tensor, dropout: nn.Dropout, width: int) -> None:
        """Draw the numbers of a pass over tokens (T, D), of which a mask takes T times so many at most: 0, or what
        keeps the mean.
        """
        self._stretches[dropout.p] = _scales(int(SPARE * len(x) * width), dropout, x.device)

    def part(self, shape: torch.Size, dropout: nn.Module, number: int) -> Tensor | None:
        """The mask of that number, where there is dropout now."""
        if not is_on(dropout):
            return None
        stretch, n = self._stretches[dropout.p], shape.numel()
        if n > len(stretch):  # of the readout, where records have a token or two
            return _scales(n, dropout, stretch.device).view(shape)
        start = int(number * GOLDEN % 1 * (len(stretch) - n + 1))
        return stretch[start : start + n].view(shape)

    def drop(self, x: Tensor, dropout: nn.Dropout, number: int) -> Tensor:
        """`dropout` of states (R, D) by the mask of that number."""
        mask = self.part(x.shape, dropout, number)
        return x if mask is None else (x * mask).to(x.dtype)


def _scales(n: int, dropout: nn.Dropout, device: torch.device) -> Tensor:
    """(n,) float32, 0 or what keeps the mean."""
    scales: Tensor = dropout.scale(n) if isinstance(dropout, cpu.Dropout) else dropout(torch.ones(n, device=device))
    return scales


def is_on(dropout: nn.Module) -> TypeGuard[nn.Dropout]:
    """Whether it drops anything now."""
    return isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0


class Make(Protocol):
    """How the input x of some linear maps is made of u, which is kept for the backward pass.

    Attributes
    ----------
    is_new : whether x lies in memory of its own, which may be written to
    """

    is_new: bool

    def forward(self, u: Tensor) -> tuple[Tensor, Any]:
        """x (T, D) of u (T, D), and what its gradient needs beside u."""

    def backward(self, dx: Tensor, u: Tensor, beside: Any) -> Tensor:
        """The gradient of u."""


class AsItIs:
    """x = u."""

    is_new = False

    def forward(self, u: Tensor) -> tuple[Tensor, None]:
        return u, None

    def backward(self, dx: Tensor, u: Tensor, beside: None) -> Tensor:
        return dx


class Gelu:
    """x = GELU(u)."""

    is_new = True

    def forward(self, u: Tensor) -> tuple[Tensor, None]:
        return F.gelu(u), None

    def backward(self, dx: Tensor, u: Tensor, beside: None) -> Tensor:
        return torch.ops.aten.gelu_backward(dx.to(u.dtype), u)  # type: ignore[no-any-return]


class Norm:
    """x = the layer norm of u, whose weights do not learn."""

    is_new = True

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.norm = norm
        self.shape = list(norm.normalized_shape)

    def forward(self, u: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x, mean, rstd = torch.native_layer_norm(u, self.shape, self.norm.weight, self.norm.bias, self.norm.eps)
        return x, (mean, rstd)

    def backward(self, dx: Tensor, u: Tensor, beside: tuple[Tensor, Tensor]) -> Tensor:
        du, _, _ = torch.ops.aten.native_layer_norm_backward(
            dx.to(u.dtype), u, self.shape, *beside, self.norm.weight, self.norm.bias, [True, False, False]
        )
        return du  # type: ignore[no-any-return]


class AdaptedLinear(Linear):
    """peft's layer, computed by `adapted`."""

    masks: Masks
    number: int

    @property
    def is_by_peft(self) -> bool:
        """Whether somebody switched the adapter off, merged it, or uses another: peft knows what to do then."""
        return self.disable_adapters or self.merged or list(self.active_adapters) != [ADAPTER]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or self.is_by_peft:
            return super().forward(x, *args, **kwargs)
        return adapted((self,), x, AsItIs())[0]


class AdaptedLayer(Layer):
    """`Layer` whose linear maps have adapters."""

    masks: Masks
    number: int
    is_first: bool

    def forward(self, x: Tensor, batch: Batch, places: Tensor | None = None) -> Tensor:
        attention = self.attention
        q_proj, k_proj, v_proj, out_proj, fc1, fc2 = (
            cast(AdaptedLinear, layer)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, self.fc1, self.fc2)
        )
        if q_proj.is_by_peft:
            return super().forward(x, batch, places)
        if self.is_first:
            for dropout, width in ((self.dropout, x.shape[1]), (fc2.lora_dropout[ADAPTER], fc2.weight.shape[1])):
                if is_on(dropout):
                    self.masks.draw(x, dropout, width)
        normed = Norm(self.attention_norm)
        if places is None:
            attending = x
            q, k, v = adapted((q_proj, k_proj, v_proj), x, normed)
        else:
            attending = x[places]
            (q,), (k, v) = adapted((q_proj,), attending, normed), adapted((k_proj, v_proj), x, normed)
        q, k, v = (t.view(len(t), attention.n_heads, -1) for t in (q, k, v))  # (R or T, heads, D / heads)
        attended = out_proj(attention.attend(q, k, v, batch, places).flatten(1))  # (R, D)
        x = attending + self.masks.drop(attended, self.dropout, self.number)
        (hidden,) = adapted((fc1,), x, Norm(self.mlp_norm))
        (out,) = adapted((fc2,), hidden, Gelu())
        return x + self.masks.drop(out, self.dropout, self.number + 1)


def adapted(layers: Sequence[AdaptedLinear], u: Tensor, make: Make) -> tuple[Tensor, ...]:
    """What some layers with adapters of one rank give of one input: (T, out) of each.

    Parameters
    ----------
    u : (T, D) what is kept for the backward pass
    make : how the layers' input is made of it
    """
    first = layers[0]
    mask = first.masks.part(u.shape, first.lora_dropout[ADAPTER], first.number)
    device, bases = u.device.type, [layer.base_layer for layer in layers]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    multiply = cpu.multiply if isinstance(bases[0], cpu.Linear) else torch.mm
    how = _How(make, first.scaling[ADAPTER], dtype, multiply, len(layers))
    tensors = (
        *(base.weight for base in bases),
        *(base.bias for base in bases),
        *(layer.lora_A[ADAPTER].weight for layer in layers),
        *(layer.lora_B[ADAPTER].weight for layer in layers),
    )
    return _Adapted.apply(u, mask, how, *tensors)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class _How:
    """What is no tensor of a call of `_Adapted`, of n layers."""

    make: Make
    scaling: float
    dtype: torch.dtype
    multiply: Callable[[Tensor, Tensor], Tensor]
    n: int

    def parts(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
        """W, b, A and B of each layer."""
        all_of = tuple(tensor.to(self.dtype) for tensor in tensors)
        return tuple(all_of[i * self.n : (i + 1) * self.n] for i in range(4))

    def merged(self, weights: Iterable[Tensor], downs: Iterable[Tensor], ups: Iterable[Tensor]) -> list[Tensor]:
        """W + s B A of each layer."""
        return [torch.addmm(w, b, a, alpha=self.scaling) for w, a, b in zip(weights, downs, ups, strict=True)]

    def dropped(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """m x; x itself is not needed after it."""
        if mask is None:
            return x
        return x.mul_(mask) if self.make.is_new else (x * mask).to(self.dtype)


class _Adapted(torch.autograd.Function):
    """With s = alpha / rank, the mask m and x made of u:

        h = A (m x),   y = W x + b + s B h
        dh = s B^T dy,  dB = s dy h^T,  dA = dh (m x)^T,  dx = W^T dy + m A^T dh

    W and b have no gradient. Narrow products are taken the way round that is fast on CPUs.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, mask: Tensor | None, how: _How, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(u, mask, *tensors)
        ctx.how = how
        with torch.autocast(u.device.type, enabled=False):
            weights, biases, downs, ups = how.parts(tensors)
            x = how.make.forward(u)[0].to(how.dtype)
            by = how.merged(weights, downs, ups) if mask is None else weights
            ys = [how.multiply(x, w.mT).add_(b) for w, b in zip(by, biases, strict=True)]
            if mask is not None:
                hs = torch.split(how.dropped(x, mask) @ torch.cat(downs).mT, len(downs[0]), dim=1)
                for y, h, up in zip(ys, hs, ups, strict=True):
                    y.addmm_(h, up.mT, alpha=how.scaling)
            return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        u, mask, *tensors = ctx.saved_tensors
        how: _How = ctx.how
        with torch.autocast(u.device.type, enabled=False):
            weights, _, downs, ups = how.parts(tensors)
            x, beside = how.make.forward(u)
            x = how.dropped(x.to(how.dtype), mask)
            down, rank = torch.cat(downs), len(downs[0])
            hs = torch.split(x @ down.mT, rank, dim=1)
            d_ups = [(h.mT @ dy).mT.float().mul_(how.scaling) for h, dy in zip(hs, dys, strict=True)]
            dh = torch.cat([dy @ up for dy, up in zip(dys, ups, strict=True)], dim=1).mul_(how.scaling)
            d_downs = torch.split((dh.mT @ x).float(), rank)
            du = None
            if ctx.needs_input_grad[0]:
                dx = dh @ down
                if mask is not None:
                    dx.mul_(mask)
                for dy, w in zip(dys, weights, strict=True):
                    dx.add_(how.multiply(dy, w))
                du = how.make.backward(dx, u, beside)
        return du, None, None, *[None] * (2 * how.n), *d_downs, *d_ups


def compute_together(model: EhrModel) -> None:
    """Have the layers of a model that peft wrapped be computed as this module does; names and tensors stay.

    An encoder without layers is a few products a record, and left to peft.
    """
    if not len(model.encoder.layers):
        return
    masks, numbers = Masks(), itertools.count()
    for module in model.encoder.modules():
        if type(module) is Linear:
            module.__class__ = AdaptedLinear
            of_linear = cast(AdaptedLinear, module)
            of_linear.masks, of_linear.number = masks, next(numbers)
    for n_before, layer in enumerate(model.encoder.layers):
        layer.__class__ = AdaptedLayer
        of_layer = cast(AdaptedLayer, layer)
        of_layer.masks, of_layer.is_first = masks, n_before == 0
        of_layer.number, _ = next(numbers), next(numbers)  # one for each of its two sums


def compute_apart(model: EhrModel) -> None:
    """Make the layers of a model, whose adapters were merged, plain ones again."""
    for layer in model.encoder.layers:
        layer.__class__ = Layer
        del layer.masks, layer.number, layer.is_first
