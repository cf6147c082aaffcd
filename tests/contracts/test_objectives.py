"""What every objective must do; a new module in ehrtrack/objectives is tested here on arrival."""

from __future__ import annotations

import math
import typing
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack import plugins
from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import CheckpointError, NotMeasurable
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives.base import Objective, OutcomeObjective, PretrainingObjective, TrainingFacts
from ehrtrack.objectives.settings import OutcomeSettings, PretrainingSettings
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
def name(request: pytest.FixtureRequest) -> str:
    return typing.cast(str, request.param)


@pytest.fixture
def objective(name: str) -> Objective:
    facts = TrainingFacts(np.bincount(STORE.token, minlength=V), outcomes(), 365.0, batches())
    return plugins.plugin("objectives", name, Objective)(plugins.settings("objectives", name)(), facts)


@pytest.fixture
def of_outcome(objective: Objective) -> OutcomeObjective:
    if not isinstance(objective, OutcomeObjective):
        pytest.skip("learns no outcome")
    return objective


@pytest.fixture
def model(objective: Objective) -> EhrModel:
    return fresh(objective)


def fresh(objective: Objective) -> EhrModel:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    return EhrModel(encoder, objective.make_head(encoder.width))


def test_config_is_a_choice_that_carries_its_name_and_is_of_the_objectives_kind(name: str) -> None:
    config, kind = plugins.settings("objectives", name)(), plugins.plugin("objectives", name, Objective)
    assert isinstance(config, kind.Config)
    assert config.name == name
    assert isinstance(config, OutcomeSettings) is issubclass(kind, OutcomeObjective)
    assert isinstance(config, PretrainingSettings) is issubclass(kind, PretrainingObjective)
    assert isinstance(config, OutcomeSettings | PretrainingSettings)


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


def test_an_outcome_is_predicted_as_curves_that_fall_from_one_over_the_grid(
    of_outcome: OutcomeObjective, model: EhrModel
) -> None:
    predicted = of_outcome.predict(model, batches(), torch.device("cpu"))
    np.testing.assert_array_equal(predicted.rows, np.arange(N_SUBJECTS))
    assert predicted.survival.shape == (N_SUBJECTS, len(of_outcome.grid.edges_days))
    assert (predicted.survival[:, 0] == 1).all()
    assert (np.diff(predicted.survival, axis=1) <= 0).all()


def test_a_fresh_head_begins_near_the_baseline_whose_likelihood_is_a_finite_number(
    name: str, of_outcome: OutcomeObjective
) -> None:
    """Where no records are there to tell ages and static facts."""
    facts = TrainingFacts(np.bincount(STORE.token, minlength=V), outcomes(), 365.0)
    without = type(of_outcome)(plugins.settings("objectives", name)(), facts)
    logits = without.baseline_logits().flatten().expand(N_SUBJECTS, -1)
    found = fresh(without).eval()(next(iter(replace(batches(), batch_tokens=10_000))))
    torch.testing.assert_close(found.detach(), logits[: len(found)], atol=0.05, rtol=0)
    assert math.isfinite(float(without.likelihood(logits, outcomes())))


def test_a_fresh_head_is_no_less_likely_than_the_population(of_outcome: OutcomeObjective, model: EhrModel) -> None:
    """It begins at what age and static facts tell, if they tell anything."""
    batch = next(iter(replace(batches(), batch_tokens=10_000)))
    population = of_outcome.baseline_logits().flatten().expand(N_SUBJECTS, -1)
    with torch.no_grad():
        begun = of_outcome.likelihood(model.eval()(batch), outcomes())
    assert float(begun) < float(of_outcome.likelihood(population, outcomes())) + 0.01


def test_a_rebuilt_head_takes_the_kept_weights_and_predicts_the_same(
    of_outcome: OutcomeObjective, model: EhrModel
) -> None:
    expected = of_outcome.predict(model, batches(), torch.device("cpu"))
    rebuilt = type(of_outcome).rebuild(
        model.head.state_dict(), width=model.encoder.width, n_intervals=of_outcome.grid.n_intervals
    )
    again = EhrModel(model.encoder, rebuilt.head)
    again.load_state_dict(model.state_dict())
    found = rebuilt.predict(again, batches(), torch.device("cpu"))
    np.testing.assert_array_equal(found.survival, expected.survival)
    assert rebuilt.n_causes == (1 if expected.incidence is None else expected.incidence.shape[1])


def test_weights_of_another_grid_or_of_no_head_are_refused(of_outcome: OutcomeObjective, model: EhrModel) -> None:
    n_intervals = of_outcome.grid.n_intervals + 1
    for weights in (model.head.state_dict(), {}):
        with pytest.raises(CheckpointError):
            type(of_outcome).rebuild(weights, width=model.encoder.width, n_intervals=n_intervals)


def test_validation_subjects_that_are_too_few_are_told_before_training(of_outcome: OutcomeObjective) -> None:
    of_outcome.rehearse(outcomes())
    nobody = Outcomes(np.full(4, 100.0), np.zeros(4, dtype=bool), np.zeros(4, dtype=np.int64))
    with pytest.raises(NotMeasurable):
        of_outcome.rehearse(nobody)
