"""What comes in a window of time after a cut: how often each code, and how high its values are.

Forecasting as pretraining is Tipirneni and Reddy's (2022, "Self-Supervised Transformer for Sparse and Irregularly
Sampled Multivariate Clinical Time-Series", ACM TKDD 16:105, section 4.4), who predict the values of the next two hours.
Here the targets are, for each code, the log of its count and, where its values are cut into bins, the mean, the lowest
and the highest level of the values that come:

    loss = mean over the targets q that are there of    (f_q(x) - y_q)^2,      y_q in standard deviations from its mean

All are read from the [CLS] state by one linear map, so that what tells the course of a record lies in that state as a
regression can read it. Members of an encoder (``model.members``) learn each by itself, and forecast their mean. What
was not measured in the window has no level and is no target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ehrtrack.data.batch import Batch
from ehrtrack.data.cuts import Cuts, draw_cuts
from ehrtrack.errors import DataError
from ehrtrack.models.heads import Head
from ehrtrack.models.record_columns import Levels
from ehrtrack.models.windows import Axis, after, before, usual_window_days
from ehrtrack.objectives._cuts import loss_without_targets, sampled
from ehrtrack.objectives.base import BatchLoss, PretrainingObjective, Selection, TrainingFacts
from ehrtrack.objectives.settings import ForecastConfig
from ehrtrack.runlog import VALIDATION, VALIDATION_LOSS, named

LEAST_SHARE = 0.005
"""Of the windows of training records, the share that a target has to be in to be forecast."""
LEAST_VARIANCE = 1e-6


class Scale(NamedTuple):
    """The Q targets, what they are measured in, and how they follow from the window before.

    Attributes
    ----------
    kept : (Q,) int64, which of the N + 3 C numbers of a window
    mean, sd : (Q,) in windows after cuts of the training records
    mean_before, slope : (Q,) a unit more in the window before is `slope` standard deviations more after
    """

    kept: Tensor
    mean: Tensor
    sd: Tensor
    mean_before: Tensor
    slope: Tensor

    def targets(self, after: Tensor) -> Tensor:
        """(P, Q) standard deviations from the mean, NaN where there is no target."""
        return (after[:, self.kept] - self.mean.to(after.device)) / self.sd.to(after.device)

    def persistence(self, before: Tensor) -> Tensor:
        """(P, Q) what the window before lets expect; the mean where it had none."""
        change = before[:, self.kept] - self.mean_before.to(before.device)
        return (change * self.slope.to(before.device)).nan_to_num(nan=0.0)


class ForecastHead(Head):
    """Q numbers from the [CLS] states of a batch, by one linear map for each of the encoder's M members."""

    def __init__(self, width: int, n_targets: int, n_members: int = 1) -> None:
        super().__init__()
        self.n_members = n_members
        self.out = nn.Linear(width, n_targets)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor, batch: Batch, code_embedding: Tensor) -> Tensor:
        """(B, M Q), members side by side."""
        of_members = hidden.reshape(len(hidden), self.n_members, -1)  # (B, M, D)
        weight = self.out.weight.reshape(self.out.out_features, self.n_members, -1)  # (Q, M, D)
        return (torch.einsum("bmd,qmd->bmq", of_members, weight) + self.out.bias).flatten(1)

    def places(self, batch: Batch) -> Tensor:
        return batch.cls_positions


