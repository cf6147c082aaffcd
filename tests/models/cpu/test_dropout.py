"""The fast dropout is dropout: the share, the mean, the gradient, and nothing at evaluation."""

from __future__ import annotations

import pytest
import torch

from ehrtrack.models.cpu.dropout import Dropout

ONES = torch.ones(401, 503)  # not a multiple of eight


def test_it_drops_the_nearest_256th_of_elements_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = Dropout(0.1)(ONES)
    share = (dropped == 0).float().mean().item()
    assert abs(share - 26 / 256) < 4 * (0.1 * 0.9 / ONES.numel()) ** 0.5  # four standard errors
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(256 / 230).item()}
    assert abs(dropped.mean().item() - 1) < 0.004


def test_every_byte_of_a_draw_drops_alike() -> None:
    torch.manual_seed(0)
    dropped = Dropout(0.5)(torch.ones(8 * 20_000)) == 0
    shares = dropped.view(-1, 8).float().mean(0)
    assert (shares - 0.5).abs().max() < 4 * 0.5 / 20_000**0.5


def test_the_gradient_passes_where_the_value_did() -> None:
    torch.manual_seed(0)
    x = ONES.clone().requires_grad_()
    y = Dropout(0.3)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_the_seed_decides() -> None:
    torch.manual_seed(3)
    first = Dropout(0.2)(ONES)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.2)(ONES), first)
    assert not torch.equal(Dropout(0.2)(ONES), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_left_has_the_type_that_it_came_with(dtype: torch.dtype) -> None:
    x = ONES.to(dtype).requires_grad_()
    for layer in (Dropout(0.25), Dropout(0.25).eval()):
        torch.manual_seed(0)
        left = layer(ONES)
        torch.manual_seed(0)
        found = layer(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), left, rtol=4e-3, atol=0)  # bfloat16's own rounding
        (gradient,) = torch.autograd.grad(found.sum(), [x])
        torch.testing.assert_close(gradient.float(), left, rtol=4e-3, atol=0)


def test_nothing_is_dropped_at_evaluation_or_at_zero() -> None:
    assert Dropout(0.5).eval()(ONES) is ONES
    assert Dropout(0.0).train()(ONES) is ONES


def test_a_probability_just_below_one_keeps_one_byte_in_256() -> None:
    torch.manual_seed(0)
    assert set(Dropout(0.999)(ONES).unique().tolist()) == {0.0, 256.0}
