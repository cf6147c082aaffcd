"""The encoder: sizes, and attention that stays within a subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch, collate
from ehrtrack.errors import ConfigError
from ehrtrack.models import attention, cpu
from ehrtrack.models.behrt import (
    ADAPTED_LAYERS,
    SIZES,
    Behrt,
    EhrModel,
    ModelConfig,
    Recency,
    encoder_weights,
    load_encoder_weights,
)
from ehrtrack.models.device import place
from ehrtrack.models.heads import HazardHead, TokenHead
from ehrtrack.models.recurrent import Recurrent

VOCABULARY_SIZE = 40
IS_PLACED = False


@pytest.fixture(params=[False, True], ids=["as-written", "placed"], autouse=True)
def _layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of the encoder holds of torch's layers and of those that take their places on a CPU."""
    monkeypatch.setitem(globals(), "IS_PLACED", request.param)


def attend_by(attend: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (attention.SelfAttention, cpu.SelfAttention):
        monkeypatch.setattr(layer, "attend", lambda _, *inputs: attend(*inputs))


def batch_of(n_subjects: int, seed: int = 0) -> Batch:
    return collate(random_store(n_subjects, VOCABULARY_SIZE, seed), np.arange(n_subjects), max_tokens=24)


def make_model(seed: int = 0, size: str = "tiny") -> EhrModel:
    torch.manual_seed(seed)
    encoder = Behrt(ModelConfig(size=size, dropout=0.0), VOCABULARY_SIZE)
    model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(5)))
    with torch.no_grad():
        for parameter in model.parameters():  # so that attention differs from its mean
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return (place(model, torch.device("cpu")) if IS_PLACED else model).eval()


def padded_attention(q: Tensor, k: Tensor, v: Tensor, batch: Batch, places: None = None) -> Tensor:
    """The plain form: subjects padded to the longest, keys beyond a subject's length masked out, softmax by hand."""
    _, n_heads, width = q.shape
    longest, n_subjects = max(batch.lengths), len(batch.lengths)
    is_token = torch.arange(longest)[None, :] < torch.tensor(batch.lengths)[:, None]  # (B, L)

    def pad(x: Tensor) -> Tensor:
        return q.new_zeros(n_subjects, longest, n_heads, width).index_put((is_token,), x)

    scores = torch.einsum("blhd,bmhd->bhlm", pad(q), pad(k)) / width**0.5
    weights = scores.masked_fill(~is_token[:, None, None, :], float("-inf")).softmax(-1)
    return torch.einsum("bhlm,bmhd->blhd", weights, pad(v))[is_token]


