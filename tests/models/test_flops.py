"""Counted operations of a step against torch's own count of the kernels that it calls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import random_store
from torch.utils.flop_counter import FlopCounterMode

from ehrtrack import plugins
from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.device import place
from ehrtrack.models.flops import StepFlops
from ehrtrack.objectives import contrastive, mlm, survival
from ehrtrack.objectives.base import Objective, TrainingFacts
from ehrtrack.strategies.base import strategy_of

V, N = 50, 30
STORE = random_store(N, V, longest=40)
RNG = np.random.default_rng(0)
OUTCOMES = Outcomes(RNG.uniform(1, 365, N), RNG.random(N) < 0.6)
FACTS = TrainingFacts(np.bincount(STORE.token, minlength=V), OUTCOMES, 365.0)


def objective_named(name: str) -> Objective:
    if name == "mlm":
        return mlm.MaskedTokens(mlm.MaskedTokensConfig(), FACTS)
    if name == "contrastive":
        return contrastive.Contrastive(contrastive.ContrastiveConfig(), FACTS)
    return survival.Survival(survival.SurvivalConfig(n_intervals=5), FACTS)


@pytest.mark.parametrize(
    "case", ["mlm full", "survival full", "survival lora", "survival bitfit", "survival frozen", "survival cached"]
)
def test_operations_are_those_that_torch_counts(case: str) -> None:
    name, strategy = case.split()
    objective = objective_named(name)
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    base = EhrModel(encoder, objective.make_head(encoder.width))
    chosen = "frozen" if strategy == "cached" else strategy
    model = place(strategy_of(plugins.settings("strategies", chosen)()).apply(base), torch.device("cpu"))
    batch = next(iter(Batches(STORE, np.arange(N), 10_000, 60, outcomes=OUTCOMES)))
    if strategy == "cached":
        with torch.no_grad():
            batch = replace(batch, hidden=base.hidden(batch))
    with FlopCounterMode(display=False) as counted:
        loss = objective.loss(model, batch)
        loss.total.backward()  # type: ignore[no-untyped-call]
    flops = StepFlops.of(model)
    assert flops is not None
    found = flops(batch.lengths, n_targets=loss.weight if name == "mlm" else 0, is_cached=strategy == "cached")
    assert found == pytest.approx(counted.get_total_flops(), rel=0.01)


def test_what_a_head_reads_is_not_guessed() -> None:
    encoder = Behrt(ModelConfig(size="tiny"), V)
    assert StepFlops.of(EhrModel(encoder, objective_named("contrastive").make_head(encoder.width))) is None
