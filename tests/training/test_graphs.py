"""Steps of fixed shapes, which a GPU replays: the plain path's numbers, by a stand-in that computes anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from ehrtrack import plugins
from ehrtrack.data.batch import Batch, Batches
from ehrtrack.data.features import FeatureStore
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import ConfigError, TrainingError
from ehrtrack.models import attention
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.device import place
from ehrtrack.objectives import mlm, survival
from ehrtrack.objectives.base import Objective, TrainingFacts
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.strategies.base import strategy_of
from ehrtrack.training import steps
from ehrtrack.training.graphs import WARM_UP, Filled, Graphs, StandIn, Step
from ehrtrack.training.loop import FitResult, TrainConfig, Training, fit, set_training_mode
from ehrtrack.training.optimizer import make_optimizer
from ehrtrack.training.ranks import join_ranks

V, N = 30, 120
STORE = random_store(N, V)
RNG = np.random.default_rng(0)
OUTCOMES = Outcomes(RNG.uniform(1, 365, N), RNG.random(N) < 0.6)
CPU = torch.device("cpu")
ALONE = join_ranks("cpu")
CASES = ("mlm full", "survival full", "survival lora", "survival frozen")


def batches(seed: int | None = None) -> Batches:
    return Batches(STORE, np.arange(N), 150, 20, outcomes=OUTCOMES, shuffle_seed=seed)


def objective_named(name: str) -> Objective:
    facts = TrainingFacts(np.bincount(STORE.token, minlength=V), OUTCOMES, 365.0, records=batches())
    if name == "mlm":
        return mlm.MaskedTokens(mlm.MaskedTokensConfig(), facts)
    return survival.Survival(survival.SurvivalConfig(n_intervals=5, lambda_rank=0.3), facts)


def model_for(objective: Objective, strategy: str, *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny", dropout=dropout), V)
    base = EhrModel(encoder, objective.make_head(encoder.width))
    model = strategy_of(plugins.settings("strategies", strategy)()).apply(base)
    if dropout == 0:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return place(model, CPU)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Steps are recorded by the stand-in; whether each step was one of a fixed shape."""
    taken: list[bool] = []
    take = Training.take_step

    def noted(self: Training, step: Any) -> None:
        taken.append(isinstance(step[0], Filled))
        take(self, step)

    monkeypatch.setattr(steps, "recorder_for", lambda *_: StandIn(CPU))
    monkeypatch.setattr(Training, "take_step", noted)
    return taken


def trained(case: str, folder: Path, *, dropout: float = 0.0, n_epochs: int = 3) -> tuple[list[float], list[Tensor]]:
    """Losses of the steps of some epochs, and the weights after them."""
    name, strategy = case.split()
    objective = objective_named(name)
    model = model_for(objective, strategy, dropout=dropout)
    losses: list[float] = []
    training = Training(
        model,
        objective,
        config=TrainConfig(lr=3e-3, batch_tokens=150, clip_norm=0.5),
        ranks=ALONE,
        folder=folder,
        snapshot_seconds=math.inf,
        on_steps=lambda n, loss: losses.append(loss),
        batches_between=1,
    )
    for epoch in range(1, n_epochs + 1):
        training.train_epoch(with_states(batches(epoch), model) if strategy == "frozen" else batches(epoch))
        training.progress.epoch, training.progress.n_done, training.progress.n_batches = epoch + 1, 0, 0
    training.close()
    return losses, [p.detach().clone() for p in training.trainable.values()]


def with_states(inner: Batches, model: nn.Module) -> Batches:
    """The batches with the encoder's states, which a frozen encoder computes once."""
    every = next(iter(replace(inner, batch_tokens=10**6, shuffle_seed=None)))
    model.eval()
    with torch.no_grad():
        hidden = cast(EhrModel, model).hidden(every).numpy()
    return replace(inner, features=FeatureStore(every.offsets.numpy(), hidden))


@pytest.mark.parametrize("case", CASES)
def test_steps_of_fixed_shapes_have_the_losses_and_weights_of_the_plain_path(
    case: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plain_losses, plain_weights = trained(case, tmp_path / "plain")
    taken = request.getfixturevalue("recorded")
    losses, weights = trained(case, tmp_path / "recorded")
    assert taken.count(True) >= 20
    assert losses == pytest.approx(plain_losses, abs=1e-5)
    for found, expected in zip(weights, plain_weights, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_with_dropout_a_seed_decides_every_step(tmp_path: Path, recorded: list[bool]) -> None:
    runs = [trained("survival lora", tmp_path / str(n), dropout=0.2) for n in (1, 2)]
    assert recorded.count(True) >= 20
    (losses, weights), (again, weights_again) = runs
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_again, strict=True))
    assert all(math.isfinite(loss) for loss in losses)
    assert losses != trained("survival lora", tmp_path / "other", dropout=0.0)[0]


def test_batches_go_by_the_smallest_shape_that_holds_them_and_what_none_holds_goes_plainly(
    tmp_path: Path, recorded: list[bool]
) -> None:
    objective = objective_named("mlm")
    graphs = graphs_for(objective, model_for(objective, "full"))
    graphs.suit(batches())
    small, large = graphs.shapes
    assert small.n_tokens < large.n_tokens
    whole = next(iter(batches(1)))
    few, one = (next(iter(replace(batches(1), rows=np.arange(n)))) for n in (6, 1))
    found = [graphs.filled(batch) for batch in (whole, few, one)]
    assert [of.shape for of in found if isinstance(of, Filled)] == [large, small]
    assert found[2] is one


def graphs_for(objective: Objective, model: nn.Module) -> Graphs:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    config = TrainConfig()
    optimizer = make_optimizer(trainable, config, CPU, is_recorded=True)
    return Graphs(model, objective, optimizer, config=config, recorder=StandIn(CPU))


