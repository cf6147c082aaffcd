"""Whether the outcome comes: within the cohort's horizon, or where labels are classes, at all. One probability a row.

A subject that was censored before the horizon has no known class. To leave it out would keep the early events and drop
the long followed, so the others stand in for it: each known class is weighted by one over the probability, among the
training subjects, of being followed as long (inverse probability of censoring weights, Graf et al. 1999). This holds
where censoring does not depend on the outcome; `survival` uses the censored subjects' own follow-up. Where labels are
classes everybody's is known: all weigh 1, and there are no days by which an error could be integrated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score
from sksurv.nonparametric import kaplan_meier_estimator
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.arrays import Floats
from ehrtrack.data.batch import Batch
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import ConfigError, DataError, NotMeasurable
from ehrtrack.models.heads import HazardHead, Head
from ehrtrack.objectives._code_effects import fit_code_effects
from ehrtrack.objectives._floor import fit_floor
from ehrtrack.objectives.base import BatchLoss, OutcomeObjective, Predictions, Rebuilt, TrainingFacts
from ehrtrack.objectives.settings import ClassificationConfig
from ehrtrack.objectives.survival import (
    baseline_survival,
    error_of,
    predict,
    rebuild_hazard_head,
    score_survival,
    selection_by,
)
from ehrtrack.runlog import VALIDATION, Task, named
from ehrtrack.survival.bootstrap import FEWER_RESAMPLES
from ehrtrack.survival.resampling import resampled_auc
from ehrtrack.survival.time_grid import TimeGrid


class Score(NamedTuple):
    """A validation batch: logits (B,) and what came."""

    logits: Floats
    outcomes: Outcomes


class Classification(OutcomeObjective[Score]):
    """Weighted binary cross-entropy of the outcome at the horizon.

    Attributes
    ----------
    grid : one interval up to the horizon, so that the risk is read as survival models' is
    prevalence : share with the outcome by the horizon, by Kaplan-Meier in the training subjects
    task : classes where labels tell no time, and everybody's is known; else classification
    """

    Config = ClassificationConfig
    task: Task = "classification"
    threshold: float

    def __init__(self, config: ClassificationConfig, facts: TrainingFacts) -> None:
        if facts.outcomes is None or facts.horizon_days is None:
            raise ConfigError("objective classification needs a [cohort] with an outcome; pretraining uses another")
        training, horizon_days = facts.outcomes, facts.horizon_days
        self.selection = selection_by(config.select_by, "auroc", "brier")
        self.training = training
        self.grid = TimeGrid((0.0, horizon_days)).timed_by(training.follow_up_days, training.is_event)
        self.censoring = Censoring(training, horizon_days)
        self.task = "classes" if facts.has_classes else "classification"
        self.prevalence = float(1 - baseline_survival(training, self.grid)[-1])
        if not 0 < self.prevalence < 1:
            raise DataError(
                f"{self.prevalence:.0%} of the training subjects have the outcome{self._by_horizon}, and "
                "classification needs both classes; change cohort.horizon_days, the outcome or the labels"
            )
        self.threshold = config.threshold or self.prevalence
        self.codes = fit_code_effects(config.lasso, facts, self)
        self.floor = fit_floor(facts, self, has_statics=config.statics and self.codes is None)

    @property
    def _by_horizon(self) -> str:
        return "" if self.task == "classes" else f" by {self.grid.horizon_days:g} days"

    def make_head(self, width: int) -> Head:
        return HazardHead(width, self.floor.baseline, self.codes, self.floor.statics)

    def baseline_logits(self) -> Tensor:
        """(1,) of the prevalence."""
        return torch.tensor([self.prevalence]).logit()

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        assert batch.outcomes is not None, "a batch for classification has outcomes"
        total = self._loss(model(batch).squeeze(1), batch.outcomes).sum()
        return BatchLoss(total, len(batch.lengths), total.item() / len(batch.lengths))

    def likelihood(self, logits: Tensor, outcomes: Outcomes) -> Tensor:
        """Mean loss of logits (B, 1)."""
        return self._loss(logits.squeeze(1), outcomes).mean()

    def _loss(self, logits: Tensor, outcomes: Outcomes) -> Tensor:
        weights = torch.from_numpy(self.censoring.weights(outcomes)).float().to(logits.device)
        classes = torch.from_numpy(outcomes.is_event).float().to(logits.device)
        return weights * F.binary_cross_entropy_with_logits(logits, classes, reduction="none")  # (B,)

    def score(self, model: nn.Module, batch: Batch) -> Score:
        """Logits and outcomes of the subjects."""
        assert batch.outcomes is not None
        return Score(model(batch).squeeze(1).cpu().double().numpy(), batch.outcomes)

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        """Loss beside that of the prevalence for everybody, AUROC with its standard error, AUPRC, Brier score at the
        horizon, the confusion matrix and, where there are days, C-index and IBS.

        All are weighted for censoring, but for the four counts, which are of the subjects whose class is known, and
        Harrell's C-index.
        """
        logits = torch.from_numpy(np.concatenate([score.logits for score in scores]))
        outcomes = Outcomes.joined([score.outcomes for score in scores])
        risk = logits.sigmoid().numpy()
        prevalence = torch.full_like(logits, self.prevalence).logit()
        return named(
            VALIDATION,
            {
                "loss": float(self._loss(logits, outcomes).mean()),
                "prevalence_loss": float(self._loss(prevalence, outcomes).mean()),
                **self.score_classes(risk, outcomes),
                **error_of("auroc", self._resampled_auroc(risk, outcomes)),
                **({} if self.task == "classes" else self._score_over_time(risk, outcomes)),
            },
        )

    def rehearse(self, outcomes: Outcomes) -> None:
        """Score the prevalence for everybody, as `Survival.rehearse` does the population's curve.

        Raises
        ------
        NotMeasurable
            If they have no C-index or no integrated Brier score, or only one class is known.
        """
        risk = np.full(len(outcomes.is_event), self.prevalence)
        if self.task != "classes":
            self._score_over_time(risk, outcomes)
        self.score_classes(risk, outcomes)

    def _score_over_time(self, risk: Floats, outcomes: Outcomes) -> dict[str, float]:
        """C-index and IBS of N risks."""
        curves = np.stack([np.ones_like(risk), 1 - risk], axis=1)
        return score_survival(curves, self.grid, self.training, outcomes)

    def _resampled_auroc(self, risk: Floats, outcomes: Outcomes) -> Floats:
        """(S,) AUROC in each of S resamples. Those who are known not to have the outcome all weigh alike."""
        weights = self.censoring.weights(outcomes)
        rows = np.flatnonzero(weights > 0)
        known, n_resamples = outcomes[rows], FEWER_RESAMPLES
        return resampled_auc(
            risk[rows], known.is_event, weights[rows], n_resamples=n_resamples, seed=0, subject=known.subject
        )

    def predict(self, model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Predictions:
        return predict(model, batches, device)

    @classmethod
    def rebuild(cls, weights: Mapping[str, Tensor], *, width: int, n_intervals: int | None = None) -> Rebuilt:
        return Rebuilt(rebuild_hazard_head(weights, 1, width=width, n_intervals=n_intervals), predict)

    def score_classes(self, risk: Floats, outcomes: Outcomes) -> dict[str, float]:
        """Scores of N risks of the outcome by the horizon.

        Raises
        ------
        NotMeasurable
            If only one class is known among the subjects.
        """
        weights = self.censoring.weights(outcomes)
        is_known = weights > 0
        weights, truth, risk = weights[is_known], outcomes.is_event[is_known], risk[is_known]
        if len(np.unique(truth)) < 2:
            raise NotMeasurable(
                f"of {len(is_known)} subjects {truth.sum()} have the outcome{self._by_horizon} and "
                f"{(~truth).sum()} are known not to; both are needed. Change cohort.horizon_days or the split"
            )
        called = risk >= self.threshold
        (tn, fp), (fn, tp) = confusion_matrix(truth, called)
        (wtn, wfp), (wfn, wtp) = confusion_matrix(truth, called, sample_weight=weights)
        return {
            "auroc": float(roc_auc_score(truth, risk, sample_weight=weights)),
            "brier": float((weights * (risk - truth) ** 2).sum() / len(is_known)),
            "auprc": float(average_precision_score(truth, risk, sample_weight=weights)),
            "prevalence": float((wtp + wfn) / (wtp + wfn + wtn + wfp)),  # the AUPRC of risks without meaning
            "sensitivity": float(wtp / (wtp + wfn)),
            "specificity": float(wtn / (wtn + wfp)),
            "true_positives": float(tp),
            "false_positives": float(fp),
            "true_negatives": float(tn),
            "false_negatives": float(fn),
        }


class Censoring:
    """Kaplan-Meier estimate of not yet being censored, of the training subjects.

    To be followed to the horizon is no censoring: there the class is known. Where an outcome meets a censoring, the
    outcome came first.
    """

    def __init__(self, training: Outcomes, horizon_days: float) -> None:
        self.horizon_days = horizon_days
        days, is_event = training.follow_up_days, training.is_event
        if not (days >= horizon_days).any():
            raise DataError(
                f"no training subject is followed to the horizon of {horizon_days:g} days (the longest follow-up is "
                f"{days.max():g}), so nobody is known to be free of the outcome; lower cohort.horizon_days"
            )
        times, followed = kaplan_meier_estimator(is_event | (days >= horizon_days), days, reverse=True)
        self.days, self.followed = np.append(0.0, times), np.append(1.0, followed)

    def weights(self, outcomes: Outcomes) -> Floats:
        """(N,) one over the probability of being followed as long; 0 for those censored before the horizon."""
        days = np.minimum(outcomes.follow_up_days, self.horizon_days)
        before = np.searchsorted(self.days, days, side="left") - 1  # the last step before the day itself
        is_known = outcomes.is_event | (outcomes.follow_up_days >= self.horizon_days)
        weights: Floats = np.where(is_known, 1 / self.followed[np.maximum(before, 0)], 0.0)
        return weights
