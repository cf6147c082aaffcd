"""A placed model computes what it computed before, under the same names, and can be placed elsewhere again."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from simulated import random_store
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, collate
from ehrtrack.models import cpu
from ehrtrack.models.attention import SelfAttention
from ehrtrack.models.behrt import ADAPTED_LAYERS, Behrt, EhrModel, ModelConfig
from ehrtrack.models.device import ON_CPU, place
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.recurrent import Recurrent

CPU = torch.device("cpu")
V = 40


def a_model(size: str = "tiny") -> EhrModel:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size=size, dropout=0.1), V)
    model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(5)))
    with torch.no_grad():
        for parameter in model.parameters():  # so that attention differs from its mean
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def a_batch() -> Batch:
    return collate(random_store(12, V, longest=60), np.arange(12), max_tokens=100)


def both_passes(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    logits = model.eval()(a_batch())
    model.zero_grad()
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_predictions_and_gradients_are_those_of_torchs_layers() -> None:
    plain, placed = both_passes(a_model("small")), both_passes(place(a_model("small"), CPU))
    torch.testing.assert_close(placed[0], plain[0], rtol=1e-4, atol=1e-5)
    for name, gradient in plain[1].items():
        difference = float((placed[1][name] - gradient).norm())
        assert difference <= 1e-4 * float(gradient.norm()) + 1e-5, name  # those of keys' biases are 0 but for rounding


def test_on_a_cpu_every_layer_of_a_kind_is_exchanged_and_no_tensor_renamed() -> None:
    plain, placed = a_model(), place(a_model(), CPU)
    kinds = dict(ON_CPU)
    assert [type(module) for module in placed.modules()] == [
        kinds.get(type(module), type(module)) for module in plain.modules()
    ]
    assert sum(isinstance(module, cpu.SelfAttention) for module in placed.modules()) == 2
    placed.load_state_dict(plain.state_dict(), strict=True)
    assert list(placed.state_dict()) == list(plain.state_dict())


def test_elsewhere_layers_are_torchs_own_again() -> None:
    model = place(a_model(), CPU)
    place(model, torch.device("meta"))
    assert [type(module) for module in model.modules()] == [type(module) for module in a_model().modules()]


@pytest.mark.parametrize("is_placed_before", [False, True])
def test_adapters_wrap_the_same_layers_and_are_exchanged_with_the_next_placing(is_placed_before: bool) -> None:
    model = place(a_model(), CPU) if is_placed_before else a_model()
    config = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=list(ADAPTED_LAYERS), modules_to_save=["head"])
    adapted = place(peft.get_peft_model(model, config), CPU)
    wrapped = {name.rsplit(".", 1)[0] for name, _ in adapted.named_modules() if name.endswith(".lora_A")}
    assert {name.rsplit(".", 1)[-1] for name in wrapped} == set(ADAPTED_LAYERS)
    assert len(wrapped) == 2 * 6 + 3  # of two layers, and three of the readout
    kinds = {type(module) for module in adapted.modules()}
    assert kinds >= {cpu.Linear, cpu.Dropout, cpu.SelfAttention}
    assert not kinds & {nn.Linear, nn.Dropout, SelfAttention}


def test_a_baseline_is_placed_as_well() -> None:
    network = place(Recurrent(nn.GRUCell, 8, V, 0.1), CPU)
    assert not {nn.Linear, nn.Dropout} & {type(module) for module in network.modules()}