def recorded_without_values(case: str) -> None:
    """What a graph would record, computed on tensors that have shapes and no values, with the kernel of GPUs."""
    name, strategy = case.split()
    objective = objective_named(name)
    model = model_for(objective, strategy, dropout=0.2)
    of_epoch = with_states(batches(1), model) if strategy == "frozen" else batches(1)
    graphs = graphs_for(objective, model)
    graphs.suit(of_epoch)
    filled = graphs.filled(next(iter(of_epoch)))
    assert isinstance(filled, Filled)
    set_training_mode(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "attend_masked", by_kernel_of_gpus)
        model._apply(mode.from_tensor)  # type: ignore[no-untyped-call]
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        step = Step(
            {name: mode.from_tensor(tensor) for name, tensor in filled.tensors().items()},
            filled.shape,
            model=model,
            objective=objective,
            optimizer=make_optimizer(trainable, TrainConfig(), CPU, is_recorded=True),
            clip_norm=1.0,
        )
        step.compute()


def by_kernel_of_gpus(q: Tensor, k: Tensor, v: Tensor, batch: Batch, places: Tensor | None) -> Tensor:
    n_queries = attention.count_queries(batch, places)
    return attention.attend_varlen(q.bfloat16(), k.bfloat16(), v.bfloat16(), batch, n_queries).float()


@pytest.mark.parametrize("case", CASES)
def test_nothing_that_is_recorded_waits_for_a_value(case: str) -> None:
    recorded_without_values(case)


@pytest.mark.parametrize("creeps_in", [Tensor.item, Tensor.nonzero, lambda t: t[t > 0], float])
def test_it_would_be_seen(creeps_in: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch) -> None:
    total = mlm.MaskedTokens.total

    def spoilt(self: mlm.MaskedTokens, model: nn.Module, batch: Batch, *rest: Any) -> Tensor:
        creeps_in(batch.days_to_end[0] if creeps_in in (Tensor.item, float) else batch.days_to_end)
        return total(self, model, batch, *rest)

    monkeypatch.setattr(mlm.MaskedTokens, "total", spoilt)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        recorded_without_values("mlm full")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_no_number_changes_no_weight(
    wrong: float, tmp_path: Path, recorded: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    total = mlm.MaskedTokens.total
    seen: list[dict[str, Tensor]] = []

    def breaks(self: mlm.MaskedTokens, model: nn.Module, *rest: Any) -> Tensor:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return total(self, model, *rest) * (wrong if len(seen) == 3 else 1.0)

    monkeypatch.setattr(mlm.MaskedTokens, "total", breaks)
    with pytest.raises(TrainingError, match=r"the training loss became (nan|inf) at step 3 of epoch 1"):
        trained_by_fit(tmp_path, model := model_for(objective_named("mlm"), "full"), epochs=1)
    assert all(torch.equal(p, seen[-1][name]) for name, p in model.named_parameters())
    assert not all(torch.equal(seen[0][name], value) for name, value in seen[1].items())


def trained_by_fit(folder: Path, model: nn.Module, *, epochs: int, **settings: Any) -> FitResult:
    return fit(
        model,
        objective_named("mlm"),
        training=batches,
        validation=batches(),
        config=TrainConfig(epochs=epochs, lr=3e-3, batch_tokens=150),
        ranks=ALONE,
        folder=folder,
        logger=MemoryRunLogger(),
        **settings,
    )


def test_a_run_that_was_cut_off_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path, recorded: list[bool]) -> None:
    whole, cut, again = (model_for(objective_named("mlm"), "full", dropout=0.2) for _ in range(3))
    trained_by_fit(tmp_path / "whole", whole, epochs=3)

    class CutOff(Exception):
        pass

    def end(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 2:
            raise CutOff

    with pytest.raises(CutOff):
        trained_by_fit(tmp_path / "cut", cut, epochs=3, on_epoch=end)
    trained_by_fit(tmp_path / "cut", again, epochs=3)
    assert recorded.count(True) > 2 * WARM_UP
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_what_learns_from_an_epoch_on_is_recorded_anew(tmp_path: Path, recorded: list[bool]) -> None:
    chosen = strategy_of(plugins.settings("strategies", "lp-ft")())
    ends = []
    for folder in ("recorded", "plain"):
        model = model_for(objective_named("mlm"), "lp-ft")
        with pytest.MonkeyPatch.context() as patch:
            if folder == "plain":
                patch.setattr(steps, "recorder_for", lambda *_: None)
            begin = partial(chosen.begin_epoch, model)
            trained_by_fit(tmp_path / folder, model, epochs=4, begin_epoch=begin)
        ends.append([p.detach().clone() for p in model.parameters()])
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_step_that_cannot_be_recorded_is_told_and_computed(
    tmp_path: Path, recorded: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: StandIn, compute: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    expected, _ = trained("mlm full", tmp_path / "recorded")
    monkeypatch.setattr(StandIn, "record", fails)
    losses, _ = trained("mlm full", tmp_path / "not")
    assert losses == pytest.approx(expected, abs=1e-5)
    assert capsys.readouterr().out.count("not permitted when stream is capturing") == 1


def test_asked_for_where_it_cannot_be_it_is_refused_with_the_reason(tmp_path: Path) -> None:
    objective = objective_named("mlm")
    with pytest.raises(ConfigError, match=r"train\.graph is on.*the device is cpu.*train\.graph=auto"):
        Training(
            model_for(objective, "full"),
            objective,
            config=TrainConfig(graph="on"),
            ranks=ALONE,
            folder=tmp_path,
            snapshot_seconds=math.inf,
        )
