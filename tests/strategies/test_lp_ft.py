"""LP-FT: the encoder stays as it is for the first epochs and moves after them; resumed in between, it ends the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import Tensor

from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives import survival
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.strategies.lp_ft import LpFt
from ehrtrack.strategies.settings import LpFtConfig
from ehrtrack.training.loop import TrainConfig, fit
from ehrtrack.training.ranks import join_ranks
from ehrtrack.training.stopping import TrainingStopped

N, V = 30, 20
STORE = random_store(N, V)
RNG = np.random.default_rng(0)
OUTCOMES = Outcomes(RNG.uniform(1, 365, N), RNG.random(N) < 0.6)


def train(folder: Path, *, stop_after: int = 0) -> dict[str, list[Tensor]]:
    """By name, the head's and the encoder's tensors after each epoch; the first is of before."""
    torch.manual_seed(1)
    encoder = Behrt(ModelConfig(size="tiny", dropout=0.1), V)
    facts = TrainingFacts(np.ones(V, dtype=np.int64), OUTCOMES, 365.0)
    objective = survival.Survival(survival.SurvivalConfig(n_intervals=4), facts)
    strategy = LpFt(LpFtConfig(head_epochs=2))
    model = EhrModel(encoder, objective.make_head(encoder.width))
    strategy.apply(model)
    seen: dict[str, list[Tensor]] = {"encoder": [], "head": []}

    def look(epoch: int = 0, metrics: dict[str, float] | None = None) -> None:
        for part, tensors in seen.items():
            parameters = model.get_submodule(part).parameters()
            tensors.append(torch.cat([p.detach().flatten().clone() for p in parameters]))
        if epoch == stop_after:
            raise TrainingStopped

    if stop_after:
        with pytest.raises(TrainingStopped):
            fit_epochs(folder, model, objective, strategy, look)
        return seen
    look(-1)
    fit_epochs(folder, model, objective, strategy, look)
    return seen


def fit_epochs(folder: Path, model: EhrModel, objective: survival.Survival, strategy: LpFt, look: object) -> None:
    batches = Batches(STORE, np.arange(N), 200, 20, outcomes=OUTCOMES)
    fit(
        model,
        objective,
        training=lambda epoch: Batches(STORE, np.arange(N), 200, 20, outcomes=OUTCOMES, shuffle_seed=epoch),
        validation=batches,
        config=TrainConfig(epochs=4, lr=1e-2, patience=9),
        ranks=join_ranks("cpu"),
        folder=folder,
        logger=MemoryRunLogger(),
        on_epoch=look,  # type: ignore[arg-type]
        begin_epoch=lambda epoch: strategy.begin_epoch(model, epoch),
    )


def test_the_encoder_waits_until_the_head_has_learnt(tmp_path: Path) -> None:
    seen = train(tmp_path)
    encoder, head = seen["encoder"], seen["head"]
    assert torch.equal(encoder[0], encoder[1])
    assert torch.equal(encoder[0], encoder[2])
    assert not torch.equal(encoder[2], encoder[3])
    assert not torch.equal(head[0], head[1])


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_run_that_is_resumed_in_either_phase_ends_as_one_that_was_not_cut_off(
    stop_after: int, tmp_path: Path
) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "cut", stop_after=stop_after)
    resumed = train(tmp_path / "cut")
    assert torch.equal(resumed["encoder"][-1], whole["encoder"][-1])
    assert torch.equal(resumed["head"][-1], whole["head"][-1])
