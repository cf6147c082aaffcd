"""What every objective must do; a new module in ehrtrack/objectives is tested here on arrival."""

from __future__ import annotations

import math
import typing
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack import plugins
from ehrtrack.data.batch import Batches, Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives.base import Objective, TrainingFacts
from ehrtrack.section import Choice
from ehrtrack.training.loop import evaluate
from ehrtrack.training.ranks import join_ranks

N_SUBJECTS = 60
V = 30
STORE = random_store(N_SUBJECTS, V)
ALONE = join_ranks("cpu")


def outcomes() -> Outcomes:
    rng = np.random.default_rng(0)
    days = rng.uniform(1, 500, N_SUBJECTS)  # some are followed to the horizon of a year
    is_event = (rng.random(N_SUBJECTS) < 0.6) & (days < 365)
    return Outcomes(np.minimum(days, 365.0), is_event, is_event * rng.integers(1, 3, N_SUBJECTS))


def batches() -> Batches:
    return Batches(STORE, np.arange(N_SUBJECTS), 300, 30, outcomes=outcomes())


@pytest.fixture(params=plugins.names("objectives"))
def module(request: pytest.FixtureRequest) -> ModuleType:
    return plugins.load("objectives", typing.cast(str, request.param))


@pytest.fixture
def objective(module: ModuleType) -> Objective:
    counts = np.bincount(STORE.token, minlength=V)
    return typing.cast(Objective, module.build(module.Config(), TrainingFacts(counts, outcomes(), 365.0, batches())))


@pytest.fixture
def model(objective: Objective) -> EhrModel:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    return EhrModel(encoder, objective.make_head(encoder.width))


def test_config_is_a_choice_that_carries_the_modules_name(module: ModuleType) -> None:
    config = module.Config()
    assert isinstance(config, Choice)
    assert config.name == module.__name__.rsplit(".", 1)[-1].replace("_", "-")


def test_the_loss_is_one_finite_number_whose_gradient_reaches_encoder_and_head(
    objective: Objective, model: EhrModel
) -> None:
    loss = objective.loss(model, next(iter(batches())))
    assert loss.total.shape == ()
    assert math.isfinite(loss.mean)
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_same_batch_gives_the_same_loss(objective: Objective, model: EhrModel) -> None:
    model.eval()
    batch = next(iter(batches()))
    losses = [objective.loss(model, batch).mean for _ in range(2)]
    assert losses[0] == losses[1]


def test_under_bfloat16_the_loss_is_nearly_the_same_and_gradients_are_finite(
    objective: Objective, model: EhrModel
) -> None:
    batch = next(iter(batches()))
    full = objective.loss(model.eval(), batch).mean
    model.is_bf16 = True
    loss = objective.loss(model, batch)
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert loss.mean == pytest.approx(full, rel=0.02)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_a_batch_in_which_there_is_nothing_to_predict_has_a_loss_that_changes_nothing_or_a_target(
    objective: Objective, model: EhrModel
) -> None:
    alone = replace(batches(), rows=np.array([1]), max_tokens=8)  # one subject, and no more than a visit or two
    loss = objective.loss(model.eval(), next(iter(alone)))
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert loss.weight >= 1
    assert math.isfinite(loss.mean)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_pretraining_objective_names_the_trivial_loss_that_is_reported_beside_its_own(
    objective: Objective, model: EhrModel
) -> None:
    metrics = evaluate(model, objective, batches(), ALONE)
    for loss, trivial in getattr(objective, "trivial", {}).items():
        assert {loss, trivial} <= metrics.keys()


def test_the_total_is_the_mean_times_the_weight(objective: Objective, model: EhrModel) -> None:
    loss = objective.loss(model.eval(), next(iter(batches())))
    assert loss.total.item() == pytest.approx(loss.mean * loss.weight, rel=1e-6)


def test_validation_has_a_loss_and_the_metrics_that_select(objective: Objective, model: EhrModel) -> None:
    metrics = evaluate(model, objective, batches(), ALONE)
    assert {"val/loss", *objective.selection.metrics} <= metrics.keys()
    assert objective.selection.error in metrics or not objective.selection.error
    assert all(name.startswith("val/") and math.isfinite(value) for name, value in metrics.items())


def test_validation_is_the_same_twice_and_changes_nothing(objective: Objective, model: EhrModel) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert evaluate(model, objective, batches(), ALONE) == evaluate(model, objective, batches(), ALONE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_selection_prefers_the_better_score(objective: Objective) -> None:
    selection = objective.selection
    low, high = ({selection.metric: value, selection.among: 0.2} for value in (0.4, 0.6))
    assert selection.best_epoch([low, high]) == (2 if selection.is_higher_better else 1)
    assert selection.best_epoch([high, low]) == (1 if selection.is_higher_better else 2)
    assert selection.best_epoch([low, low]) == 1
