"""What every strategy must do; a new module in ehrtrack/strategies is tested here on arrival."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from simulated import random_store
from torch import Tensor, nn

from ehrtrack import plugins
from ehrtrack.data.batch import Batch, Batches, collate
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives import survival
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.strategies.base import Strategy, parameter_table, strategy_of
from ehrtrack.training.loop import TrainConfig, fit, set_training_mode
from ehrtrack.training.ranks import join_ranks

N_SUBJECTS = 40
V = 30
STORE = random_store(N_SUBJECTS, V)
ROWS = np.arange(N_SUBJECTS)


def strategy_named(name: str) -> Strategy:
    return strategy_of(plugins.settings("strategies", name)())


def outcomes() -> Outcomes:
    rng = np.random.default_rng(0)
    days = rng.uniform(1, 365, N_SUBJECTS)
    return Outcomes(days, rng.random(N_SUBJECTS) < 0.6)


def objective() -> survival.Survival:
    facts = TrainingFacts(np.ones(V, dtype=np.int64), outcomes(), 365.0)
    return survival.Survival(survival.SurvivalConfig(n_intervals=5), facts)


def base(seed: int = 0) -> EhrModel:
    torch.manual_seed(seed)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    return EhrModel(encoder, objective().make_head(encoder.width))


def batch() -> Batch:
    return collate(STORE, ROWS, max_tokens=30, outcomes=outcomes())


def tensors(model: nn.Module, *, trainable: bool) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad is trainable}


@dataclass(frozen=True)
class Trained:
    """A model before and after a real fit of three epochs."""

    name: str
    strategy: Strategy
    model: nn.Module
    frozen_before: dict[str, Tensor]
    trainable_before: dict[str, Tensor]


@pytest.fixture(scope="module", params=plugins.names("strategies"))
def name(request: pytest.FixtureRequest) -> str:
    return typing.cast(str, request.param)


@pytest.fixture(scope="module")
def trained(name: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    strategy = strategy_named(name)
    model = strategy.apply(base())
    before = tensors(model, trainable=False), tensors(model, trainable=True)
    scores = objective()
    batches = Batches(STORE, ROWS, 120, 30, outcomes=outcomes())
    fit(
        model,
        scores,
        training=lambda epoch: batches,
        validation=batches,
        config=TrainConfig(epochs=3, lr=1e-2),
        ranks=join_ranks("cpu"),
        folder=tmp_path_factory.mktemp(name),
        logger=MemoryRunLogger(),
    )
    return Trained(name, strategy, model, *before)


def test_config_is_a_choice_that_carries_its_name(name: str) -> None:
    config = strategy_named(name).config
    assert isinstance(config, strategy_named(name).Config)
    assert config.name == name


def test_it_accepts_a_pretrained_model_or_none_and_says_why_not_the_other(name: str) -> None:
    strategy = strategy_named(name)
    answers = [strategy.refuse(is_pretrained=is_pretrained, width=32) for is_pretrained in (True, False)]
    if strategy.starts_anew:
        assert answers == [None, None]  # it is given none, whatever the configuration names
        return
    assert answers.count(None) == 1
    reason = next(answer for answer in answers if answer is not None)
    assert reason.startswith(f"strategy {name} ")
    assert "strategy.name=" in reason  # what to do instead


def test_it_starts_at_the_predictions_of_the_model_it_was_given(name: str) -> None:
    with torch.no_grad():
        plain = base().eval()(batch())
        applied = strategy_named(name).apply(base()).eval()(batch())
    torch.testing.assert_close(applied, plain, atol=1e-6, rtol=0)


def test_every_frozen_tensor_is_bit_identical_after_training(trained: Trained) -> None:
    after = tensors(trained.model, trainable=False)
    assert after.keys() == trained.frozen_before.keys()
    moved = [name for name, value in after.items() if not torch.equal(value, trained.frozen_before[name])]
    assert moved == []


def test_every_trainable_tensor_moved(trained: Trained) -> None:
    after = tensors(trained.model, trainable=True)
    still = [name for name, value in after.items() if torch.equal(value, trained.trainable_before[name])]
    assert still == []


def test_the_whole_head_is_trainable(trained: Trained) -> None:
    head = {n.split("head.")[-1] for n, _ in base().named_parameters() if n.startswith("head.")}
    names = [n.split("head.")[-1] for n in trained.trainable_before if ".head." in f".{n}"]
    learned = {n.removeprefix("modules_to_save.default.") for n in names}
    assert learned == head


def test_gradients_reach_every_trainable_tensor_after_two_steps_and_the_readouts_after_three(name: str) -> None:
    """The readout starts as 0: an adapter's first step opens its last layer, the second those behind that."""
    model, loss = strategy_named(name).apply(base()), objective()
    set_training_mode(model)
    learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(learned.values(), lr=1e-2)
    without = []
    for _ in range(3):
        optimizer.zero_grad()
        loss.loss(model, batch()).total.backward()
        optimizer.step()
        without.append([n for n, p in learned.items() if p.grad is None or not p.grad.any()])
    assert [n for n in without[1] if ".readout." not in n] == []
    assert without[2] == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_merged_is_a_plain_model_that_predicts_the_same(trained: Trained) -> None:
    merged = trained.strategy.merge(trained.model)
    assert type(merged) is EhrModel
    assert merged.state_dict().keys() == base().state_dict().keys()
    with torch.no_grad():
        apart, together = trained.model.eval()(batch()), merged.eval()(batch())
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_merging_leaves_the_trained_model_as_it_was(trained: Trained) -> None:
    with torch.no_grad():
        before = trained.model.eval()(batch())
        trained.strategy.merge(trained.model)
        assert torch.equal(trained.model.eval()(batch()), before)
    assert tensors(trained.model, trainable=True).keys() == trained.trainable_before.keys()


def test_the_parameter_table_sums(trained: Trained) -> None:
    table = {row["part"]: row for row in parameter_table(trained.model, trained.strategy).iter_rows(named=True)}
    assert list(table) == ["embedding", "encoder", "adapter", "head", "all"]
    for column in ("total", "trainable", "frozen"):
        assert table["all"][column] == sum(row[column] for part, row in table.items() if part != "all")
    assert all(row["total"] == row["trainable"] + row["frozen"] for row in table.values())
    plain = sum(p.numel() for p in base().parameters())
    assert table["all"]["total"] == plain + table["adapter"]["total"]
    assert table["all"]["trainable"] == sum(p.numel() for p in trained.trainable_before.values())
    assert table["head"]["frozen"] == 0


def test_it_writes_no_adapter_or_one_that_is_safetensors_and_json(trained: Trained, tmp_path: Path) -> None:
    trained.strategy.save_adapter(trained.model, tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}


def test_an_adapter_on_its_base_again_predicts_the_same_to_the_bit_merged_too(trained: Trained, tmp_path: Path) -> None:
    trained.strategy.save_adapter(trained.model, tmp_path)
    files = list(tmp_path.glob("*.safetensors"))
    assert bool(files) == trained.strategy.loads_adapter
    for file in files:
        weights = load_file(file)
        loaded = trained.strategy.load_adapter(base(), weights).eval()
        with torch.no_grad():
            assert torch.equal(loaded(batch()), trained.model.eval()(batch()))
        merged, again = (trained.strategy.merge(model).state_dict() for model in (trained.model, loaded))
        assert all(torch.equal(merged[key], again[key]) for key in merged)
        weights["base_model.model.encoder.other"] = weights.pop(min(weights))
        with pytest.raises(ValueError, match=r"2 tensors are of the adapter or of the model alone, such as base_model"):
            trained.strategy.load_adapter(base(), weights)
