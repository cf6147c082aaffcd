"""Time to one event, in discrete time: likelihood plus a ranking loss, read as risk = 1 - S(horizon).

The hazards of all K intervals are read once, at the cutoff of the record. Nothing of the follow-up enters the model:
a score summed over visits, or read at a time that depends on the outcome, would leak the length of follow-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ehrtrack.arrays import Floats
from ehrtrack.data.batch import Batch
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import CheckpointError, ConfigError
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.heads import HazardHead, Head
from ehrtrack.models.static_effects import StaticEffects
from ehrtrack.objectives._code_effects import fit_code_effects
from ehrtrack.objectives._floor import fit_floor
from ehrtrack.objectives.base import (
    BatchLoss,
    OutcomeObjective,
    Predictions,
    Prepared,
    Rebuilt,
    Selection,
    TrainingFacts,
)
from ehrtrack.objectives.settings import SurvivalConfig
from ehrtrack.runlog import VALIDATION, named
from ehrtrack.survival.bootstrap import FEWER_RESAMPLES
from ehrtrack.survival.curves import survival_curve
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.kaplan_meier import KaplanMeier
from ehrtrack.survival.losses import negative_log_likelihood, survival_loss
from ehrtrack.survival.metrics import c_index, evaluation_times, integrated_brier_score
from ehrtrack.survival.resampling import resampled_c_index, standard_error
from ehrtrack.survival.time_grid import TimeGrid, fit_time_grid

LEAST_SIGMA = 0.02
"""Of the ranking loss: exp(1 / .02) = 5e21 is a number in 32 bits, with its sum over pairs; exp(1 / .01) is none."""


class Score(NamedTuple):
    """A validation batch: its loss, survival (B, K + 1) at the grid's edges, and what came."""

    loss: float
    survival: Floats
    outcomes: Outcomes


