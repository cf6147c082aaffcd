"""Fitting the effects of single codes: the least of the penalised loss, few effects, and the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack.data.batch import Batches, Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.code_effects import CodeEffects, Levels
from ehrtrack.objectives import classification, competing_risks, survival
from ehrtrack.objectives._protocol import TrainingFacts

N, V, DRIVER = 300, 40, 7
STORE = random_store(N, V)
HAS_DRIVER = np.array([DRIVER in STORE.token[a:b] for a, b in zip(STORE.offsets, STORE.offsets[1:], strict=False)])
LEVELS = Levels(torch.full((V,), -1), torch.zeros(V))
FIRST = CodeEffects.N_OF_RECORD
"""The column of the first token's presence."""


def facts() -> TrainingFacts:
    rng = np.random.default_rng(0)
    days = rng.exponential(np.where(HAS_DRIVER, 60, 500))
    cause = np.where(days <= 365, 1 + (rng.random(N) < 0.5), 0)
    outcomes = Outcomes(np.minimum(days, 365), days <= 365, cause)
    records = Batches(STORE, np.arange(N), 400, 64, outcomes=outcomes)
    return TrainingFacts(np.ones(V, dtype=np.int64), outcomes, 365.0, records, LEVELS)


def sizes(codes: CodeEffects) -> np.ndarray:
    """(V,) of all effects of a token together."""
    of_token = codes.effect[FIRST : FIRST + V * CodeEffects.N_OF_TOKEN]
    return of_token.abs().reshape(V, -1).sum(dim=1).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("module", [survival, competing_risks, classification])
def test_the_code_that_matters_has_the_largest_effect_and_most_have_none(module: Any) -> None:
    codes = module.build(module.Config(lasso=0.5), facts()).codes
    found = sizes(codes)
    assert found.argmax() == DRIVER
    assert (found == 0).mean() > 0.6
    assert codes.effect.shape[1] == (2 if module is competing_risks else 1)


def test_a_stronger_penalty_leaves_fewer_and_smaller_effects() -> None:
    weak, strong = (sizes(survival.build(survival.Config(lasso=s), facts()).codes) for s in (0.1, 0.5))
    assert (strong > 0).sum() < (weak > 0).sum() / 2
    assert strong[DRIVER] < weak[DRIVER]


@pytest.mark.parametrize("strength", [0.15, 0.3])  # at the first, L-BFGS-B ends too early and has to start again
def test_no_small_change_of_an_effect_lowers_the_penalised_loss(strength: float) -> None:
    objective = survival.build(survival.Config(lasso=strength), facts())
    assert objective.codes is not None
    batch = next(iter(Batches(STORE, np.arange(N), 10**6, 64, outcomes=facts().outcomes)))
    entries = objective.codes.entries(batch)
    table = torch.zeros(N, len(objective.codes.effect)).index_put((entries.subject, entries.column), entries.value)
    used = (table != 0).any(dim=0)
    spread = table.std(dim=0, correction=0) + 0.01
    weight = strength * np.sqrt(np.log(int(used.sum())) / N)
    shift = objective.codes(batch).detach().requires_grad_()
    logits = shift + objective.baseline_logits()
    objective._loss(logits, facts().outcomes).backward()  # type: ignore[no-untyped-call, arg-type]
    slope = (table.T @ shift.grad / spread[:, None])[used].flatten()  # type: ignore[operator]
    effect = objective.codes.effect[used].flatten()
    assert float(shift.grad.sum().abs()) < 1e-3  # type: ignore[union-attr]
    assert float(slope.abs().max()) < 1.02 * weight  # those at 0 gain less than the penalty takes
    not_zero = effect != 0
    torch.testing.assert_close(slope[not_zero], -weight * effect[not_zero].sign(), rtol=0, atol=0.02 * weight)


def test_without_a_strength_the_head_has_none_and_with_one_it_predicts_with_them_from_the_start() -> None:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    plain, fitted = (survival.build(survival.Config(lasso=s), facts()) for s in (0.0, 0.3))
    assert plain.make_head(encoder.width).codes is None  # type: ignore[attr-defined]
    batch = next(iter(Batches(STORE, np.arange(N), 10**6, 64)))
    with torch.no_grad():
        logits = EhrModel(encoder, fitted.make_head(encoder.width)).eval()(batch)
        expected = fitted.codes(batch) + fitted.baseline_logits()  # type: ignore[misc]
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.15)
    assert expected.std(dim=0).min() > 0.3