class Forecast(PretrainingObjective[dict[str, float]]):
    """Mean squared error of what comes in a window after a cut, in variances of each target, averaged over cuts.

    A predictor that knows means alone has a loss of about 1. The trivial predictor that is reported beside it goes on
    as before: each target by a regression on the same number of the window before the cut.
    """

    Config = ForecastConfig
    selection = Selection(VALIDATION_LOSS, is_higher_better=False)
    trivial = {f"{VALIDATION}/forecast_loss": f"{VALIDATION}/persistence_loss"}  # noqa: RUF012

    def __init__(self, config: ForecastConfig, facts: TrainingFacts) -> None:
        self.config = config
        no_levels = Levels(torch.full((len(facts.token_counts),), -1), torch.zeros(len(facts.token_counts)))
        self.axis = Axis.of(facts.levels or no_levels)
        self.window_days = config.window_days or _window_days(config, facts)
        self.n_members = facts.n_members
        self.scale = _fit_scale(config, facts, self.axis, self.window_days)

    def make_head(self, width: int) -> Head:
        return ForecastHead(width, len(self.scale.kept), self.n_members)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        cuts = self._cuts(batch)
        if cuts is None:
            return loss_without_targets(model, batch)
        targets = self.scale.targets(after(batch, cuts, self.axis, self.window_days))
        members = model(cuts.history).chunk(self.n_members, dim=1)
        total = torch.stack([squared_error(forecast, targets) for forecast in members]).mean()  # each by itself
        return BatchLoss(total, len(cuts), total.item() / len(cuts))

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Sums over cuts."""
        cuts = self._cuts(batch)
        if cuts is None:
            return dict.fromkeys(("cuts", "forecast", "persistence"), 0.0)
        targets = self.scale.targets(after(batch, cuts, self.axis, self.window_days))
        trivial = self.scale.persistence(before(batch, cuts, self.axis, self.window_days))
        members = model(cuts.history).reshape(len(cuts), self.n_members, -1)
        return {
            "cuts": float(len(cuts)),
            "forecast": float(squared_error(members.mean(dim=1), targets)),
            "persistence": float(squared_error(trivial, targets)),
        }

    def metrics(self, scores: Sequence[dict[str, float]]) -> dict[str, float]:
        """Mean losses, in variances of a target among training records."""
        n_cuts, forecast, persistence = (
            sum(score[name] for score in scores) for name in ("cuts", "forecast", "persistence")
        )
        if not n_cuts:
            raise DataError(
                f"no validation subject has a visit that {self.window_days:g} days of its record, within "
                "data.max_tokens, follow: there is nothing to forecast. Set a shorter objective.window_days"
            )
        loss = forecast / n_cuts
        return named(VALIDATION, {"loss": loss, "forecast_loss": loss, "persistence_loss": persistence / n_cuts})

    def _cuts(self, batch: Batch) -> Cuts | None:
        return draw_cuts(batch, self.config.n_cuts, batch.generator(), least_days=self.window_days)


def squared_error(forecast: Tensor, targets: Tensor) -> Tensor:
    """Sum over cuts of the mean squared error of the targets (P, Q) that are there, which are not NaN."""
    is_there = ~targets.isnan()
    errors = (forecast - targets.nan_to_num(nan=0.0)).square() * is_there
    return (errors.sum(dim=1) / is_there.sum(dim=1).clamp(min=1)).sum()


def _window_days(config: ForecastConfig, facts: TrainingFacts) -> float:
    days = usual_window_days(sampled(facts.records, config.name), config.n_cuts)
    if days is None:
        raise DataError("no training subject has two visits within data.max_tokens: there is nothing to forecast")
    return days


def _fit_scale(config: ForecastConfig, facts: TrainingFacts, axis: Axis, window_days: float) -> Scale:
    """The targets and their scale, from windows at cuts like those of training."""
    size = axis.n_counted + 3 * axis.n_codes
    n_cuts, n_there = 0, torch.zeros(size, dtype=torch.float64)
    is_level = torch.arange(size) >= axis.n_counted
    sums = {name: n_there.clone() for name in ("n", "y", "yy", "both", "x", "xx", "y of both", "xy")}
    for batch in sampled(facts.records, config.name):
        cuts = draw_cuts(batch, config.n_cuts, batch.generator(), least_days=window_days)
        if cuts is None:
            continue
        y, x = (of(batch, cuts, axis, window_days).double() for of in (after, before))
        is_y, is_both = ~y.isnan(), ~(y.isnan() | x.isnan())
        y, x = y.nan_to_num(nan=0.0), x.nan_to_num(nan=0.0) * is_both
        n_cuts += len(cuts)
        n_there += (is_y & (is_level | (y > 0))).sum(dim=0)  # a count of 0 says that it is not there
        parts = (is_y, y, y**2, is_both, x, x**2, y * is_both, x * y)
        for name, part in zip(sums, parts, strict=True):
            sums[name] += part.sum(dim=0)
    n, both = sums["n"].clamp(min=1), sums["both"].clamp(min=1)
    mean, variance = sums["y"] / n, sums["yy"] / n - (sums["y"] / n) ** 2
    mean_before = sums["x"] / both
    variance_before = sums["xx"] / both - mean_before**2
    covariance = sums["xy"] / both - mean_before * sums["y of both"] / both
    kept = torch.nonzero((n_there >= LEAST_SHARE * n_cuts) & (variance > LEAST_VARIANCE)).squeeze(1)
    if not len(kept):
        raise DataError(
            f"nothing that changes comes in {LEAST_SHARE:.1%} of the windows of {window_days:g} days after a cut of "
            "the training records: there is nothing to forecast. Set another objective.window_days"
        )
    slope = covariance / variance_before.clamp(min=LEAST_VARIANCE) / variance.clamp(min=LEAST_VARIANCE).sqrt()
    return Scale(kept, *(number[kept].float() for number in (mean, variance.sqrt(), mean_before, slope)))
