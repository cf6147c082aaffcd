"""Layers with adapters compute what peft's compute, and what dropout draws is dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import peft
import pytest
import torch
from peft.tuners.lora import Linear
from simulated import random_store
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, collate
from ehrtrack.models import cpu
from ehrtrack.models.behrt import Behrt, EhrModel, Layer, ModelConfig
from ehrtrack.models.device import place
from ehrtrack.models.heads import HazardHead
from ehrtrack.strategies import _lora_layers
from ehrtrack.strategies._lora_layers import AdaptedLayer, AdaptedLinear, Masks
from ehrtrack.strategies.lora import Lora
from ehrtrack.strategies.settings import LoraConfig

CPU = torch.device("cpu")


def a_batch() -> Batch:
    return collate(random_store(12, 40, longest=60), np.arange(12), max_tokens=100)


def adapted(*, dropout: float = 0.0, own: float = 0.0, size: str = "tiny", embeddings: bool = False) -> nn.Module:
    """A model whose adapters do something; `own` is the dropout of its layers."""
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size=size, dropout=own), 40)
    plain = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(5)))
    model = Lora(LoraConfig(rank=3, dropout=dropout, embeddings=embeddings)).apply(plain)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for module in model.modules():
        if isinstance(module, HazardHead):
            module.dropout.p = 0.0
    return place(model, CPU).train()


def by_peft(model: nn.Module) -> nn.Module:
    """The same model with peft's own layers."""
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            module.__class__ = Linear
        if isinstance(module, AdaptedLayer):
            module.__class__ = Layer
    return model


def both_passes(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    logits = model(a_batch())
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert set(found[1]) == set(expected[1])
    for name, gradient in expected[1].items():
        assert float((found[1][name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-6, name


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_predictions_and_gradients_are_pefts(size: str, embeddings: bool) -> None:
    found = both_passes(adapted(size=size, embeddings=embeddings))
    assert_same(found, both_passes(by_peft(adapted(size=size, embeddings=embeddings))))
    assert sum("lora_" in name for name in found[1]) > 20


def test_in_bfloat16_they_are_pefts_to_its_rounding() -> None:
    results = []
    for model in (adapted(), by_peft(adapted())):
        next(module for module in model.modules() if isinstance(module, EhrModel)).is_bf16 = True
        results.append(both_passes(model))
    (found, gradients), (expected, of_peft) = results
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    for name, gradient in of_peft.items():
        assert gradients[name].dtype == gradient.dtype
        assert float((gradients[name] - gradient).norm()) <= 0.1 * float(gradient.norm()) + 1e-4, name


@contextmanager
def same_masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each mask that a layer takes is made from the shape alone, for whoever asks."""

    def of_shape(shape: torch.Size) -> Tensor:
        return (torch.rand(shape, generator=torch.Generator().manual_seed(shape.numel())) > 0.3).float() / 0.7

    with monkeypatch.context() as patch:
        patch.setattr(Masks, "part", lambda self, shape, *_: of_shape(shape))
        patch.setattr(nn.Dropout, "forward", lambda self, x: x * of_shape(x.shape))
        yield


def test_with_the_masks_of_dropout_they_are_pefts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.Dropout, "forward", lambda self, x: nn.Dropout.forward(self, x))
    with same_masks(monkeypatch):
        assert_same(both_passes(adapted(dropout=0.3, own=0.3)), both_passes(by_peft(adapted(dropout=0.3, own=0.3))))


def test_one_input_has_one_mask_and_a_pass_draws_its_numbers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[torch.Size] = []
    draws: list[int] = []
    part, draw = Masks.part, Masks.draw
    monkeypatch.setattr(Masks, "part", lambda self, shape, *of: (parts.append(shape), part(self, shape, *of))[1])
    monkeypatch.setattr(Masks, "draw", lambda self, x, of, width: (draws.append(width), draw(self, x, of, width))[1])
    model = adapted(dropout=0.1)
    model(a_batch())
    of_adapters = 2 * 4 + 3  # q, k and v; out; fc1; fc2 of each layer, and three of the readout
    of_layers = 2 * 2  # which ask for their own dropout, and it is off
    assert len(parts) == of_adapters + of_layers
    assert len(draws) == 1


def test_a_mask_drops_its_share_and_keeps_the_mean() -> None:
    masks, dropout = Masks(), place(nn.Dropout(0.25), CPU)
    x = torch.zeros(400, 32)
    torch.manual_seed(1)
    masks.draw(x, dropout, 64)
    shares = [masks.part(x.shape, dropout, number) for number in range(20)]
    for mask in shares:
        assert mask is not None
        assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
        assert float(mask.mean()) == pytest.approx(1, abs=0.03)
    first, second = shares[:2]
    assert first is not None
    assert second is not None
    agreement = float(((first == 0) == (second == 0)).float().mean())
    assert agreement == pytest.approx(0.75**2 + 0.25**2, abs=0.02)  # as independent ones do


def test_records_of_one_token_have_masks_too() -> None:
    batch = collate(random_store(12, 40, longest=60), np.arange(12), max_tokens=1)
    assert set(batch.lengths) == {1}
    adapted(dropout=0.5)(batch).sum().backward()  # the readout reads more of a record than its tokens are wide


def test_recomputation_drops_the_same_again() -> None:
    passes = []
    for recomputes in (False, True):
        model = adapted(dropout=0.3, own=0.3)
        model.get_submodule("base_model.model.encoder").recomputes = recomputes  # type: ignore[assignment]
        torch.manual_seed(5)
        passes.append(both_passes(model))
    assert_same(passes[1], passes[0])


def test_the_same_seed_gives_the_same_training_step() -> None:
    def step() -> tuple[Tensor, dict[str, Tensor]]:
        model = adapted(dropout=0.3, own=0.1)
        torch.manual_seed(5)
        return both_passes(model)

    first, second = step(), step()
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


def test_an_adapter_that_is_switched_off_or_merged_is_left_to_peft() -> None:
    model, plain = adapted().eval(), by_peft(adapted()).eval()
    assert isinstance(model, peft.PeftModel)
    assert isinstance(plain, peft.PeftModel)
    with torch.no_grad():
        with model.disable_adapter(), plain.disable_adapter():
            off, expected = model(a_batch()), plain(a_batch())
        torch.testing.assert_close(off, expected, atol=1e-5, rtol=0)
        on = model(a_batch())
        assert float((on - off).abs().max()) > 0.01
        model.merge_adapter()
        torch.testing.assert_close(model(a_batch()), on, atol=1e-5, rtol=0)


def test_a_merged_model_has_plain_layers_and_predicts_the_same() -> None:
    model = adapted().eval()
    merged = Lora(LoraConfig(rank=3)).merge(model).eval()
    kinds = {type(module).__module__ for module in merged.modules()}
    assert not any("peft" in kind or kind == _lora_layers.__name__ for kind in kinds)
    with torch.no_grad():
        torch.testing.assert_close(merged(a_batch()), model(a_batch()), atol=1e-5, rtol=0)
