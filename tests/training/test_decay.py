"""What weight decay pulls towards 0: true weight matrices, in every kind of model that AdamW trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import nn

from ehrtrack import plugins
from ehrtrack.baselines.sequence import ENCODERS, _network
from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig, Recency
from ehrtrack.models.heads import CodeHead, HazardHead
from ehrtrack.objectives.base import Objective, TrainingFacts
from ehrtrack.strategies.base import strategy_of
from ehrtrack.training.loop import TrainConfig, Training
from ehrtrack.training.ranks import join_ranks

N, V = 60, 30
STORE = random_store(N, V)
RNG = np.random.default_rng(0)
DAYS = RNG.uniform(1, 500, N)
IS_EVENT = (RNG.random(N) < 0.6) & (DAYS < 365)
OUTCOMES = Outcomes(np.minimum(DAYS, 365.0), IS_EVENT, IS_EVENT * RNG.integers(1, 3, N))


def objective_named(name: str) -> Any:
    chosen = plugins.plugin("objectives", name, Objective)
    counts = np.bincount(STORE.token, minlength=V)
    batches = Batches(STORE, np.arange(N), 300, 30, outcomes=OUTCOMES)
    return chosen(chosen.Config(), TrainingFacts(counts, OUTCOMES, 365.0, batches))


def model_for(objective: Any) -> EhrModel:
    encoder = Behrt(ModelConfig(size="tiny"), V)
    return EhrModel(encoder, objective.make_head(encoder.width))


def decayed(model: nn.Module, objective: Any, folder: Path) -> set[str]:
    """Names of the parameters whose group of the optimiser has weight decay."""
    config = TrainConfig(weight_decay=0.3)
    run = Training(model, objective, config=config, ranks=join_ranks("cpu"), folder=folder, snapshot_seconds=1e9)
    run.close()
    groups = run.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(run.trainable)
    with_decay = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    return {name for name, p in run.trainable.items() if id(p) in with_decay}


def matrices(model: nn.Module) -> set[str]:
    """Names of the learning weight matrices, by the modules that they are of."""
    names = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            names.add(f"{path}.weight")
        elif isinstance(module, nn.RNNCellBase):
            names |= {f"{path}.weight_ih", f"{path}.weight_hh"}
        elif isinstance(module, Recency):
            names |= {f"{path}.scale", f"{path}.shift"}
    return names & {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", plugins.names("objectives"))
def test_of_every_objectives_model_the_matrices_decay_and_nothing_else(name: str, tmp_path: Path) -> None:
    objective = objective_named(name)
    model = model_for(objective)
    assert decayed(model, objective, tmp_path) == matrices(model)


@pytest.mark.parametrize("name", plugins.names("strategies"))
def test_of_every_strategys_model_the_matrices_decay_and_nothing_else(name: str, tmp_path: Path) -> None:
    objective = objective_named("competing-risks")
    model = strategy_of(plugins.settings("strategies", name)()).apply(model_for(objective))
    found = decayed(model, objective, tmp_path)
    assert found == matrices(model)
    assert found


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_of_every_sequence_baselines_model_the_matrices_decay_and_nothing_else(name: str, tmp_path: Path) -> None:
    objective = objective_named("survival")
    model = _network({"name": name, "width": 8, "n_codes": V}, objective.make_head(8), dropout=0.0)
    assert decayed(model, objective, tmp_path) == matrices(model)


@pytest.mark.parametrize(
    ("head", "start"),
    [
        (CodeHead(32, torch.arange(5), torch.full((3, 5), -6.0)), "head.bias"),
        (HazardHead(32, torch.full((4, 2), -5.0)), "head.baseline"),
    ],
)
def test_where_a_head_begins_does_not_decay(head: Any, start: str, tmp_path: Path) -> None:
    """Without this, rates of codes and hazards of causes grew by 1.2 to 26 times over thousands of steps."""
    model = EhrModel(Behrt(ModelConfig(size="tiny"), V), head)
    assert dict(model.named_parameters())[start].dim() == 2
    assert start not in decayed(model, objective_named("survival"), tmp_path)
