"""The training loop: what it stops for, what it keeps, and that a seed decides everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, Batches
from ehrtrack.errors import ConfigError, TrainingError
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.heads import HazardHead, Head
from ehrtrack.objectives.base import BatchLoss, Objective, Selection
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.training import steps
from ehrtrack.training.checkpoint import load_tensors
from ehrtrack.training.device_facts import Meter
from ehrtrack.training.loop import (
    FitResult,
    TrainConfig,
    evaluate,
    fit,
    set_training_mode,
)
from ehrtrack.training.ranks import join_ranks
from ehrtrack.training.stopping import TrainingStopped

ALONE = join_ranks("cpu")
N_SUBJECTS = 16
BATCH_TOKENS = 48


class Scripted:
    """An objective whose validation scores are written down, and whose loss can be made to break."""

    def __init__(
        self,
        scores: Sequence[float],
        *,
        is_higher_better: bool = True,
        break_at: int = 0,
        broken: Callable[[Tensor], Tensor] = lambda loss: loss * math.nan,
    ) -> None:
        self.selection = Selection("val/score", is_higher_better)
        self.scores = iter(scores)
        self.break_at = break_at
        self.broken = broken
        self.n_steps = 0

    def make_head(self, width: int) -> Head:
        return HazardHead(width, torch.zeros(3))

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        self.n_steps += 1
        noise = torch.rand((), generator=batch.generator())
        loss: Tensor = (model(batch) - 1 - noise).square().mean()
        loss = self.broken(loss) if self.n_steps == self.break_at else loss
        n_subjects = len(batch.lengths)
        return BatchLoss(loss * n_subjects, n_subjects, loss.item())

    def score(self, model: nn.Module, batch: Batch) -> int:
        assert not model.training
        assert not torch.is_grad_enabled()
        return len(batch.lengths)

    def metrics(self, scores: Sequence[int]) -> dict[str, float]:
        assert sum(scores) == N_SUBJECTS
        return {"val/loss": 1.0, "val/score": next(self.scores)}


def make_model(seed: int = 0) -> EhrModel:
    torch.manual_seed(seed)
    encoder = Behrt(ModelConfig(size="tiny"), 30)
    return EhrModel(encoder, HazardHead(encoder.width, torch.zeros(3)))


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def are_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def batches(epoch: int, seed: int = 0) -> Batches:
    store = random_store(N_SUBJECTS, 30)
    return Batches(store, np.arange(N_SUBJECTS), BATCH_TOKENS, 20, shuffle_seed=seed * 100 + epoch)


def run(model: EhrModel, objective: Objective, folder: Path, *, seed: int = 0, **settings: Any) -> FitResult:
    return fit(
        model,
        objective,
        training=lambda epoch: batches(epoch, seed),
        validation=replace(batches(0), shuffle_seed=None),
        config=TrainConfig(**{"epochs": 8, "lr": 1e-2} | settings.pop("train", {})),
        ranks=settings.pop("ranks", ALONE),
        folder=folder,
        logger=settings.pop("logger", MemoryRunLogger()),
        **settings,
    )


def test_patience_stops_training_and_the_best_epochs_weights_come_back(tmp_path: Path) -> None:
    model, by_epoch = make_model(), {}

    def remember(epoch: int, metrics: dict[str, float]) -> None:
        by_epoch[epoch] = weights_of(model)

    result = run(model, Scripted([0.6, 0.7, 0.65, 0.7, 0.64]), tmp_path, train={"patience": 3}, on_epoch=remember)
    assert len(result.history) == 5
    assert result.kept_epoch == 2
    assert result.kept["val/score"] == 0.7
    assert "no better val/score for 3 epochs" in result.stop_reason
    assert are_equal(weights_of(model), by_epoch[2])
    assert not are_equal(by_epoch[2], by_epoch[5])


class Ruled(Scripted):
    """An objective whose epochs are kept by one standard error; its scores are pairs of a C-index and an IBS."""

    def __init__(self, pairs: Sequence[tuple[float, float]], *, error: float | None = 0.02) -> None:
        super().__init__([])
        self.pairs = iter(pairs)
        self.error = error
        self.selection = Selection("val/score", is_higher_better=True, error="val/score_se", among="val/ibs")

    def metrics(self, scores: Sequence[int]) -> dict[str, float]:
        score, ibs = next(self.pairs)
        error = {} if self.error is None else {"val/score_se": self.error}
        return {"val/loss": 1.0, "val/score": score, "val/ibs": ibs} | error


def test_the_epoch_within_one_standard_error_comes_back_and_patience_counts_from_the_best(tmp_path: Path) -> None:
    pairs = [(0.69, 0.20), (0.685, 0.14), (0.70, 0.15), (0.66, 0.13), (0.67, 0.19), (0.699, 0.16)]
    model, by_epoch, kept = make_model(), {}, []

    def remember(epoch: int, metrics: dict[str, float]) -> None:
        by_epoch[epoch] = weights_of(model)
        kept.append(sorted(file.name for file in tmp_path.glob("epoch-*")))

    result = run(model, Ruled(pairs), tmp_path, train={"patience": 3}, on_epoch=remember)
    assert len(result.history) == 6
    assert (result.kept_epoch, result.kept["val/score"]) == (2, 0.685)
    assert "no better val/score for 3 epochs" in result.stop_reason
    assert are_equal(weights_of(model), by_epoch[2])
    names = [[f"epoch-00000{n}.safetensors" for n in numbers] for numbers in ([1], [1, 2], [2, 3], [2, 3, 4])]
    assert kept == [*names, names[-1], names[-1]]  # no others are on the disk


def test_training_goes_on_while_the_kept_epoch_does(tmp_path: Path) -> None:
    """The best C-index, of the first epoch, is luck: those after it are within its error and ever more right."""
    pairs = [(0.70, 0.20), (0.69, 0.19), (0.69, 0.18), (0.69, 0.17), (0.60, 0.10), (0.69, 0.18), (0.69, 0.2)]
    result = run(make_model(), Ruled(pairs), tmp_path, train={"patience": 2})
    assert (len(result.history), result.kept_epoch) == (6, 4)


def test_too_few_events_for_a_standard_error_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(make_model(), Ruled([(0.9, 0.2), (0.5, 0.1)], error=None), tmp_path, train={"epochs": 2})
    assert result.kept_epoch == 2
    assert capsys.readouterr().out.count("too few validation events for a standard error of val/score") == 1


def test_lower_is_better_where_the_objective_says_so(tmp_path: Path) -> None:
    scores = [0.9, 0.5, 0.6, 0.4]
    result = run(make_model(), Scripted(scores, is_higher_better=False), tmp_path, train={"epochs": 4})
    assert (result.kept_epoch, result.stop_reason) == (4, "all epochs done")


def test_a_loss_that_is_no_number_stops_with_its_step_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    model, by_epoch = make_model(), {}

    def remember(epoch: int, metrics: dict[str, float]) -> None:
        by_epoch[epoch] = weights_of(model)

    objective = Scripted([0.5, 0.6, 0.7], break_at=len(batches(1)) + 3)
    with pytest.raises(TrainingError, match=r"the training loss became nan at step 3 of epoch 2.*train\.lr"):
        run(model, objective, tmp_path, on_epoch=remember)
    kept = load_tensors(tmp_path / "epoch-000001.safetensors")
    assert are_equal(kept, by_epoch[1])


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(tmp_path: Path) -> None:
    model = make_model()
    # sqrt has the slope inf at 0: the loss is 0 and its gradient NaN
    objective = Scripted([0.5] * 9, break_at=2, broken=lambda loss: (loss * 0).sqrt())
    with pytest.raises(TrainingError, match="step 2 of epoch 1"):
        run(model, objective, tmp_path)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_validation_score_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"val/score.*nan.*epoch 2"):
        run(make_model(), Scripted([0.5, math.nan, 0.7]), tmp_path)
    assert (tmp_path / "epoch-000001.safetensors").is_file()


def test_a_loss_that_breaks_in_the_first_epoch_says_that_nothing_was_kept(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no epoch was done"):
        run(make_model(), Scripted([], break_at=1), tmp_path)
    assert not list(tmp_path.glob("epoch-*"))


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(tmp_path: Path) -> None:
    weights, losses = [], []
    for number, seed in enumerate([1, 1, 2]):
        model = make_model()
        result = run(model, Scripted([0.1, 0.2, 0.3]), tmp_path / str(number), seed=seed, train={"epochs": 3})
        weights.append(weights_of(model))
        losses.append([epoch["train/loss"] for epoch in result.history])
    assert are_equal(weights[0], weights[1])
    assert losses[0] == losses[1]
    assert not are_equal(weights[0], weights[2])


def test_on_epoch_can_stop_training_after_an_epoch_was_logged(tmp_path: Path) -> None:
    logger = MemoryRunLogger()

    def stop(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == 2:
            raise TrainingStopped("lags behind")

    with pytest.raises(TrainingStopped, match="lags behind"):
        run(make_model(), Scripted([0.5] * 8), tmp_path, on_epoch=stop, logger=logger)
    assert logger.metrics["val/score"] == {1: 0.5, 2: 0.5}


def test_every_epoch_is_logged_in_one_call_with_speed_memory_and_rate(tmp_path: Path) -> None:
    calls: list[tuple[int, set[str]]] = []

    class Counting(MemoryRunLogger):
        def log_metrics(self, metrics: Any, *, step: int) -> None:
            calls.append((step, set(metrics)))

    run(make_model(), Scripted([0.5, 0.6]), tmp_path, train={"epochs": 2}, logger=Counting())
    assert [step for step, _ in calls] == [1, 2]
    needed = {"train/loss", "val/loss", "val/score", "train/lr", "train/tokens_per_second", "train/memory_mb"}
    assert needed <= calls[0][1]


def test_frozen_parameters_do_not_move_and_are_not_in_the_checkpoint(tmp_path: Path) -> None:
    model = make_model()
    model.encoder.requires_grad_(False)
    before = weights_of(model.encoder)
    run(model, Scripted([0.5, 0.6]), tmp_path, train={"epochs": 2})
    assert are_equal(before, weights_of(model.encoder))
    assert set(load_tensors(tmp_path / "epoch-000002.safetensors")) == {
        f"head.{n}" for n, _ in model.head.named_parameters()
    }


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    result = run(make_model(), Scripted([k / 10 for k in range(8)]), tmp_path)
    assert result.history[-1]["train/loss"] < 0.5 * result.history[0]["train/loss"]


def test_gradients_are_clipped_to_their_norm_over_all_parameters(tmp_path: Path) -> None:
    model, norms = make_model(), []
    step = torch.optim.AdamW.step

    class Spy(torch.optim.AdamW):
        def step(self, *arguments: Any, **named: Any) -> Any:
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
            return step(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Spy)
        run(model, Scripted([0.5]), tmp_path, train={"epochs": 1, "clip_norm": 0.01})
    assert norms == pytest.approx([0.01] * len(batches(1)), rel=1e-3)


def test_gradients_are_not_clipped_where_their_norm_may_be_inf(tmp_path: Path) -> None:
    ends = []
    for limit in (math.inf, 1e9):
        model = make_model()
        run(model, Scripted([0.5]), tmp_path / str(limit), train={"epochs": 1, "clip_norm": limit})
        ends.append(weights_of(model))
    assert are_equal(*ends)


def test_weight_decay_spares_biases_and_norms(tmp_path: Path) -> None:
    groups: list[Any] = []

    class Spy(torch.optim.AdamW):
        def __init__(self, parameters: Any, **named: Any) -> None:
            super().__init__(parameters, **named)
            groups.extend(self.param_groups)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Spy)
        run(make_model(), Scripted([0.5]), tmp_path, train={"epochs": 1, "weight_decay": 0.3})
    decay = {p.dim() for group in groups for p in group["params"] if group["weight_decay"] == 0.3}
    spared = {p.dim() for group in groups for p in group["params"] if group["weight_decay"] == 0.0}
    assert (decay, spared) == ({2}, {1})


def test_dropout_is_off_in_an_encoder_that_does_not_learn_and_on_in_one_that_does() -> None:
    model = make_model()
    set_training_mode(model)
    assert model.encoder.embeddings.dropout.training
    model.encoder.requires_grad_(False)
    set_training_mode(model)
    assert not any(module.training for module in model.encoder.modules())
    assert model.head.training


def test_evaluation_turns_dropout_and_gradients_off(tmp_path: Path) -> None:
    model = make_model().train()
    assert evaluate(model, Scripted([0.25]), batches(0), ALONE)["val/score"] == 0.25


def test_a_device_that_is_not_there_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.device is tpu.*use: auto, cpu"):
        join_ranks("tpu")


def test_how_busy_a_gpu_was_is_of_training_and_not_of_the_validation_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, validated = [0.0], [0.0]

    class Driver:
        """Busy throughout training, and idle in validation; it tells of the last second."""

        NVMLError = ArithmeticError

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:  # noqa: N802
            return 1000 * now[0]

        def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
            return SimpleNamespace(gpu=100 * min(now[0] - validated[0], 1.0))

    class Timed(Scripted):
        def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
            now[0] += 0.4
            return super().loss(model, batch)

        def score(self, model: nn.Module, batch: Batch) -> int:
            now[0] += 5.0
            validated[0] = now[0]
            return super().score(model, batch)

    monkeypatch.setattr(steps, "meter_of", lambda device: Meter(Driver(), "gpu", clock=lambda: now[0]))
    history = run(make_model(), Timed([1, 2, 3]), tmp_path, train={"epochs": 3}).history
    assert [epoch["train/gpu_busy"] for epoch in history] == [1.0, 1.0, 1.0]
