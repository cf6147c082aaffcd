"""What two ranks compute together, written down by rank 0: started by torchrun, and alone as the case of one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from simulated import random_store
from torch import nn

from ehrtrack import plugins
from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives import mlm, survival
from ehrtrack.objectives.base import Objective, TrainingFacts
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.strategies.base import strategy_of
from ehrtrack.training.loop import TrainConfig, Training, fit
from ehrtrack.training.ranks import Ranks, join_ranks

V, N = 30, 48
STORE = random_store(N, V)
RNG = np.random.default_rng(0)
OUTCOMES = Outcomes(RNG.uniform(1, 365, N), RNG.random(N) < 0.6)
BUDGET = 110
CASES = (("survival", "full"), ("survival", "lora"), ("mlm", "full"))


def objective_named(name: str) -> Objective:
    facts = TrainingFacts(np.bincount(STORE.token, minlength=V), OUTCOMES, 365.0)
    if name == "mlm":
        return mlm.MaskedTokens(mlm.MaskedTokensConfig(), facts)
    return survival.Survival(survival.SurvivalConfig(n_intervals=5, lambda_rank=0.3), facts)


def model_for(objective: Objective, strategy: str) -> nn.Module:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny", dropout=0.0), V)
    model = EhrModel(encoder, objective.make_head(encoder.width))
    applied = strategy_of(plugins.settings("strategies", strategy)()).apply(model)
    for module in applied.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # so that a batch and its halves are the same function
    for name, parameter in applied.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return applied


def batches(shuffle_seed: int | None = None) -> Batches:
    return Batches(STORE, np.arange(N), BUDGET, 20, outcomes=OUTCOMES, shuffle_seed=shuffle_seed)


def gradients(ranks: Ranks, objective: Objective, strategy: str, folder: Path) -> dict[str, Any]:
    """Clipped gradients of one step on the subjects that two ranks have in their first batch."""
    model = model_for(objective, strategy).to(ranks.device)
    training = Training(
        model, objective, config=TrainConfig(clip_norm=1e9), ranks=ranks, folder=folder, snapshot_seconds=1e9
    )
    pair = [next(iter(replace(batches(3), rank=rank, n_ranks=2))) for rank in (0, 1)]
    if ranks.count == 2:
        mine = [pair[ranks.number]]
    elif isinstance(objective, mlm.MaskedTokens):  # the same masks; the two are one step
        mine = pair
    else:  # the doubled batch, in which all subjects are ranked
        rows = np.concatenate([batch.rows.numpy() for batch in pair])
        mine = [next(iter(Batches(STORE, rows, 10 * BUDGET, 20, outcomes=OUTCOMES)))]
        assert len(mine[0].lengths) == len(rows)
    training.take_step(mine)
    training.close()
    return {name: p.grad.tolist() for name, p in training.trainable.items() if p.grad is not None}


def history(
    ranks: Ranks, objective: Objective, folder: Path, epochs: int, strategy: str = "full"
) -> list[dict[str, float]]:
    """Metrics of a training in which each step takes two batches."""
    model = model_for(objective, strategy).to(ranks.device)
    chosen = strategy_of(plugins.settings("strategies", strategy)())
    result = fit(
        model,
        objective,
        training=batches,
        validation=batches(),
        config=TrainConfig(epochs=epochs, lr=5e-3, accumulate=2 // ranks.count),
        ranks=ranks,
        folder=folder,
        logger=MemoryRunLogger(),
        begin_epoch=lambda epoch: chosen.begin_epoch(model, epoch),
    )
    return result.history


def main(out: Path, device: str = "cpu") -> None:
    """Everything at once, since starting processes is what takes time."""
    ranks = join_ranks(device)
    folder = out.with_suffix("")
    found: dict[str, Any] = {}
    for name, strategy in CASES:
        case = f"{name} {strategy}"
        found[case] = gradients(ranks, objective_named(name), strategy, folder / case)
    found["history"] = history(ranks, objective_named("mlm"), folder / "run", epochs=2)
    found["resumed"] = history(ranks, objective_named("mlm"), folder / "run", epochs=4)
    found["phases"] = history(ranks, objective_named("mlm"), folder / "phases", epochs=4, strategy="lp-ft")
    if ranks.is_main:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
