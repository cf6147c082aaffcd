"""The fast linear map is a linear map: values, gradients, frozen weights, and no rounding to bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ehrtrack.models.cpu import linear
from ehrtrack.models.cpu.linear import BLOCK, FEWEST, Linear

ROWS = [FEWEST - 1, FEWEST, FEWEST + BLOCK + 7]
SHAPES = [(192, 192), (192, 768), (768, 192), (96, 384)]


@pytest.fixture(autouse=True)
def _fresh_answers() -> Iterator[None]:
    linear.gains.cache_clear()
    yield
    linear.gains.cache_clear()


def _layer(in_features: int, out_features: int) -> Linear:
    torch.manual_seed(0)
    return Linear(in_features, out_features)


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
def test_values_and_gradients_are_those_of_the_plain_one(n_rows: int, in_features: int, out_features: int) -> None:
    layer = _layer(in_features, out_features)
    x = torch.randn(n_rows, in_features, requires_grad=True)
    dy = torch.randn(n_rows, out_features)
    wanted = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    leaves = [x, layer.weight, layer.bias]
    gradients_wanted = torch.autograd.grad(wanted, leaves, dy.double())
    y = layer(x)
    gradients = torch.autograd.grad(y, leaves, dy)
    for found, expected in zip((y, *gradients), (wanted, *gradients_wanted), strict=True):
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < 1e-6  # bfloat16 has 4e-3


@pytest.mark.skipif(not linear.gains(192, 768), reason="this processor's products are left to torch's default")
def test_blocks_of_tokens_go_through_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, str]] = []
    mm = torch.mm

    def counted(x: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
        asked.append((len(x), torch.backends.mkldnn.matmul.fp32_precision))
        return mm(x, weight, out=out)

    assert linear.gains(192, 768)  # and this shape has been looked at
    monkeypatch.setattr(torch, "mm", counted)
    _layer(192, 768)(torch.randn(FEWEST + BLOCK + 7, 192))
    assert asked == [(FEWEST + BLOCK, "bf16"), (7, "none")]


def test_a_frozen_weight_has_no_gradient_and_lets_one_through(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer(192, 192)
    layer.requires_grad_(False)
    x = torch.randn(FEWEST + 3, 192, requires_grad=True)
    y = layer(x)
    multiplied: list[torch.Size] = []
    mm = torch.mm

    def counted(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
        multiplied.append(a.shape)
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    y.sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand_as(x))
    assert (192, FEWEST) not in multiplied  # what the weight's gradient would cost


@pytest.mark.parametrize("before", ["none", "ieee"])
def test_the_setting_is_put_back_also_after_an_error(before: str) -> None:
    settings = torch.backends.mkldnn.matmul
    found = settings.fp32_precision
    settings.fp32_precision = before
    try:
        with pytest.raises(RuntimeError), linear.by_onednn():
            torch.mm(torch.ones(2, 3), torch.ones(2, 3))
        assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = found


def test_a_processor_that_rounds_to_bfloat16_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for one without and one with matrix units (AMX), where oneDNN takes the leave that it is given."""

    def exact(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double()).float()

    def rounding(a: Tensor, b: Tensor) -> Tensor:
        is_allowed = torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        return (a.bfloat16() @ b.bfloat16()).float() if is_allowed else exact(a, b)

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch, "mm", exact)
    assert linear.gains(192, 192)
    assert not linear.gains(96, 384)  # narrow
    linear.gains.cache_clear()
    monkeypatch.setattr(torch, "mm", rounding)
    assert not linear.gains(192, 192)


def test_a_processor_without_avx512_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not linear.gains(192, 192)


def test_in_bfloat16_it_is_torchs_own() -> None:
    layer, x = _layer(192, 192), torch.randn(FEWEST, 192)
    assert layer(x).dtype == torch.float32  # and this shape has been looked at
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        assert layer(x).dtype == torch.bfloat16
