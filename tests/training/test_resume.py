"""Going on from a snapshot: bit for bit as if there had been no stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import Tensor

from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives import survival
from ehrtrack.objectives.base import BatchLoss, TrainingFacts
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.training.loop import FitResult, TrainConfig, fit
from ehrtrack.training.ranks import join_ranks

V, N = 30, 60
STORE = random_store(N, V)
RNG = np.random.default_rng(0)
OUTCOMES = Outcomes(RNG.uniform(1, 365, N), RNG.random(N) < 0.6)
TIMES = {"train/tokens_per_second", "train/tflops_per_second", "train/epoch_seconds", "train/memory_mb"}


class Stop(Exception):
    pass


def objective(stop_at: int = 0, select_by: Literal["c_index", "ibs"] = "c_index") -> survival.Survival:
    """The survival objective, which raises at its n-th batch."""
    facts = TrainingFacts(np.ones(V, dtype=np.int64), OUTCOMES, 365.0)
    built, n_seen = survival.Survival(survival.SurvivalConfig(n_intervals=5, select_by=select_by), facts), 0
    loss: Callable[..., BatchLoss] = built.loss

    def counted(*arguments: Any) -> BatchLoss:
        nonlocal n_seen
        n_seen += 1
        if n_seen == stop_at:
            raise Stop
        return loss(*arguments)

    built.loss = counted  # type: ignore[method-assign]
    return built


def train(
    folder: Path,
    *,
    stop_at: int = 0,
    snapshot_seconds: float = 1e9,
    select_by: Literal["c_index", "ibs"] = "c_index",
    **settings: Any,
) -> tuple[FitResult, dict[str, Tensor], MemoryRunLogger]:
    torch.manual_seed(7)
    encoder = Behrt(ModelConfig(size="tiny", dropout=0.2), V)
    scores, logger = objective(stop_at, select_by), MemoryRunLogger()
    model = EhrModel(encoder, scores.make_head(encoder.width))
    torch.manual_seed(int(torch.randint(1000, (), generator=torch.Generator().manual_seed(stop_at))))  # must not matter
    config = TrainConfig(**{"epochs": 4, "lr": 5e-3, "batch_tokens": 120, "patience": 2} | settings)
    assert config.batch_tokens != "auto"
    batches = Batches(STORE, np.arange(N), config.batch_tokens, 20, outcomes=OUTCOMES)

    def epoch(number: int) -> Batches:
        return Batches(STORE, np.arange(N), batches.batch_tokens, 20, outcomes=OUTCOMES, shuffle_seed=number)

    result = fit(
        model,
        scores,
        training=epoch,
        validation=batches,
        config=config,
        ranks=join_ranks("cpu"),
        folder=folder,
        logger=logger,
        snapshot_seconds=snapshot_seconds,
        batches_between=3,
    )
    return result, {name: value.clone() for name, value in model.state_dict().items()}, logger


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in epoch.items() if name not in TIMES} for epoch in history]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop_at", [2, 9, 13, 20])
def test_a_run_that_was_cut_off_ends_bit_identical_to_one_that_was_not(
    stop_at: int, accumulate: int, tmp_path: Path
) -> None:
    whole, weights, logged = train(tmp_path / "whole", accumulate=accumulate)
    with pytest.raises(Stop):
        train(tmp_path / "cut", stop_at=stop_at, snapshot_seconds=0, accumulate=accumulate)
    resumed, weights_then, logged_then = train(tmp_path / "cut", accumulate=accumulate)
    of_steps = logged_then.metrics["train/step_loss"]
    assert of_steps.items() <= logged.metrics["train/step_loss"].items()
    assert max(of_steps) == max(logged.metrics["train/step_loss"])
    assert without_times(resumed.history) == without_times(whole.history)
    assert (resumed.kept_epoch, resumed.stop_reason) == (whole.kept_epoch, whole.stop_reason)
    assert all(torch.equal(value, weights_then[name]) for name, value in weights.items())


def test_without_snapshots_between_it_goes_on_from_the_last_epochs_end(tmp_path: Path) -> None:
    whole, weights, _ = train(tmp_path / "whole")
    n_batches = int(whole.history[0]["train/batches"])
    with pytest.raises(Stop):
        train(tmp_path / "cut", stop_at=n_batches + 4)
    resumed, weights_then, logger = train(tmp_path / "cut")
    assert 1 not in logger.metrics["train/loss"]  # the first epoch is not logged again
    assert without_times(resumed.history) == without_times(whole.history)
    assert all(torch.equal(value, weights_then[name]) for name, value in weights.items())


def test_the_loss_within_an_epoch_is_logged_every_so_many_batches(tmp_path: Path) -> None:
    whole, _, logger = train(tmp_path, epochs=1)
    n_batches = int(whole.history[0]["train/batches"])
    of_steps = logger.metrics["train/step_loss"]
    assert list(of_steps) == list(range(3, n_batches + 1, 3))


def test_a_run_whose_memory_did_not_suffice_goes_on_with_smaller_batches(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(tmp_path, stop_at=4, snapshot_seconds=0)
    resumed, _, _ = train(tmp_path, batch_tokens=60, accumulate=2, patience=4)
    assert len(resumed.history) == 4
    assert resumed.history[0]["train/batches"] > 1.5 * resumed.history[0]["train/batches"] // 2


def test_a_finished_run_that_is_started_again_trains_no_step(tmp_path: Path) -> None:
    whole, weights, _ = train(tmp_path)
    again, weights_then, logger = train(tmp_path, stop_at=1)
    assert logger.metrics == {}
    assert again.history == whole.history
    assert all(torch.equal(value, weights_then[name]) for name, value in weights.items())
