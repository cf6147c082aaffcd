"""Training on a CUDA device: the CPU's numbers in float32, near ones in bfloat16, and the same promises."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import nn

from ehrtrack import plugins
from ehrtrack.data.batch import Batch, Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import TrainingError
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives import survival
from ehrtrack.objectives.base import Objective, TrainingFacts
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.strategies.base import strategy_of
from ehrtrack.tracking.doctor import check_gpu
from ehrtrack.training import memory
from ehrtrack.training.loop import FitResult, TrainConfig, evaluate, fit, set_training_mode
from ehrtrack.training.memory import CUDA_BATCH_TOKENS, find_batch_tokens
from ehrtrack.training.ranks import Ranks, join_ranks

N, V = 60, 30
STORE = random_store(N, V)
CPU = torch.device("cpu")
CUDA = torch.device("cuda")

OnEpoch = Callable[[int, dict[str, float]], None]


def on_gpu() -> Ranks:
    """This process alone, on the GPU: accelerate takes one device for a process, and another test took the CPU."""
    return Ranks(join_ranks("cpu").accelerator, CUDA)


def outcomes() -> Outcomes:
    rng = np.random.default_rng(0)
    days = rng.uniform(1, 500, N)
    is_event = (rng.random(N) < 0.6) & (days < 365)
    return Outcomes(np.minimum(days, 365.0), is_event, is_event * rng.integers(1, 3, N))


def batches(batch_tokens: int = 300, seed: int | None = None) -> Batches:
    return Batches(STORE, np.arange(N), batch_tokens, 30, outcomes=outcomes(), shuffle_seed=seed)


def objective_of(name: str) -> Objective:
    chosen = plugins.plugin("objectives", name, Objective)
    facts = TrainingFacts(np.bincount(STORE.token, minlength=V), outcomes(), 365.0, batches())
    return chosen(chosen.Config(), facts)


def model_of(objective: Objective, *, device: torch.device, is_bf16: bool = False) -> EhrModel:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny", dropout=0.0), V)
    model = EhrModel(encoder, objective.make_head(encoder.width)).to(device)
    model.is_bf16 = is_bf16
    return model


def first_batch(device: torch.device) -> Batch:
    return next(iter(batches())).to(device)


@pytest.fixture(params=plugins.names("objectives"))
def objective(request: pytest.FixtureRequest) -> Objective:
    return objective_of(typing.cast(str, request.param))


def test_in_float32_loss_gradients_and_validation_are_the_cpus(objective: Objective) -> None:
    losses, gradients, metrics = [], [], []
    for device in (CPU, CUDA):
        model = model_of(objective, device=device).eval()
        loss = objective.loss(model, first_batch(device))
        loss.total.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.mean)
        gradients.append({n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None})
        metrics.append(evaluate(model, objective, batches(), Ranks(join_ranks("cpu").accelerator, device)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-4, abs=1e-5)


def test_in_bfloat16_the_loss_is_near_and_every_gradient_finite(objective: Objective) -> None:
    exact = objective.loss(model_of(objective, device=CPU).eval(), first_batch(CPU)).mean
    model = model_of(objective, device=CUDA, is_bf16=True)
    loss = objective.loss(model, first_batch(CUDA))
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert loss.mean == pytest.approx(exact, rel=0.02)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert all(np.isfinite(value) for value in evaluate(model, objective, batches(), on_gpu()).values())


def test_20_steps_in_float32_have_the_cpus_losses() -> None:
    def losses(device: torch.device) -> list[float]:
        objective = objective_of("survival")
        model, found = model_of(objective, device=device).eval(), []  # without dropout
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for step in range(20):
            optimizer.zero_grad()
            loss = objective.loss(model, next(iter(batches(seed=step))).to(device))
            (loss.total / loss.weight).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            found.append(loss.mean)
        return found

    assert losses(CUDA) == pytest.approx(losses(CPU), abs=1e-5)


def survival_objective() -> survival.Survival:
    facts = TrainingFacts(np.ones(V, dtype=np.int64), outcomes(), 365.0)
    return survival.Survival(survival.SurvivalConfig(n_intervals=5), facts)


def trained(model: nn.Module, folder: Path, *, epochs: int, on_epoch: OnEpoch | None = None) -> FitResult:
    return fit(
        model,
        survival_objective(),
        training=lambda epoch: batches(120, seed=epoch),
        validation=batches(120),
        config=TrainConfig(epochs=epochs, lr=1e-2, batch_tokens=120),
        ranks=on_gpu(),
        folder=folder,
        logger=MemoryRunLogger(),
        on_epoch=on_epoch,
    )


@pytest.mark.parametrize("name", plugins.names("strategies"))
def test_each_strategy_trains_what_it_says_and_nothing_else(name: str, tmp_path: Path) -> None:
    base = model_of(survival_objective(), device=CPU, is_bf16=True)
    model = strategy_of(plugins.settings("strategies", name)()).apply(base).to(CUDA)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = trained(model, tmp_path, epochs=3)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]
    assert result.kept["train/memory_mb"] > 0


@pytest.mark.parametrize("is_bf16", [False, True])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(is_bf16: bool, tmp_path: Path) -> None:
    """Not bit for bit: sums by atomic additions have no fixed order on a GPU."""
    whole = model_of(survival_objective(), device=CUDA, is_bf16=is_bf16)
    trained(whole, tmp_path / "whole", epochs=4)
    cut = model_of(survival_objective(), device=CUDA, is_bf16=is_bf16)

    class CutOff(Exception):
        pass

    def end_in_epoch_2(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 2:
            raise CutOff

    with pytest.raises(CutOff):
        trained(cut, tmp_path / "cut", epochs=4, on_epoch=end_in_epoch_2)
    again = model_of(survival_objective(), device=CUDA, is_bf16=is_bf16)
    trained(again, tmp_path / "cut", epochs=4)
    expected, found = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (whole, again))
    assert float((found - expected).norm() / expected.norm()) < (0.05 if is_bf16 else 0.005)


@pytest.mark.parametrize("is_bf16", [False, True])
def test_states_computed_before_give_the_same_predictions(is_bf16: bool) -> None:
    model = model_of(survival_objective(), device=CUDA, is_bf16=is_bf16).eval()
    batch = first_batch(CUDA)
    with torch.no_grad():
        cached = model(replace(batch, hidden=model.hidden(batch)))
        torch.testing.assert_close(cached, model(batch), atol=1e-2 if is_bf16 else 1e-6, rtol=0)


def test_recomputing_layers_changes_no_gradient() -> None:
    def gradients(recomputes: bool) -> list[torch.Tensor]:
        objective = survival_objective()
        torch.manual_seed(0)
        encoder = Behrt(ModelConfig(size="tiny", dropout=0.3), V)
        model = EhrModel(encoder, objective.make_head(encoder.width)).to(CUDA)
        model.is_bf16, encoder.recomputes = True, recomputes
        set_training_mode(model)
        torch.cuda.manual_seed(1)  # the same dropout
        objective.loss(model, first_batch(CUDA)).total.backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in model.parameters() if p.grad is not None]

    torch.testing.assert_close(gradients(True), gradients(False), rtol=1e-2, atol=1e-3)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Some 100 MB more than is held now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1e8) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def wide(n_subjects: int) -> tuple[EhrModel, Batches]:
    """A model and batches that need far more than 100 MB a step."""
    store = random_store(n_subjects, V, longest=80)
    labels = Outcomes(np.full(n_subjects, 100.0), np.ones(n_subjects, dtype=bool))
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="small"), V)
    model = EhrModel(encoder, survival_objective().make_head(encoder.width)).to(CUDA)
    return model, Batches(store, np.arange(n_subjects), 40_000, 100, outcomes=labels)


def test_a_gpu_without_room_is_told_with_the_batch_and_the_setting(little_memory: None, tmp_path: Path) -> None:
    model, large = wide(500)
    with pytest.raises(TrainingError, match=r"out of memory at step 1 of epoch 1: \d+ subjects with .* tokens") as told:
        fit(
            model,
            survival_objective(),
            training=lambda epoch: large,
            validation=large,
            config=TrainConfig(epochs=1, batch_tokens=40_000),
            ranks=on_gpu(),
            folder=tmp_path,
            logger=MemoryRunLogger(),
        )
    assert "train.batch_tokens (now 40000)" in str(told.value)


def test_few_subjects_keep_small_batches_and_many_take_what_the_gpu_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, large = wide(500)
    n_epoch = large.n_tokens

    def found() -> int:
        return find_batch_tokens(model, survival_objective(), large, CUDA)

    assert found() == CUDA_BATCH_TOKENS[0] < n_epoch / 4
    monkeypatch.setattr(memory, "CUDA_STEPS", 1)  # now the subjects are many
    by_steps = found()
    assert n_epoch / 2 < by_steps <= n_epoch
    monkeypatch.setattr(memory, "CUDA_SHARE", 1e-3)  # and the GPU is small
    assert found() < by_steps
    assert all(p.grad is None for p in model.parameters())


def test_the_doctor_computes_on_the_gpu() -> None:
    finding = check_gpu()
    assert finding.state == "ok"
    assert torch.cuda.get_device_name() in finding.text
