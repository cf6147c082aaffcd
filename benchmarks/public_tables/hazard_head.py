"""The library's discrete hazards on a table: its time grid, its starting point, its loss; the encoder is linear.

    logit h_ik = b_k + x_i (beta + delta_k)

The part that all intervals share and each interval's departure from it have penalties of their own: beta is held as a
Cox model's coefficients are, and delta_k, which few events speak of, more. With delta = 0 these are proportional odds.
The penalised likelihood is convex, so nothing depends on a learning rate, a number of epochs or a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ehrtrack.arrays import Bools, Floats
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.objectives import survival
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.survival.curves import survival_curve
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.losses import negative_log_likelihood, survival_loss
from ehrtrack.survival.time_grid import TimeGrid

N_INTERVALS = 20
MAX_ITERATIONS = 100


class LinearHazards(nn.Module):
    """Hazard logits of K intervals from D columns; begins at the population's curve, as `HazardHead` does."""

    def __init__(self, n_columns: int, baseline_logits: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(baseline_logits.double().clone())
        self.shared = nn.Parameter(torch.zeros(n_columns, 1, dtype=torch.float64))
        self.own = nn.Parameter(torch.zeros(n_columns, len(baseline_logits), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(B, K) logits of columns (B, D)."""
        return self.bias + x @ (self.shared + self.own)


def fit_hazards(
    x: Floats, days: Floats, is_event: Bools, setting: Mapping[str, Any], seed: int
) -> Callable[[Floats, Floats], Floats]:
    """Fit by L-BFGS; returns S(t | x) of columns and days.

    The grid ends where the evaluation does, at the 90th percentile of the training follow-up: who is followed further
    outlived it. (Up to the longest follow-up, the last interval would be one in which nearly everybody is censored.)
    """
    horizon_days = float(np.percentile(days, 90))
    outcomes = Outcomes(np.minimum(days, horizon_days), is_event & (days <= horizon_days))
    objective = survival.Survival(
        survival.SurvivalConfig(n_intervals=N_INTERVALS),
        TrainingFacts(np.zeros(0, dtype=np.int64), outcomes, horizon_days),
    )
    bias = objective.make_head(1).baseline
    assert isinstance(bias, Tensor)
    model = LinearHazards(x.shape[1], bias.detach())
    _minimise(model, torch.from_numpy(x), outcomes, objective.grid, setting)

    def predict(columns: Floats, times: Floats) -> Floats:
        with torch.no_grad():
            curves = survival_curve(model(torch.from_numpy(columns))).numpy()
        return interpolate_survival(curves, objective.grid, np.minimum(times, objective.grid.horizon_days))

    return predict


def _minimise(model: LinearHazards, x: Tensor, outcomes: Outcomes, grid: TimeGrid, setting: Mapping[str, Any]) -> None:
    survived = torch.from_numpy(grid.survived(outcomes.follow_up_days, outcomes.is_event))
    event, days = torch.from_numpy(outcomes.is_event), torch.from_numpy(outcomes.follow_up_days)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = model(x)
        if setting["lambda_rank"]:
            loss = survival_loss(logits, survived, event, days, lambda_rank=setting["lambda_rank"])
        else:  # without the (B, B) pairs, which are gigabytes for the largest table
            loss = negative_log_likelihood(logits, survived, event)
        loss = (
            loss + setting["penalty"] * model.shared.square().sum() + setting["own_penalty"] * model.own.square().sum()
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
