"""Classification at a horizon: who has a known class, with which weight, and the scores against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lifelines import KaplanMeierFitter
from simulated import HORIZON_DAYS, random_store
from sklearn.metrics import log_loss, roc_auc_score
from sksurv.metrics import cumulative_dynamic_auc
from sksurv.util import Surv
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, collate
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.objectives.classification import Classification, ClassificationConfig, Score
from ehrtrack.objectives.survival import predict

COUNTS = np.ones(30, dtype=np.int64)


def outcomes_of(n_subjects: int, seed: int = 0, *, censors: bool = True) -> Outcomes:
    rng = np.random.default_rng(seed)
    event_days = np.ceil(rng.exponential(400, n_subjects))
    censored_days = np.ceil(rng.uniform(30, 900, n_subjects)) if censors else np.full(n_subjects, 1e6)
    end = np.minimum(censored_days, HORIZON_DAYS)
    return Outcomes(np.minimum(event_days, end), event_days <= end)


def objective_of(outcomes: Outcomes, **settings: float) -> Classification:
    return Classification(ClassificationConfig(**settings), TrainingFacts(COUNTS, outcomes, HORIZON_DAYS))


def test_known_classes_are_weighted_by_the_chance_of_being_followed_as_long() -> None:
    #                    event  censored  event  censored  followed to the horizon
    days = np.array([10.0, 20.0, 30.0, 40.0, 365.0, 365.0])
    outcomes = Outcomes(days, np.array([True, False, True, False, False, False]))
    # followed beyond day 20: 4 of 5; beyond 40: 2 of 3 of these
    expected = [1, 0, 1 / 0.8, 0, 1 / (0.8 * 2 / 3), 1 / (0.8 * 2 / 3)]
    np.testing.assert_allclose(objective_of(outcomes).censoring.weights(outcomes), expected)


def test_weights_equal_lifelines_estimate_of_censoring_and_sum_to_about_everybody() -> None:
    outcomes = outcomes_of(2000)
    weights = objective_of(outcomes).censoring.weights(outcomes)
    days, is_event = outcomes.follow_up_days, outcomes.is_event
    # lifelines knows no order of an event and a censoring on one day; half a day later is that order
    is_censored = ~is_event & (days < HORIZON_DAYS)
    fitter = KaplanMeierFitter().fit(days + 0.5 * is_censored, is_censored)
    followed = fitter.survival_function_at_times(days - 0.01).to_numpy()
    np.testing.assert_allclose(weights[~is_censored], 1 / followed[~is_censored], rtol=1e-9)
    assert (weights[is_censored] == 0).all()
    assert weights.sum() == pytest.approx(2000, rel=1e-6)


def test_without_censoring_nobody_is_weighted() -> None:
    outcomes = outcomes_of(100, censors=False)
    assert (objective_of(outcomes).censoring.weights(outcomes) == 1).all()


class Given(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, batch: Batch) -> Tensor:
        return self.logits[:, None]


def test_losses_and_scores_equal_other_libraries() -> None:
    training, outcomes = outcomes_of(1000), outcomes_of(300, seed=1)
    objective = objective_of(training)
    rng = np.random.default_rng(2)
    logits = torch.from_numpy(rng.normal(-0.5, 1, 300) + outcomes.is_event).float()
    risk, weights = logits.sigmoid().double().numpy(), objective.censoring.weights(outcomes)
    batch = collate(random_store(300, 30), np.arange(300), max_tokens=64, outcomes=outcomes)
    metrics = objective.metrics([objective.score(Given(logits), batch)])
    known = weights > 0
    loss = log_loss(outcomes.is_event[known], risk[known], sample_weight=weights[known], normalize=False) / 300
    assert metrics["val/loss"] == pytest.approx(loss, rel=1e-5)
    assert objective.loss(Given(logits), batch).mean == pytest.approx(loss, rel=1e-5)
    assert metrics["val/auroc"] == roc_auc_score(outcomes.is_event[known], risk[known], sample_weight=weights[known])
    called = risk[known] >= objective.prevalence
    assert metrics["val/true_positives"] == (called & outcomes.is_event[known]).sum()
    assert sum(metrics[f"val/{a}_{b}"] for a in ("true", "false") for b in ("positives", "negatives")) == known.sum()


def test_the_auroc_is_the_cumulative_dynamic_auc_at_the_horizon() -> None:
    training, outcomes = outcomes_of(1000), outcomes_of(300, seed=1)
    objective = objective_of(training)
    risk = np.random.default_rng(2).random(300) * (1 + outcomes.is_event)
    # there the followed are those that are seen beyond the horizon
    beyond = [
        Outcomes(o.follow_up_days + 1 * (o.follow_up_days == HORIZON_DAYS), o.is_event) for o in (training, outcomes)
    ]
    truth = [Surv.from_arrays(o.is_event, o.follow_up_days) for o in beyond]
    expected, _ = cumulative_dynamic_auc(*truth, risk, HORIZON_DAYS)
    assert objective.score_classes(risk / 2, outcomes)["auroc"] == pytest.approx(float(expected[0]), abs=0.005)


def test_a_fresh_head_says_the_prevalence_and_predicts_as_survival_models_do() -> None:
    training = outcomes_of(1000)
    objective = objective_of(training)
    kaplan_meier = KaplanMeierFitter().fit(training.follow_up_days, training.is_event)
    assert objective.prevalence == pytest.approx(1 - float(kaplan_meier.predict(HORIZON_DAYS)), rel=1e-6)
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny", dropout=0.0), 30)
    model = EhrModel(encoder, objective.make_head(encoder.width))
    batch = collate(random_store(50, 30), np.arange(50), max_tokens=64)
    predictions = predict(model, [batch], torch.device("cpu"))
    assert predictions.survival.shape == (50, 2)
    assert predictions.risk.mean() == pytest.approx(objective.prevalence, abs=0.02)


def test_a_horizon_that_nobody_is_followed_to_is_refused() -> None:
    with pytest.raises(DataError, match=r"longest follow-up is 20\).*lower cohort\.horizon_days"):
        objective_of(Outcomes(np.array([10.0, 20.0]), np.array([True, False])))


def test_pretraining_facts_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[cohort\]"):
        Classification(ClassificationConfig(), TrainingFacts(COUNTS))


def test_one_known_class_alone_is_refused() -> None:
    outcomes = Outcomes(np.array([10.0, 20.0]), np.array([True, True]))
    with pytest.raises(DataError, match="of 2 subjects 2 have the outcome by 365 days and 0 are known not to"):
        objective_of(outcomes_of(100)).score_classes(np.array([0.2, 0.3]), outcomes)


def test_the_standard_error_of_the_auroc_is_that_of_resampled_subjects() -> None:
    training, outcomes = outcomes_of(300), outcomes_of(150, seed=1)
    objective = objective_of(training)
    logits = np.random.default_rng(2).normal(size=150) + outcomes.is_event
    weights = objective.censoring.weights(outcomes)
    known = np.flatnonzero(weights > 0)
    drawn = known[np.random.default_rng(0).integers(len(known), size=(200, len(known)))]
    expected = [roc_auc_score(outcomes.is_event[r], logits[r], sample_weight=weights[r]) for r in drawn]
    metrics = objective.metrics([Score(logits, outcomes)])
    assert metrics["val/auroc_se"] == pytest.approx(np.std(expected, ddof=1), rel=1e-4)  # weights in 32 bits
    squared = weights * (1 / (1 + np.exp(-logits)) - outcomes.is_event) ** 2
    assert metrics["val/brier"] == pytest.approx(squared.sum() / 150)


def test_of_classes_everybody_weighs_the_same_and_nothing_is_of_time() -> None:
    rng = np.random.default_rng(0)
    classes = Outcomes(np.ones(200), rng.random(200) < 0.3, subject=np.repeat(np.arange(100), 2))
    objective = Classification(ClassificationConfig(), TrainingFacts(COUNTS, classes, 1.0, has_classes=True))
    assert objective.task == "classes"
    assert objective.censoring.weights(classes).tolist() == [1] * 200
    assert objective.prevalence == pytest.approx(classes.is_event.mean())
    logits = rng.normal(size=200) + classes.is_event
    metrics = objective.metrics(
        [Score(logits[:150], classes[np.arange(150)]), Score(logits[150:], classes[np.arange(150, 200)])]
    )
    assert metrics["val/auroc"] == pytest.approx(roc_auc_score(classes.is_event, logits))
    assert not {"val/ibs", "val/c_index"} & set(metrics)
    objective.rehearse(classes)
    one_a_row = Outcomes(classes.follow_up_days, classes.is_event)
    assert metrics["val/auroc_se"] != objective.metrics([Score(logits, one_a_row)])["val/auroc_se"]