def loss_and_gradients(model: EhrModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss: Tensor = model(batch).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_packed_attention_equals_padded_attention_with_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model(), batch_of(12)
    loss, gradients = loss_and_gradients(model, batch)
    calls = []

    def reference(q: Tensor, k: Tensor, v: Tensor, batch: Batch, places: None) -> Tensor:
        calls.append(q.shape)
        return padded_attention(q, k, v, batch)

    attend_by(reference, monkeypatch)
    padded_loss, padded_gradients = loss_and_gradients(model, batch)
    assert len(calls) == SIZES["tiny"].n_layers
    torch.testing.assert_close(loss, padded_loss, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == padded_gradients.keys() == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(gradients, padded_gradients, atol=1e-5, rtol=1e-5)


def test_no_token_sees_another_subject() -> None:
    model, batch = make_model(), batch_of(6)
    with torch.no_grad():
        before = model.encoder(batch)
        start, stop = sum(batch.lengths[:3]), sum(batch.lengths[:4])
        assert stop - start > 3
        batch.token[start:stop] = 4 + (batch.token[start:stop] + 11) % (VOCABULARY_SIZE - 4)
        after = model.encoder(batch)
    is_changed = (before != after).any(dim=1)
    assert is_changed[start:stop].all()
    assert not is_changed[:start].any()
    assert not is_changed[stop:].any()


def test_every_token_of_a_subject_sees_all_its_tokens() -> None:
    model, batch = make_model(), batch_of(6)
    start, stop = sum(batch.lengths[:3]), sum(batch.lengths[:4])
    with torch.no_grad():
        before = model.encoder(batch)
        batch.token[start] = 4 + (batch.token[start] + 11) % (VOCABULARY_SIZE - 4)
        after = model.encoder(batch)
    assert (before != after).any(dim=1)[start:stop].all()


@pytest.mark.parametrize("field", ["token", "age", "segment", "position", "gap"])
def test_every_embedding_reaches_the_hidden_states(field: str) -> None:
    model, batch = make_model(), batch_of(3)
    with torch.no_grad():
        before = model.encoder(batch)
        getattr(batch, field).add_(1).remainder_(3)
        assert not torch.equal(before, model.encoder(batch))


@pytest.mark.parametrize(
    ("size", "low", "high"), [("small", 0.5e6, 0.8e6), ("medium", 2e6, 3.5e6), ("large", 10e6, 20e6)]
)
def test_sizes_have_the_parameters_that_they_promise(size: str, low: float, high: float) -> None:
    with torch.device("meta"):
        encoder = Behrt(ModelConfig(size=size), vocabulary_size=1000)
    assert low <= sum(p.numel() for p in encoder.parameters()) <= high


def test_attention_and_mlp_are_linear_layers_that_adapters_can_wrap() -> None:
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in make_model().encoder.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert linear == set(ADAPTED_LAYERS)


@pytest.mark.parametrize("size", ["smal", "LARGE"])
def test_an_unknown_size_names_the_sizes(size: str) -> None:
    with pytest.raises(ConfigError, match="small, medium, large"):
        ModelConfig(size=size)


def test_encoder_weights_come_back_bit_for_bit() -> None:
    source, target = make_model(1), make_model(2)
    batch = batch_of(4)
    load_encoder_weights(target, encoder_weights(source))
    with torch.no_grad():
        assert torch.equal(source.encoder(batch), target.encoder(batch))


def test_encoder_weights_of_another_shape_are_refused() -> None:
    weights = encoder_weights(make_model())
    weights["embeddings.code.weight"] = weights["embeddings.code.weight"][:-1]
    with pytest.raises(RuntimeError, match=r"embeddings\.code\.weight"):
        load_encoder_weights(make_model(), weights)


def test_token_logits_are_of_masked_positions_only() -> None:
    encoder = Behrt(ModelConfig(size="tiny"), VOCABULARY_SIZE)
    batch = replace(batch_of(6), target_positions=torch.tensor([3, 8]), targets=torch.tensor([4, 5]))
    assert EhrModel(encoder, TokenHead(encoder.width, VOCABULARY_SIZE))(batch).shape == (2, VOCABULARY_SIZE)


def test_states_at_some_places_are_those_of_all_states_there_with_their_gradients() -> None:
    """The last layer is computed for the tokens that a head reads; of the third subject there are none."""
    model, batch = make_model(), batch_of(4)
    first = batch.offsets.tolist()
    places = torch.tensor([first[0], first[1], first[2] - 1, first[3], first[4] - 1])
    model.encoder(batch)[places].square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.encoder.named_parameters()}
    model.zero_grad()
    found = model.encoder(batch, places)
    torch.testing.assert_close(found, model.encoder(batch)[places])
    found.square().sum().backward()
    torch.testing.assert_close({name: p.grad for name, p in model.encoder.named_parameters()}, expected)


@pytest.mark.parametrize("is_training", [False, True])
def test_a_layer_adds_attention_and_then_an_mlp_to_its_input(is_training: bool) -> None:
    model, batch = make_model().train(is_training), batch_of(4)  # its probability of dropout is 0
    layer: Any = model.encoder.layers[0]
    x = torch.randn(batch.n_tokens, model.encoder.width)
    attended = x + layer.attention(layer.attention_norm(x), batch)
    expected = attended + layer.fc2(F.gelu(layer.fc1(layer.mlp_norm(attended))))
    torch.testing.assert_close(layer(x, batch), expected)
    torch.testing.assert_close(layer(x, batch, batch.cls_positions), expected[batch.cls_positions])


def test_dropout_in_a_layer_leaves_its_input_in_place() -> None:
    model, batch = make_model().train(), batch_of(4)
    layer: Any = model.encoder.layers[0]
    layer.dropout.p = 0.999  # 255 of 256 of what attention and MLP bring are dropped
    x = torch.randn(batch.n_tokens, model.encoder.width)
    torch.manual_seed(0)
    assert (layer(x, batch) == x).float().mean() > 0.98


def test_the_loop_over_subjects_trains_like_padded_attention_over_20_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way, `attend_varlen`, is a CUDA kernel for 16 bits, and is not run here."""

    def losses(attend: Callable[..., Tensor] | None) -> list[float]:
        if attend is not None:
            attend_by(attend, monkeypatch)
        model, found = make_model(), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(20):
            optimizer.zero_grad()
            loss = (model(batch_of(8, seed=step)) - 1).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    assert losses(None) == pytest.approx(losses(padded_attention), abs=1e-5)


def test_in_bfloat16_products_are_rounded_and_attention_and_logits_are_not() -> None:
    model, batch = make_model(), batch_of(8)
    with torch.no_grad():
        exact = model(batch)
        model.is_bf16 = True
        rounded = model(batch)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.05)


def test_recomputing_layers_changes_memory_and_nothing_else() -> None:
    def trained(recomputes: bool) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        encoder = Behrt(ModelConfig(size="tiny", dropout=0.3), VOCABULARY_SIZE)
        encoder.recomputes = recomputes
        model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(5))).train()
        if IS_PLACED:
            place(model, torch.device("cpu"))
        torch.manual_seed(1)  # the same dropout
        return loss_and_gradients(model, batch_of(8))

    plain, again = trained(False), trained(True)
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(gradient, again[1][name]) for name, gradient in plain[1].items())


def test_recomputing_layers_keeps_fewer_tensors_for_the_backward_pass() -> None:
    def n_kept(recomputes: bool) -> int:
        model, kept = make_model().train(), []
        model.encoder.recomputes = recomputes
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            model(batch_of(8))
        return sum(kept)

    assert n_kept(True) < 0.4 * n_kept(False)


def test_states_computed_before_give_the_same_predictions() -> None:
    model, batch = make_model(), batch_of(8)
    with torch.no_grad():
        states = model.hidden(batch)
        assert torch.equal(model(replace(batch, hidden=states)), model(batch))


@pytest.mark.parametrize(
    "make", [partial(Behrt, ModelConfig(size="tiny", dropout=0.0)), partial(Recurrent, nn.GRUCell, 32, dropout=0.0)]
)
def test_codes_alone_tell_tokens_apart_at_the_start(make: Callable[..., Behrt | Recurrent]) -> None:
    torch.manual_seed(0)
    embed = make(vocabulary_size=VOCABULARY_SIZE).embeddings
    batch = batch_of(8)
    assert torch.equal(embed(batch), embed.norm(embed.code(batch.token)))


@pytest.mark.parametrize(("one", "other"), [(1 / 24, 0.5), (20.0, 60.0), (300.0, 400.0), (1500.0, 3000.0)])
@pytest.mark.parametrize("part", ["scale", "shift"])
def test_recency_tells_times_apart_from_hours_to_years(part: str, one: float, other: float) -> None:
    torch.manual_seed(0)
    recency = Recency(16).requires_grad_(False)
    getattr(recency, part).normal_(std={"scale": 1.0, "shift": 12.0}[part])
    code = torch.ones(3, 16)
    vectors = recency(code, torch.tensor([one, other, torch.inf]))
    assert float((vectors[0] - vectors[1]).abs().max()) > 0.2
    assert torch.equal(vectors[2], code[2])  # a static fact is of no time


def test_recency_scales_each_code_by_itself() -> None:
    recency = Recency(2).requires_grad_(False)
    recency.scale.fill_(1.0)
    seen = recency(torch.tensor([[2.0, -1.0], [0.0, 0.0]]), torch.zeros(2))  # all 12 decays are 1 today
    assert seen.tolist() == [[26.0, -13.0], [0.0, 0.0]]


def test_a_token_knows_when_it_was_written_and_static_facts_do_not() -> None:
    embed = make_model().encoder.embeddings
    batch = batch_of(8)
    later = replace(batch, days_to_end=batch.days_to_end * 2 + 30)
    moved = (embed(batch) != embed(later)).any(dim=1)
    assert bool(embed(replace(batch, days_to_end=torch.full_like(batch.days_to_end, -1e5))).isfinite().all())
    is_static = batch.days_to_end.isinf()
    assert 0 < int(is_static.sum()) < len(is_static)
    assert torch.equal(moved, ~is_static)
