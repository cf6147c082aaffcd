"""Steps and validation of fixed shapes, which a GPU replays: the plain path's numbers, by a stand-in that computes."""

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
from ehrtrack.training.graphs import WARM_UP, Compute, Filled, Forward, Graphs, Recorded, StandIn, Step
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


def graphs_for(objective: Objective, model: nn.Module, recorder: StandIn | None = None) -> Graphs:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    config = TrainConfig(lr=3e-3)
    optimizer = make_optimizer(trainable, config, CPU, is_recorded=True)
    return Graphs(model, objective, optimizer, config=config, recorder=recorder or StandIn(CPU))


class AtAddresses(StandIn):
    """A graph reads the weights where they lay when it was recorded, whatever the model has later."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(CPU)
        self.model = model
        self.n_replayed = 0

    def record(self, compute: Compute) -> Compute:
        then = self.addresses()

        def replay() -> None:
            assert self.addresses() == then
            self.n_replayed += 1
            compute()

        return replay

    def addresses(self) -> dict[str, int]:
        tensors = (*self.model.named_parameters(), *self.model.named_buffers())
        return {name: tensor.data_ptr() for name, tensor in tensors}


@pytest.mark.parametrize("case", CASES)
def test_validation_of_fixed_shapes_has_the_scores_of_the_plain_path_as_the_model_learns(case: str) -> None:
    name, strategy = case.split()
    objective = objective_named(name)
    model = model_for(objective, strategy)
    graphs = graphs_for(objective, model, recorder := AtAddresses(model))
    of_validation, of_training = batches(), batches(1)
    if strategy == "frozen":
        of_validation, of_training = (with_states(inner, model) for inner in (of_validation, of_training))
    graphs.suit(of_training)
    n_batches, before = len(of_validation), None
    for epoch in (1, 2, 3):
        set_training_mode(model)
        for filled in graphs.ahead(of_training):
            if isinstance(filled, Filled):
                graphs.take(filled)
        model.eval()
        replayed = graphs.replayed(of_validation)
        with torch.no_grad():
            scores = [(objective.score(replayed, b), objective.score(model, b)) for b in of_validation]
        for found, expected in scores:
            assert numbers(found) == pytest.approx(numbers(expected), abs=1e-5, rel=1e-5)
        first = numbers(scores[0][1])
        assert first != pytest.approx(before, abs=1e-3), "the model learns"
        before = first
        n_done = sum(forward.n_done for forward in graphs.forwards.values())
        assert epoch * (n_batches - 2) <= n_done <= epoch * n_batches
    assert recorder.n_replayed > 2 * n_batches


def numbers(score: Any) -> list[float]:
    """Those of a score of any objective, in one row."""
    if isinstance(score, dict):
        return list(score.values())
    return [score.loss, *score.survival.ravel()]


def test_weights_that_lie_elsewhere_are_read_there_once_the_old_places_are_forgotten() -> None:
    objective = objective_named("survival")
    model = model_for(objective, "full")
    graphs = graphs_for(objective, model, AtAddresses(model))

    def scores(scored: nn.Module) -> list[float]:
        with torch.no_grad():
            return [number for batch in batches() for number in numbers(objective.score(scored, batch))]

    model.eval()
    before = scores(graphs.replayed(batches()))
    for parameter in model.parameters():
        parameter.data = parameter.detach() + 0.1 * torch.randn(parameter.shape)
    with pytest.raises(AssertionError):
        scores(graphs.replayed(batches()))
    graphs.forget()
    found = scores(graphs.replayed(batches()))
    assert found == pytest.approx(scores(model), abs=1e-5, rel=1e-5)
    assert found != pytest.approx(before, abs=1e-2)


def test_a_batch_that_no_shape_holds_is_scored_plainly() -> None:
    objective = objective_named("survival")
    model = model_for(objective, "full")
    graphs = graphs_for(objective, model)
    one = replace(batches(), rows=np.arange(1))
    model.eval()
    with torch.no_grad():
        found, expected = (objective.score(m, next(iter(one))) for m in (graphs.replayed(batches()), model))
    assert not graphs.forwards
    assert numbers(found) == numbers(expected)


def recorded_without_values(case: str, what: type[Recorded]) -> None:
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
        tensors = {name: mode.from_tensor(tensor) for name, tensor in filled.tensors().items()}
        if what is Forward:
            model.eval()
            Forward(tensors, filled.shape, model).compute()
            return
        step = Step(
            tensors,
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


@pytest.mark.parametrize("what", [Step, Forward])
@pytest.mark.parametrize("case", CASES)
def test_nothing_that_is_recorded_waits_for_a_value(case: str, what: type[Recorded]) -> None:
    recorded_without_values(case, what)


@pytest.mark.parametrize("creeps_in", [Tensor.item, Tensor.nonzero, lambda t: t[t > 0], float])
def test_it_would_be_seen(creeps_in: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch) -> None:
    total = mlm.MaskedTokens.total

    def spoilt(self: mlm.MaskedTokens, model: nn.Module, batch: Batch, *rest: Any) -> Tensor:
        creeps_in(batch.days_to_end[0] if creeps_in in (Tensor.item, float) else batch.days_to_end)
        return total(self, model, batch, *rest)

    monkeypatch.setattr(mlm.MaskedTokens, "total", spoilt)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        recorded_without_values("mlm full", Step)


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


def test_what_learns_from_an_epoch_on_is_recorded_anew_and_validated_so(
    tmp_path: Path, recorded: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = strategy_of(plugins.settings("strategies", "lp-ft")())
    ends, histories, n_replayed = [], [], []
    forward = Graphs.forward
    monkeypatch.setattr(Graphs, "forward", lambda *call: n_replayed.append(1) or forward(*call))
    for folder in ("recorded", "plain"):
        model = model_for(objective_named("mlm"), "lp-ft")
        with pytest.MonkeyPatch.context() as patch:
            if folder == "plain":
                patch.setattr(steps, "recorder_for", lambda *_: None)
            begin = partial(chosen.begin_epoch, model)
            histories.append(trained_by_fit(tmp_path / folder, model, epochs=4, begin_epoch=begin).history)
        ends.append([p.detach().clone() for p in model.parameters()])
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for epoch, plain in zip(*histories, strict=True):
        assert epoch["val/loss"] == pytest.approx(plain["val/loss"], abs=1e-4)
    assert 4 * (len(batches()) - 2) <= len(n_replayed) <= 4 * len(batches())


def test_a_step_that_cannot_be_recorded_is_told_and_computed(
    tmp_path: Path, recorded: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: StandIn, compute: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    histories = []
    for folder in ("recorded", "not"):
        model = model_for(objective_named("mlm"), "full")
        histories.append(trained_by_fit(tmp_path / folder, model, epochs=3).history)
        monkeypatch.setattr(StandIn, "record", fails)
    for name in ("train/loss", "val/loss"):
        assert [epoch[name] for epoch in histories[1]] == pytest.approx(
            [epoch[name] for epoch in histories[0]], abs=1e-5
        )
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
