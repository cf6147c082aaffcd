"""The encoder that reads summaries: one state a record, of nothing but the record, whatever the order within it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import History, Visit, random_store, store_of

from ehrtrack.data.batch import Batch, collate
from ehrtrack.errors import ConfigError
from ehrtrack.models.behrt import SIZES, Behrt, EhrModel, ModelConfig
from ehrtrack.models.encoders import new_encoder
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.record_columns import Levels
from ehrtrack.models.summaries import Summaries
from ehrtrack.strategies.base import strategy_of
from ehrtrack.strategies.settings import LoraConfig

V = 30
LEVELS = Levels(torch.tensor([-1] * 10 + [0] * 5 + [1] * 5 + [-1] * 10), torch.linspace(-1, 1, 5).repeat(6))
CONFIG = ModelConfig(encoder="summaries", size="tiny", dropout=0.0)


def batch_of(n_subjects: int, seed: int = 0) -> Batch:
    return collate(random_store(n_subjects, V, seed), np.arange(n_subjects), max_tokens=24)


def encoder(seed: int = 0) -> Summaries:
    torch.manual_seed(seed)
    made = new_encoder(CONFIG, LEVELS, may_lack_age=False)
    assert isinstance(made, Summaries)
    return made.eval()


def test_it_is_the_transformer_unless_the_settings_say_otherwise() -> None:
    assert isinstance(new_encoder(ModelConfig(size="tiny"), LEVELS, may_lack_age=False), Behrt)


@torch.no_grad()
def test_the_state_of_a_record_stands_at_each_of_its_tokens() -> None:
    batch, model = batch_of(6), encoder()
    states = model(batch)
    assert states.shape == (len(batch.token), model.width)
    assert torch.equal(states, states[batch.cls_positions][batch.subject])
    assert torch.equal(model(batch, batch.cls_positions), states[batch.cls_positions])


@torch.no_grad()
def test_no_record_sees_another_and_each_sees_its_own() -> None:
    batch, model = batch_of(6), encoder()
    start = int(batch.offsets[3])
    token = batch.token.clone()
    token[start] = 4 + (token[start] + 11) % (V - 4)
    before, after = (model(x, batch.cls_positions) for x in (batch, replace(batch, token=token)))
    is_changed = (before != after).any(dim=1)
    assert is_changed.tolist() == [number == 3 for number in range(6)]


@torch.no_grad()
def test_a_level_is_read_as_a_number_and_not_as_a_class() -> None:
    """Without vectors of single bins, a value that is a little higher has a state that is a little different."""
    model = encoder()
    of_token = slice(model.reader.N_OF_RECORD, model.reader.N_OF_RECORD + V * (model.reader.N_OF_TOKEN + 3))
    model.embeddings.code.weight.zero_()
    model.column[of_token] = 0.0
    records = store_of([History([Visit([5, bin_of_a_code])]) for bin_of_a_code in range(10, 15)])
    batch = collate(records, np.arange(5), max_tokens=24)
    states = model(batch, batch.cls_positions)
    from_lowest = [(state - states[0]).norm() for state in states]
    assert from_lowest == sorted(from_lowest)
    assert from_lowest[1] > 0


def test_lora_wraps_it_and_what_is_merged_predicts_the_same() -> None:
    batch, strategy = batch_of(5), strategy_of(LoraConfig(rank=2, dropout=0.0))
    plain = EhrModel(encoder(), HazardHead(SIZES["tiny"].width, torch.zeros(4)))
    model = strategy.apply(plain)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("fc1" in name for name in trainable)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in trainable:
                p.add_(0.1 * torch.randn_like(p))
    model.eval()
    with torch.no_grad():
        expected = model(batch)
        torch.testing.assert_close(strategy.merge(model)(batch), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_members_are_networks_of_their_own_side_by_side() -> None:
    """The state of three members is that of three encoders, one after the other."""
    config = CONFIG.model_copy(update={"members": 3})
    together = new_encoder(config, LEVELS, may_lack_age=False)
    assert isinstance(together, Summaries)
    batch, width = batch_of(6), SIZES["tiny"].width
    states = together.eval()(batch, batch.cls_positions)
    assert states.shape == (6, 3 * width) == (6, together.width)
    for number, layers in enumerate([together, *together.others]):
        alone, mine = encoder(), slice(number * width, (number + 1) * width)
        alone.load_state_dict(
            {name: tensor for name, tensor in layers.state_dict().items() if not name.startswith("others")}
            | {
                "embeddings.code.weight": together.embeddings.code.weight[:, mine],
                "column": together.column[:, mine],
            }
        )
        torch.testing.assert_close(states[:, mine], alone(batch, batch.cls_positions))
    assert not torch.allclose(states[:, :width], states[:, width : 2 * width])


def test_a_single_member_has_the_tensors_that_it_had_before_there_were_members() -> None:
    names = {name for name, _ in encoder().named_parameters()}
    layers = {
        f"{layer}.{part}" for layer in ("read_norm", "mlp_norm", "fc1", "fc2", "norm") for part in ("weight", "bias")
    }
    assert names == {"embeddings.code.weight", "column", *layers}


def test_only_summaries_have_members() -> None:
    with pytest.raises(ConfigError, match=r"model\.members is 2, and model\.encoder is transformer"):
        ModelConfig(members=2)
