"""Heads that are solved for: what they learn, from whom, and by whom validation subjects are judged."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.heads import HazardHead, ProjectionHead
from ehrtrack.models.record_columns import Levels
from ehrtrack.objectives.base import OutcomeObjective, TrainingFacts
from ehrtrack.objectives.classification import Classification
from ehrtrack.objectives.competing_risks import CompetingRisks
from ehrtrack.objectives.survival import Survival, SurvivalConfig
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.ridge import axes_of
from ehrtrack.training.loop import FitResult
from ehrtrack.training.ridge_head import check_solvable, solve_head, start_at_solved_head

N, N_TRAINING, V, DRIVER = 240, 180, 30, 7
STORE = random_store(N, V)
HAS_DRIVER = np.array([DRIVER in STORE.token[a:b] for a, b in zip(STORE.offsets, STORE.offsets[1:], strict=False)])
AGE = STORE.end_age_years.astype(np.float64)
CPU = torch.device("cpu")


def outcomes(log_hazard: np.ndarray) -> Outcomes:
    rng = np.random.default_rng(0)
    days = rng.exponential(500 * np.exp(-log_hazard))
    cause = np.where(days <= 365, 1 + (rng.random(N) < 0.5), 0)
    return Outcomes(np.minimum(days, 365), days <= 365, cause)


class Solved(NamedTuple):
    model: EhrModel
    objective: OutcomeObjective
    validation: Batches
    result: FitResult


class Unsolved(NamedTuple):
    model: EhrModel
    objective: OutcomeObjective
    training: Batches
    validation: Batches


def unsolved(of: Outcomes, kind: type[OutcomeObjective] = Survival) -> Unsolved:
    rng = np.random.default_rng(1)
    rows = rng.permutation(N)  # so that an order is not kept by luck
    training, validation = (
        Batches(STORE, part, 300, 64, outcomes=of) for part in (rows[:N_TRAINING], rows[N_TRAINING:])
    )
    facts = TrainingFacts(np.ones(V, dtype=np.int64), of[training.rows], 365.0, training)
    objective = kind(kind.Config(**({} if kind is Classification else {"n_intervals": 4})), facts)
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    model = EhrModel(encoder, objective.make_head(encoder.width)).requires_grad_(False)
    return Unsolved(model, objective, training, validation)


def solved(of: Outcomes, kind: type[OutcomeObjective] = Survival) -> Solved:
    model, objective, training, validation = unsolved(of, kind)
    return Solved(model, objective, validation, solve_head(model, objective, training=training, validation=validation))


DRIVEN = outcomes(np.where(HAS_DRIVER, 2.0, 0.0))


@pytest.fixture(scope="module")
def driven() -> Solved:
    """Of a hazard that is seven times as high for those who have one code."""
    return solved(DRIVEN)


def all_rows(of: Outcomes) -> Batches:
    return Batches(STORE, np.arange(N), 300, 64, outcomes=of)


def test_it_learns_from_the_states_what_a_code_does(driven: Solved) -> None:
    risk = driven.objective.predict(driven.model, all_rows(DRIVEN), CPU).risk
    assert c_index(risk, DRIVEN.follow_up_days, DRIVEN.is_event) > 0.65
    head = driven.model.head
    assert isinstance(head, HazardHead)
    assert (head.out.weight[0] != 0).any()
    assert (head.out.weight[1] == 0).all()  # no drift


def test_the_weights_have_the_loss_that_was_least(driven: Solved) -> None:
    with torch.no_grad():
        losses = [
            float(driven.objective.likelihood(driven.model(batch), batch.outcomes)) * len(batch.lengths)
            for batch in all_rows(DRIVEN)
            if batch.outcomes is not None
        ]
    assert sum(losses) / N == pytest.approx(driven.result.kept["train/loss"], abs=1e-4)


def test_validation_subjects_are_judged_by_models_that_never_saw_their_outcome(driven: Solved) -> None:
    """Another length of follow-up of one of them changes what the model says of that subject, who is learned from, and
    hardly what is said by the twin, which has the penalty alone in common."""
    row = int(driven.validation.rows[DRIVEN[driven.validation.rows].is_event.argmax()])
    days = DRIVEN.follow_up_days.copy()
    days[row] = 364.0 if days[row] < 180 else 1.0
    other = solved(replace(DRIVEN, follow_up_days=days))
    place = int(np.flatnonzero(driven.validation.rows == row)[0])
    by_twin, by_model = [], []
    for one in (driven, other):
        assert one.result.held_out is not None
        np.testing.assert_array_equal(one.result.held_out.rows, one.validation.rows)
        by_twin.append(one.result.held_out.survival[place])
        by_model.append(one.objective.predict(one.model, one.validation, CPU).survival[place])
    of_twin, of_model = (float(np.abs(np.subtract(*said)).max()) for said in (by_twin, by_model))
    assert of_twin < 0.2 * of_model


def test_the_metrics_are_those_of_the_held_out_predictions(driven: Solved) -> None:
    held_out, of = driven.result.held_out, DRIVEN[driven.validation.rows]
    assert held_out is not None
    assert driven.result.kept["val/c_index"] == pytest.approx(c_index(held_out.risk, of.follow_up_days, of.is_event))
    assert driven.result.kept_epoch == 1


def test_states_that_tell_nothing_leave_it_at_age() -> None:
    of = outcomes((AGE - AGE.mean()) / AGE.std())
    by_age = solved(of)
    rows = by_age.validation.rows
    held_out, truth = by_age.result.held_out, of[by_age.validation.rows]
    assert held_out is not None
    found, alone = (c_index(risk, truth.follow_up_days, truth.is_event) for risk in (held_out.risk, AGE[rows]))
    assert found > alone - 0.03


@pytest.mark.parametrize("kind", [CompetingRisks, Classification])
def test_other_objectives_with_a_hazard_head_are_solved_alike(kind: type[OutcomeObjective]) -> None:
    of_kind = solved(DRIVEN, kind)
    held_out = of_kind.result.held_out
    assert held_out is not None
    risk = of_kind.objective.predict(of_kind.model, all_rows(DRIVEN), CPU).risk
    assert c_index(risk, DRIVEN.follow_up_days, DRIVEN.is_event) > 0.65
    assert held_out.survival.shape == (N - N_TRAINING, len(of_kind.objective.grid.edges_days))
    assert (held_out.incidence is not None) is (kind is CompetingRisks)


def test_a_start_is_solved_for_on_training_subjects_alone() -> None:
    """Validation subjects are to choose the epoch: what became of them has no part in it."""
    one = unsolved(DRIVEN)
    rows = one.validation.rows
    days, is_event = DRIVEN.follow_up_days.copy(), DRIVEN.is_event.copy()
    days[rows], is_event[rows] = 1.0, True
    other = unsolved(replace(DRIVEN, follow_up_days=days, is_event=is_event))
    risks = []
    for model, objective, training, _ in (one, other):
        start_at_solved_head(model, objective, training)
        risks.append(objective.predict(model, all_rows(DRIVEN), CPU).risk)
    np.testing.assert_array_equal(*risks)
    of = DRIVEN[rows]
    assert c_index(risks[0][rows], of.follow_up_days, of.is_event) > 0.6


def test_a_head_with_an_offset_or_of_another_kind_is_refused() -> None:
    levels = Levels(torch.full((V,), -1), torch.zeros(V))
    facts = TrainingFacts(np.ones(V, dtype=np.int64), DRIVEN, 365.0, all_rows(DRIVEN), levels)
    for head in (Survival(SurvivalConfig(lasso=0.5), facts).make_head(32), ProjectionHead(32, 4)):
        with pytest.raises(ConfigError, match=r"set objective.lasso=0, or strategy.head=trained"):
            check_solvable(head, DRIVEN)


def test_one_event_is_too_few() -> None:
    rare = Outcomes(DRIVEN.follow_up_days, np.arange(N) == 0)
    with pytest.raises(DataError, match="1 of 240 subjects to learn from have the event"):
        check_solvable(HazardHead(32, torch.zeros(3)), rare)


@pytest.mark.parametrize("n", [7, 60])
def test_states_are_read_on_no_more_axes_than_they_differ_in(n: int) -> None:
    """A network that has one state for a record repeats it; a ridge regression is the same on the axes."""
    z = np.tile(np.random.default_rng(0).standard_normal((n, 10)), 3)
    axes, _ = axes_of(z)
    assert axes.shape == (30, min(n, 10))
    np.testing.assert_allclose(axes.T @ axes, np.eye(min(n, 10)), atol=1e-9)
    np.testing.assert_allclose(z @ axes @ axes.T, z, atol=1e-9)
