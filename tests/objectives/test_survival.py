"""The survival objective: what it may know, where it starts, and that it learns what is there and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index
from simulated import HORIZON_DAYS, Population, random_store, study, write_dataset

from ehrtrack.data.batch import Batch, Batches, collate
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import ConfigError
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.objectives.survival import Score, Survival, SurvivalConfig, baseline_survival, predict, score_survival
from ehrtrack.pipeline.prepare import CohortRecords, prepare_cohort
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.survival.bootstrap import c_index_interval
from ehrtrack.survival.curves import risk_at_horizon
from ehrtrack.survival.losses import negative_log_likelihood, ranking_loss
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.resampling import Interval
from ehrtrack.training.loop import TrainConfig, evaluate, fit
from ehrtrack.training.ranks import join_ranks

CPU = torch.device("cpu")
ALONE = join_ranks("cpu")


def outcomes_of(n_subjects: int, seed: int = 0) -> Outcomes:
    rng = np.random.default_rng(seed)
    event_days, censored_days = rng.exponential(400, n_subjects), rng.uniform(30, 500, n_subjects)
    end = np.minimum(censored_days, HORIZON_DAYS)
    return Outcomes(np.minimum(event_days, end), event_days <= end)


def objective_of(outcomes: Outcomes, **settings: Any) -> Survival:
    return Survival(SurvivalConfig(**settings), TrainingFacts(np.ones(40, dtype=np.int64), outcomes, HORIZON_DAYS))


def model_for(objective: Survival, seed: int = 0, vocabulary_size: int = 40) -> EhrModel:
    torch.manual_seed(seed)
    encoder = Behrt(ModelConfig(size="tiny", dropout=0.0), vocabulary_size)
    return EhrModel(encoder, objective.make_head(encoder.width))


def test_an_epoch_is_kept_by_the_measure_that_is_asked_for() -> None:
    outcomes = outcomes_of(120)
    by_error = objective_of(outcomes, select_by="ibs").selection
    by_rank = objective_of(outcomes).selection
    assert (by_rank.metric, by_rank.error, by_rank.among) == ("val/c_index", "val/c_index_se", "val/ibs")
    assert (by_error.metric, by_error.error, by_error.among) == ("val/ibs", "", "")
    assert by_rank.is_higher_better
    assert not by_error.is_higher_better


def scores_of(outcomes: Outcomes, objective: Survival) -> Score:
    """Curves of subjects whose risk goes with when their follow-up ends, and some noise."""
    noise = np.random.default_rng(1).normal(size=len(outcomes.is_event))
    rate = np.exp(noise - np.log(outcomes.follow_up_days) / 2)[:, None]
    survival = np.exp(-rate * np.linspace(0, 5, objective.grid.n_intervals + 1))
    return Score(1.0, survival, outcomes)


def test_the_standard_error_is_that_of_resampled_subjects_and_left_out_where_events_are_too_few() -> None:
    outcomes = outcomes_of(120)
    objective = objective_of(outcomes)
    score = scores_of(outcomes, objective)
    drawn = np.random.default_rng(0).integers(120, size=(200, 120))
    risk, days, event = 1 - score.survival[:, -1], outcomes.follow_up_days, outcomes.is_event
    expected = np.std([concordance_index(days[rows], -risk[rows], event[rows]) for rows in drawn], ddof=1)
    assert objective.metrics([score])["val/c_index_se"] == pytest.approx(expected, rel=1e-6)
    two = Outcomes(days, np.arange(120) == int(days.argmin()))
    assert "val/c_index_se" not in objective.metrics([scores_of(two, objective)])


@pytest.mark.parametrize("n_subjects", [120, 400])
def test_a_fresh_head_predicts_the_curve_of_the_population(n_subjects: int) -> None:
    outcomes = outcomes_of(n_subjects)
    objective = objective_of(outcomes)
    model = model_for(objective)
    batches = Batches(random_store(50, 40), np.arange(50), 400, 30)
    curves = predict(model, batches, CPU).survival  # (50, K + 1)
    kaplan_meier = KaplanMeierFitter().fit(outcomes.follow_up_days, outcomes.is_event)
    expected = kaplan_meier.survival_function_at_times(list(objective.grid.edges_days)).to_numpy()
    np.testing.assert_allclose(baseline_survival(outcomes, objective.grid), expected, atol=1e-6)
    np.testing.assert_allclose(curves.mean(axis=0), expected, atol=0.02)
    assert curves[:, -1].std() < 0.05


def test_a_population_of_which_nobody_outlives_the_last_event_has_a_finite_start() -> None:
    objective = objective_of(Outcomes(np.array([10.0, 20.0, 30.0]), np.array([True, True, True])))
    assert all(p.isfinite().all() for p in objective.make_head(8).parameters())


def test_the_outcome_never_enters_the_prediction() -> None:
    store, outcomes = random_store(20, 40), outcomes_of(20)
    objective = objective_of(outcomes_of(400))
    model = model_for(objective)
    turned = Outcomes(outcomes.follow_up_days[::-1] * 0.5, ~outcomes.is_event)
    risks = [
        predict(model, Batches(store, np.arange(20), 90, 30, outcomes=given), CPU).risk
        for given in (outcomes, turned, None)
    ]
    assert len(np.unique(risks[0])) > 10
    assert (risks[0] == risks[1]).all()
    assert (risks[0] == risks[2]).all()


def test_risk_is_one_minus_survival_at_the_horizon() -> None:
    objective = objective_of(outcomes_of(400))
    model, store = model_for(objective).eval(), random_store(6, 40)
    predictions = predict(model, Batches(store, np.arange(6), 90, 30), CPU)
    with torch.no_grad():
        logits = model(collate(store, np.arange(6), max_tokens=30))
    np.testing.assert_allclose(predictions.risk, 1 - np.prod(1 - torch.sigmoid(logits).numpy(), axis=1), atol=1e-6)
    np.testing.assert_allclose(predictions.risk, risk_at_horizon(logits).numpy(), atol=1e-6)
    assert (np.diff(predictions.survival, axis=1) <= 0).all()
    assert (predictions.survival[:, 0] == 1).all()


def test_predictions_are_in_the_order_of_the_batches_and_carry_their_rows() -> None:
    objective = objective_of(outcomes_of(400))
    model, store = model_for(objective), random_store(10, 40)
    forward = predict(model, Batches(store, np.arange(10), 60, 30), CPU)
    backward = predict(model, Batches(store, np.arange(10)[::-1].copy(), 60, 30), CPU)
    assert backward.rows.tolist() == list(range(9, -1, -1))
    np.testing.assert_allclose(backward.survival[::-1], forward.survival, atol=1e-6)


def test_predictions_have_no_dropout() -> None:
    objective = objective_of(outcomes_of(400))
    model, batches = model_for(objective).train(), Batches(random_store(6, 40), np.arange(6), 90, 30)
    assert (predict(model, batches, CPU).risk == predict(model, batches, CPU).risk).all()


@pytest.mark.parametrize("lambda_rank", [0.0, 0.5])
def test_the_loss_is_likelihood_plus_weighted_ranking(lambda_rank: float) -> None:
    outcomes = outcomes_of(12)
    objective = objective_of(outcomes_of(400), lambda_rank=lambda_rank, sigma=0.2)
    model = model_for(objective).eval()
    batch = collate(random_store(12, 40), np.arange(12), max_tokens=30, outcomes=outcomes)
    logits, event = model(batch), torch.from_numpy(outcomes.is_event)
    survived = torch.from_numpy(objective.grid.survived(outcomes.follow_up_days, outcomes.is_event)).float()
    days = torch.from_numpy(outcomes.follow_up_days).float()
    likelihood = negative_log_likelihood(logits, survived, event)
    ranking = ranking_loss(logits, survived, event, days, sigma=0.2)
    assert ranking > 0
    loss = objective.loss(model, batch)
    torch.testing.assert_close(loss.total / loss.weight, likelihood + lambda_rank * ranking)


def test_pretraining_facts_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[cohort\]"):
        Survival(SurvivalConfig(), TrainingFacts(np.ones(40, dtype=np.int64)))


def test_validation_metrics_do_not_depend_on_the_batch_size() -> None:
    outcomes = outcomes_of(60)
    objective = objective_of(outcomes_of(400), lambda_rank=0.0)
    model, store = model_for(objective).eval(), random_store(60, 40)
    with torch.no_grad():
        small, large = (
            evaluate(model, objective, Batches(store, np.arange(60), size, 30, outcomes=outcomes), ALONE)
            for size in (70, 2000)
        )
    assert small.keys() == {"val/loss", "val/c_index", "val/c_index_se", "val/ibs"}
    assert small == pytest.approx(large, abs=1e-6)


def train(records: CohortRecords, folder: Path, epochs: int = 6) -> tuple[float, Interval]:
    """C-index of test subjects after training from scratch, and its bootstrap interval."""
    facts = TrainingFacts(records.token_counts(), records.outcomes[records.rows["train"]], HORIZON_DAYS)
    objective = Survival(SurvivalConfig(), facts)
    model = model_for(objective, vocabulary_size=len(records.vocabulary))

    def batches(split: str, shuffle_seed: int | None = None) -> Batches:
        return Batches(
            records.store, records.rows[split], 512, 64, outcomes=records.outcomes, shuffle_seed=shuffle_seed
        )

    fit(
        model,
        objective,
        training=lambda epoch: batches("train", epoch),
        validation=batches("validation"),
        config=TrainConfig(epochs=epochs, lr=5e-3),
        ranks=ALONE,
        folder=folder,
        logger=MemoryRunLogger(),
    )
    predictions = predict(model, batches("test"), CPU)
    test = records.outcomes[predictions.rows]
    scores = score_survival(predictions.survival, objective.grid, facts.outcomes or test, test)
    assert scores["c_index"] == c_index(predictions.risk, test.follow_up_days, test.is_event)
    return scores["c_index"], c_index_interval(predictions.risk, test.follow_up_days, test.is_event, seed=0)


def records_of(folder: Path, population: Population) -> CohortRecords:
    write_dataset(folder / "meds", population)
    return prepare_cohort(study(folder / "meds", folder / "cache"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> CohortRecords:
    return records_of(tmp_path_factory.mktemp("survival"), Population(n_subjects=600))


def test_a_planted_signal_is_learned(records: CohortRecords, tmp_path: Path) -> None:
    score, interval = train(records, tmp_path)
    assert score > 0.65
    assert interval.lower > 0.5


def test_permuted_labels_leave_a_c_index_of_one_half_within_its_interval(
    records: CohortRecords, tmp_path: Path
) -> None:
    order = np.random.default_rng(1).permutation(len(records.outcomes.is_event))
    score, interval = train(replace(records, outcomes=records.outcomes[order]), tmp_path)
    assert interval.lower <= 0.5 <= interval.upper
    assert score < 0.65


def test_a_population_without_signal_gives_one_half(tmp_path: Path) -> None:
    _, interval = train(records_of(tmp_path, Population(n_subjects=1000, hazard_ratio=1.0, seed=3)), tmp_path)
    assert interval.lower <= 0.5 <= interval.upper


def test_a_planted_leak_is_seen_as_a_score_that_is_too_good(tmp_path: Path) -> None:
    score, _ = train(records_of(tmp_path, Population(n_subjects=600, has_leak=True)), tmp_path, epochs=10)
    assert score > 0.9


def test_a_batch_without_outcomes_has_no_loss() -> None:
    objective = objective_of(outcomes_of(400))
    batch: Batch = collate(random_store(3, 40), np.arange(3), max_tokens=30)
    with pytest.raises(AssertionError, match="has outcomes"):
        objective.loss(model_for(objective), batch)


def test_a_scale_at_which_the_ranking_loss_overflows_is_refused_where_it_is_used() -> None:
    outcomes = outcomes_of(120)
    with pytest.raises(ConfigError, match=r"objective.sigma is 0.001.*at least that, or objective.lambda_rank=0"):
        objective_of(outcomes, lambda_rank=0.1, sigma=0.001)
    objective_of(outcomes, lambda_rank=0.0, sigma=0.001)
    with pytest.raises(ConfigError, match=r"objective\.sigma"):
        objective_of(outcomes, lambda_rank=0.1, sigma=0.0199)
    objective_of(outcomes, lambda_rank=0.1, sigma=0.02)
