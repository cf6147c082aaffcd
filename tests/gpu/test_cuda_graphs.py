"""Steps and validation that are recorded as CUDA graphs: the numbers of the plain path, and new dropout each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import Tensor, nn

from ehrtrack import plugins
from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives import mlm, survival
from ehrtrack.objectives.base import Objective, TrainingFacts
from ehrtrack.strategies.base import strategy_of
from ehrtrack.training import steps
from ehrtrack.training.graphs import CudaRecorder, Graphs, Recorder
from ehrtrack.training.loop import TrainConfig, Training, evaluate
from ehrtrack.training.ranks import Ranks, join_ranks

V, N = 30, 120
STORE = random_store(N, V)
RNG = np.random.default_rng(0)
OUTCOMES = Outcomes(RNG.uniform(1, 365, N), RNG.random(N) < 0.6)
CUDA = torch.device("cuda")
CASES = ("mlm full", "survival full", "survival lora")


def batches(seed: int | None) -> Batches:
    return Batches(STORE, np.arange(N), 150, 20, outcomes=OUTCOMES, shuffle_seed=seed)


def objective_named(name: str) -> Objective:
    facts = TrainingFacts(np.bincount(STORE.token, minlength=V), OUTCOMES, 365.0)
    if name == "mlm":
        return mlm.MaskedTokens(mlm.MaskedTokensConfig(), facts)
    return survival.Survival(survival.SurvivalConfig(n_intervals=5, lambda_rank=0.3), facts)


def model_for(objective: Objective, strategy: str, *, is_bf16: bool, dropout: float) -> nn.Module:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny", dropout=dropout), V)
    base = EhrModel(encoder, objective.make_head(encoder.width))
    base.is_bf16 = is_bf16
    model = strategy_of(plugins.settings("strategies", strategy)()).apply(base)
    if dropout == 0:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model.to(CUDA)


def trained(
    case: str, folder: Path, recorder: Callable[..., Recorder | None], *, is_bf16: bool, dropout: float = 0.0
) -> tuple[list[float], list[float], Tensor, Graphs | None]:
    """Losses of the steps of three epochs, and of validation after each; all weights then, and what was recorded."""
    name, strategy = case.split()
    objective, losses, validated = objective_named(name), [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "recorder_for", recorder)
        training = Training(
            model_for(objective, strategy, is_bf16=is_bf16, dropout=dropout),
            objective,
            config=TrainConfig(lr=1e-3, batch_tokens=150, graph="auto"),
            ranks=Ranks(join_ranks("cpu").accelerator, CUDA),
            folder=folder,
            snapshot_seconds=0.05,
            on_steps=lambda n, loss: losses.append(loss),
            batches_between=1,
        )
    for epoch in (1, 2, 3):
        training.train_epoch(batches(epoch))
        metrics = evaluate(training.model, objective, batches(None), training.ranks, graphs=training.graphs)
        validated.append(metrics["val/loss"])
        training.progress.epoch, training.progress.n_done, training.progress.n_batches = epoch + 1, 0, 0
    training.close()
    weights = torch.cat([p.detach().flatten().float() for p in training.trainable.values()])
    return losses, validated, weights, training.graphs


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_and_validation_have_the_numbers_of_the_plain_path(
    case: str, is_bf16: bool, tmp_path: Path
) -> None:
    tolerance = 0.02 if is_bf16 else 1e-5
    plain, expected_validated, expected, _ = trained(case, tmp_path / "plain", lambda *_: None, is_bf16=is_bf16)
    losses, validated, found, graphs = trained(case, tmp_path / "graph", lambda *_: CudaRecorder(CUDA), is_bf16=is_bf16)
    assert graphs is not None
    assert all(step.replay is not None for step in graphs.steps.values())
    assert all(forward.replay is not None for forward in graphs.forwards.values())
    assert len(losses) > 20
    assert losses == pytest.approx(plain, abs=tolerance, rel=tolerance)
    assert validated == pytest.approx(expected_validated, abs=tolerance, rel=tolerance)
    assert float((found - expected).norm() / expected.norm()) < (0.02 if is_bf16 else 1e-4)


def test_replayed_steps_draw_new_dropout_each_time_and_the_same_again(tmp_path: Path) -> None:
    runs = [
        trained("mlm full", tmp_path / str(n), lambda *_: CudaRecorder(CUDA), is_bf16=True, dropout=0.3)[0]
        for n in (1, 2)
    ]
    plain = trained("mlm full", tmp_path / "plain", lambda *_: None, is_bf16=True, dropout=0.3)[0]
    assert runs[0] == pytest.approx(runs[1], rel=0.02)
    assert len({round(loss, 5) for loss in runs[0]}) == len(plain)