class Survival(OutcomeObjective[Score]):
    """Hazards on a grid that is fitted to the training subjects."""

    Config = SurvivalConfig

    def __init__(self, config: SurvivalConfig, facts: TrainingFacts) -> None:
        if facts.outcomes is None or facts.horizon_days is None:
            raise ConfigError(
                "objective survival needs a [cohort] with an outcome; pretraining uses objective.name=mlm"
            )
        if config.lambda_rank and config.sigma < LEAST_SIGMA:
            raise ConfigError(
                f"objective.sigma is {config.sigma:g}, and the ranking loss exp(difference of risks / sigma) overflows "
                f"below {LEAST_SIGMA:g}; set objective.sigma to at least that, or objective.lambda_rank=0"
            )
        self.config = config
        self.selection = selection_by(config.select_by, "c_index", "ibs")
        self.training = facts.outcomes
        self.grid = fit_time_grid(
            facts.outcomes.follow_up_days,
            facts.outcomes.is_event,
            horizon_days=facts.horizon_days,
            n_intervals=config.n_intervals,
        )
        self.codes = fit_code_effects(config.lasso, facts, self)
        if self.codes is None:  # which are read of as many entries as records have
            self.fillers = {"survived": 0.0, "is_event": 0.0, "days": -1.0}
        self.floor = fit_floor(facts, self, has_statics=config.statics and self.codes is None)

    def make_head(self, width: int) -> Head:
        return HazardHead(width, self.floor.baseline, self.codes, self.floor.statics)

    def baseline_logits(self) -> Tensor:
        """(K,) logits of the hazards of `baseline_survival`.

        A head that starts here predicts the population's curve, and learns only how subjects differ from it. The grid
        holds an event in each interval, so no hazard is 0; one of 1 (nobody outlives the last event) has no logit, and
        is taken for .999. Likelihood is greatest at these hazards, so that training does not move the population.
        """
        curve = baseline_survival(self.training, self.grid)
        hazard = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
        return torch.from_numpy(np.log(hazard / (1 - hazard))).float()

    def likelihood(self, logits: Tensor, outcomes: Outcomes) -> Tensor:
        """Mean negative log-likelihood of logits (B, K): the loss without its ranking part."""
        survived = self.grid.survived(outcomes.follow_up_days, outcomes.is_event)
        return negative_log_likelihood(logits, torch.from_numpy(survived), torch.from_numpy(outcomes.is_event))

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        """Loss of the subjects of all ranks at once: their pairs are ranked as in one large batch."""
        assert batch.outcomes is not None, "a batch for the survival objective has outcomes"
        logits, outcomes = model(batch), batch.outcomes
        n_local = len(logits)
        if torch.distributed.is_initialized():
            logits, outcomes = _of_all_ranks(logits, outcomes)
        mean = self._loss(logits, outcomes)
        return BatchLoss(mean * len(logits), n_local, mean.item())

    def prepare(self, batch: Batch) -> Prepared:
        assert batch.outcomes is not None, "a batch for the survival objective has outcomes"
        return Prepared(batch, self._labels(batch.outcomes), len(batch.lengths))

    def total(self, model: nn.Module, batch: Batch, labels: Mapping[str, Tensor], weight: int | Tensor) -> Tensor:
        return self._mean(model(batch), labels, weight) * weight

    def _loss(self, logits: Tensor, outcomes: Outcomes) -> Tensor:
        return self._mean(logits, self._labels(outcomes))

    def _labels(self, outcomes: Outcomes) -> dict[str, Tensor]:
        days, event = outcomes.follow_up_days, outcomes.is_event
        survived = torch.from_numpy(self.grid.survived(days, event)).float()
        return {
            "survived": survived,
            "is_event": torch.from_numpy(event),
            "days": torch.from_numpy(days).float(),
        }

    def _mean(self, logits: Tensor, labels: Mapping[str, Tensor], n_subjects: int | Tensor | None = None) -> Tensor:
        survived, is_event, days = (labels[name].to(logits.device) for name in ("survived", "is_event", "days"))
        return survival_loss(
            logits,
            survived,
            is_event,
            days,
            lambda_rank=self.config.lambda_rank,
            sigma=self.config.sigma,
            n_subjects=n_subjects,
        )

    def score(self, model: nn.Module, batch: Batch) -> Score:
        """Loss and survival curves of the subjects."""
        assert batch.outcomes is not None
        logits = model(batch).cpu()
        loss = float(self._loss(logits, batch.outcomes))
        return Score(loss, survival_curve(logits).double().numpy(), batch.outcomes)

    def metrics(self, scores: Sequence[Score]) -> dict[str, float]:
        """Loss, C-index of the risk at the horizon with its standard error, and integrated Brier score."""
        curves = np.concatenate([score.survival for score in scores])
        outcomes = Outcomes.joined([score.outcomes for score in scores])
        loss = sum(score.loss * len(score.survival) for score in scores) / len(curves)
        metrics = score_survival(curves, self.grid, self.training, outcomes)
        resampled = resampled_c_index(
            1 - curves[:, -1],
            outcomes.follow_up_days,
            outcomes.is_event,
            n_resamples=FEWER_RESAMPLES,
            seed=0,
            subject=outcomes.subject,
        )
        return named(
            VALIDATION,
            {
                "loss": loss,
                **metrics,
                **error_of("c_index", resampled),
            },
        )

    def rehearse(self, outcomes: Outcomes) -> None:
        """Score the population's curve for everybody: fails as every epoch would, where these subjects are too few.

        Raises
        ------
        NotMeasurable
            If they have no C-index or no integrated Brier score.
        """
        population = baseline_survival(self.training, self.grid)
        score_survival(np.tile(population, (len(outcomes.is_event), 1)), self.grid, self.training, outcomes)

    def predict(self, model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Predictions:
        return predict(model, batches, device)

    @classmethod
    def rebuild(cls, weights: Mapping[str, Tensor], *, width: int, n_intervals: int | None = None) -> Rebuilt:
        return Rebuilt(rebuild_hazard_head(weights, 1, width=width, n_intervals=n_intervals), predict)


def selection_by(select_by: str, discrimination: str, error: str) -> Selection:
    """By a measure of error alone, or by one of discrimination and, within its standard error, by the other."""
    if select_by == error:
        return Selection(f"{VALIDATION}/{error}", is_higher_better=False)
    name = f"{VALIDATION}/{discrimination}"
    return Selection(name, is_higher_better=True, error=f"{name}_se", among=f"{VALIDATION}/{error}")


def error_of(metric: str, resampled: Floats) -> dict[str, float]:
    """``metric_se``, the standard error of a metric from its resampled values (R,), where there is one."""
    error = standard_error(resampled)
    return {} if error is None else {f"{metric}_se": error}


def _of_all_ranks(logits: Tensor, outcomes: Outcomes) -> tuple[Tensor, Outcomes]:
    """Logits and outcomes of the subjects of all ranks; gradients flow to this rank's own."""
    rank, n_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    gathered: list[tuple[Tensor, Outcomes]] = [(logits, outcomes)] * n_ranks
    torch.distributed.all_gather_object(gathered, (logits.detach().cpu(), outcomes))
    parts = [logits if number == rank else part.to(logits.device) for number, (part, _) in enumerate(gathered)]
    days = np.concatenate([part.follow_up_days for _, part in gathered])
    return torch.cat(parts), Outcomes(days, np.concatenate([part.is_event for _, part in gathered]))


def predict(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Predictions:
    """Survival curves with dropout off, in the order of the batches."""
    model.eval()
    rows, curves = [], []
    with torch.no_grad():
        for batch in batches:
            curves.append(survival_curve(model(batch.to(device)).cpu()).double().numpy())
            rows.append(batch.rows.numpy())
    return Predictions(np.concatenate(rows), np.concatenate(curves))


def rebuild_hazard_head(
    weights: Mapping[str, Tensor], n_dims: int, *, width: int, n_intervals: int | None
) -> HazardHead:
    """A hazard head of the shapes of some weights, whose baseline is (K,) or (K, R); as `OutcomeObjective.rebuild`.

    Raises
    ------
    CheckpointError
        If there is a grid beside, and the baseline has not `n_dims` axes or not as many intervals as the grid.
    """
    shape = tuple(weights["baseline"].shape) if "baseline" in weights else ()
    if n_intervals is not None and (len(shape) != n_dims or shape[0] != n_intervals):
        raise CheckpointError(
            f"the weights do not fit the time grid beside: hazards of shape {shape}, {n_intervals} intervals"
        )
    codes, statics = CodeEffects.from_weights(weights, "codes."), StaticEffects.from_weights(weights, "statics.")
    return HazardHead(width, torch.zeros(shape), codes, statics)


def score_survival(survival: Floats, grid: TimeGrid, training: Outcomes, outcomes: Outcomes) -> dict[str, float]:
    """``c_index`` of the risk at the horizon and ``ibs`` of survival curves (N, K + 1) on the grid.

    Parameters
    ----------
    training : outcomes of the training subjects, which weight the censored and set the evaluation times
    outcomes : of the N subjects
    """
    days, event = outcomes.follow_up_days, outcomes.is_event
    return {
        "c_index": c_index(1 - survival[:, -1], days, event),
        "ibs": survival_ibs(survival, grid, training, outcomes),
    }


def survival_ibs(survival: Floats, grid: TimeGrid, training: Outcomes, outcomes: Outcomes) -> float:
    """Integrated Brier score of survival curves (N, K + 1); the rest as in `score_survival`.

    Raises
    ------
    NotMeasurable
        If there is no range of days to evaluate, or no event.
    """
    days, event = outcomes.follow_up_days, outcomes.is_event
    times = evaluation_times(training.follow_up_days, training.is_event, days)
    at_times = interpolate_survival(survival, grid, times)
    return integrated_brier_score(training.follow_up_days, training.is_event, days, event, at_times, times)


def baseline_survival(training: Outcomes, grid: TimeGrid) -> Floats:
    """(K + 1,) Kaplan-Meier curve of the training subjects at the grid's edges: a model without inputs."""
    return KaplanMeier.of(training.follow_up_days, training.is_event).at(grid.edges_days)
