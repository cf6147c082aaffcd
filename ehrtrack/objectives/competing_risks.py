"""Time to the first of several causes (`survival.competing_risks`): labels have a column ``cause``, 0 for the censored.

Risk and survival, by which runs are compared, are those of any cause. Each cause has a cumulative incidence and a
C-index of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ehrtrack.arrays import Floats, Ints
from ehrtrack.data.batch import Batch
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import ConfigError, DataError, NotMeasurable
from ehrtrack.models.heads import HazardHead, Head
from ehrtrack.objectives._code_effects import fit_code_effects
from ehrtrack.objectives._floor import fit_floor
from ehrtrack.objectives.base import BatchLoss, OutcomeObjective, Predictions, Rebuilt, TrainingFacts
from ehrtrack.objectives.settings import CompetingRisksConfig
from ehrtrack.objectives.survival import baseline_survival, error_of, rebuild_hazard_head, score_survival, selection_by
from ehrtrack.runlog import VALIDATION, named
from ehrtrack.survival.bootstrap import FEWER_RESAMPLES
from ehrtrack.survival.cause_measures import cause_c_index, resampled_cause_c_index
from ehrtrack.survival.competing_risks import EventWeights, cause_likelihood, cumulative_incidence, marginal_logits
from ehrtrack.survival.time_grid import fit_time_grid


class Score(NamedTuple):
    """A validation batch: summed loss, survival (B, K + 1), incidence (B, R, K + 1), and what came."""

    loss: float
    survival: Floats
    incidence: Floats
    outcomes: Outcomes


class CompetingRisks(OutcomeObjective[Score]):
    """Cause-specific hazards on a grid that is fitted to the training subjects.

    Raises
    ------
    DataError
        If the labels name no causes, or a cause up to the highest has no training subject.
    """

    Config = CompetingRisksConfig

    def __init__(self, config: CompetingRisksConfig, facts: TrainingFacts) -> None:
        if facts.outcomes is None or facts.horizon_days is None:
            raise ConfigError("objective competing-risks needs a [cohort] with an outcome; pretraining uses another")
        training = facts.outcomes
        found = np.bincount(_causes(training))
        if not found[1:].size or not found[1:].all():
            missing = ", ".join(str(r) for r in range(1, max(len(found), 2)) if r >= len(found) or not found[r])
            raise DataError(
                f"no training subject has cause {missing}; number the causes from 1 without gaps, or drop it"
            )
        self.selection = selection_by(config.select_by, "c_index_causes", "ibs")
        self.training = training
        self.grid = fit_time_grid(
            training.follow_up_days,
            training.is_event,
            horizon_days=facts.horizon_days,
            n_intervals=config.n_intervals,
        )
        self.weights = EventWeights.of(self.grid, training.follow_up_days, _causes(training))
        self.n_causes = int(_causes(training).max())
        self.codes = fit_code_effects(config.lasso, facts, self)
        self.floor = fit_floor(facts, self, has_statics=config.statics and self.codes is None)

    def make_head(self, width: int) -> Head:
        """K x R logits in one row, which start at the population's incidence."""
        return HazardHead(width, self.floor.baseline, self.codes, self.floor.statics)

    def baseline_logits(self) -> Tensor:
        """(K, R) of the population's incidence, which is where the likelihood is greatest."""
        days, cause = self.training.follow_up_days, _causes(self.training)
        start = marginal_logits(
            self.grid.survived(days, cause > 0),
            cause,
            n_intervals=self.grid.n_intervals,
            n_causes=self.n_causes,
            weight=self.weights.weigh(days, cause),
        )
        return torch.from_numpy(start).float()

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        assert batch.outcomes is not None, "a batch for competing risks has outcomes"
        total = self._losses(self._logits(model(batch)), batch.outcomes).sum()
        return BatchLoss(total, len(batch.lengths), total.item() / len(batch.lengths))

    def score(self, model: nn.Module, batch: Batch) -> Score:
        """Loss and curves of the subjects."""
        assert batch.outcomes is not None
        logits = self._logits(model(batch).cpu())
        survival, incidence = cumulative_incidence(logits)
        loss = float(self._losses(logits, batch.outcomes).sum())
        return Score(loss, survival.double().numpy(), incidence.double().numpy(), batch.outcomes)

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        """Loss; C-index and IBS of any cause; the C-index of each cause, and their mean with its standard error."""
        survival = np.concatenate([score.survival for score in scores])
        incidence = np.concatenate([score.incidence for score in scores])
        outcomes = Outcomes.joined([score.outcomes for score in scores])
        any_cause = score_survival(survival, self.grid, self.training, outcomes)
        by_cause = self.score_causes(incidence, outcomes)
        return named(
            VALIDATION,
            {
                "loss": sum(score.loss for score in scores) / len(survival),
                **(any_cause | by_cause),
                "c_index_causes": float(np.mean(list(by_cause.values()))),
                **error_of("c_index_causes", self._resampled_mean(incidence, outcomes)),
            },
        )

    def _resampled_mean(self, incidence: Floats, outcomes: Outcomes) -> Floats:
        """(S,) mean of the causes' C-indices in each of S resamples, NaN where a cause has none."""
        days, cause = outcomes.follow_up_days, _causes(outcomes)
        draw = {"n_resamples": FEWER_RESAMPLES, "seed": 0}
        resampled = [
            resampled_cause_c_index(incidence[:, r - 1, -1], days, cause, of=r, subject=outcomes.subject, **draw)
            for r in range(1, self.n_causes + 1)
        ]
        mean: Floats = np.mean(resampled, axis=0)
        return mean

    def score_causes(self, incidence: Floats, outcomes: Outcomes) -> dict[str, float]:
        """``c_index_cause_r`` of each cause r, from incidence (N, R, K + 1).

        Raises
        ------
        NotMeasurable
            If a cause has no comparable pair.
        """
        days, cause = outcomes.follow_up_days, _causes(outcomes)
        found = {}
        for r in range(1, self.n_causes + 1):
            try:
                found[f"c_index_cause_{r}"] = cause_c_index(incidence[:, r - 1, -1], days, cause, of=r)
            except NotMeasurable as reason:
                raise NotMeasurable(f"cause {r}: {reason}") from reason
        return found

    def rehearse(self, outcomes: Outcomes) -> None:
        """Score curves that are everybody's, as `Survival.rehearse` does.

        Raises
        ------
        NotMeasurable
            If they have no C-index or no integrated Brier score, of any cause or of one.
        """
        n_subjects = len(outcomes.is_event)
        population = baseline_survival(self.training, self.grid)
        score_survival(np.tile(population, (n_subjects, 1)), self.grid, self.training, outcomes)
        self.score_causes(np.zeros((n_subjects, self.n_causes, 1)), outcomes)

    def predict(self, model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Predictions:
        """Survival free of all causes and the incidence of each, with dropout off."""
        return predict(model, batches, device, n_causes=self.n_causes)

    @classmethod
    def rebuild(cls, weights: Mapping[str, Tensor], *, width: int, n_intervals: int | None = None) -> Rebuilt:
        head = rebuild_hazard_head(weights, 2, width=width, n_intervals=n_intervals)
        n_causes = weights["baseline"].shape[1]
        return Rebuilt(head, partial(predict, n_causes=n_causes), n_causes)

    def likelihood(self, logits: Tensor, outcomes: Outcomes) -> Tensor:
        """Mean negative log-likelihood of logits (B, K R)."""
        return self._losses(self._logits(logits), outcomes).mean()

    def _logits(self, flat: Tensor) -> Tensor:
        return flat.reshape(len(flat), self.grid.n_intervals, self.n_causes)  # (B, K, R)

    def _losses(self, logits: Tensor, outcomes: Outcomes) -> Tensor:
        days, cause = outcomes.follow_up_days, _causes(outcomes)
        survived, weight = self.grid.survived(days, cause > 0), self.weights.weigh(days, cause)
        return cause_likelihood(  # (B,)
            logits,
            torch.from_numpy(survived).float().to(logits.device),
            torch.from_numpy(cause).to(logits.device),
            torch.from_numpy(weight).float().to(logits.device),
        )


def predict(model: nn.Module, batches: Iterable[Batch], device: torch.device, *, n_causes: int) -> Predictions:
    """Survival free of all causes and the incidence of each, of a model of logits (B, K R), with dropout off."""
    model.eval()
    rows, curves, incidences = [], [], []
    with torch.no_grad():
        for batch in batches:
            flat = model(batch.to(device)).cpu()
            survival, incidence = cumulative_incidence(flat.reshape(len(flat), -1, n_causes))
            rows.append(batch.rows.numpy())
            curves.append(survival.double().numpy())
            incidences.append(incidence.double().numpy())
    return Predictions(np.concatenate(rows), np.concatenate(curves), np.concatenate(incidences))


def _causes(outcomes: Outcomes) -> Ints:
    if outcomes.cause is None:
        raise DataError(
            "objective competing-risks needs to know which cause ended each follow-up: give the labels a column cause, "
            "0 for the censored and 1, 2, ... for the causes; or use objective.name=survival"
        )
    return outcomes.cause
