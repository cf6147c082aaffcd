"""However subjects are censored, the likelihood is greatest at the population's own curve, and training stays there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sksurv.nonparametric import kaplan_meier_estimator
from torch import Tensor

from ehrtrack.data.outcomes import Outcomes
from ehrtrack.objectives import competing_risks, survival
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.survival.cause_measures import aalen_johansen
from ehrtrack.survival.competing_risks import EventWeights, cause_likelihood, cumulative_incidence, marginal_logits
from ehrtrack.survival.curves import risk_at_horizon
from ehrtrack.survival.losses import negative_log_likelihood, survival_loss
from ehrtrack.survival.time_grid import TimeGrid, fit_time_grid

WITHIN = 0.005
FOLLOW_UP = 1095.0


class Followed(NamedTuple):
    """Subjects with two causes, and the grid that is fitted to them."""

    days: np.ndarray
    cause: np.ndarray
    grid: TimeGrid

    @property
    def is_event(self) -> np.ndarray:
        return self.cause > 0

    @property
    def survived(self) -> np.ndarray:
        return self.grid.survived(self.days, self.is_event)


@st.composite
def patterns(draw: st.DrawFn) -> Followed:
    """Hazards of two causes that rise or fall, and censoring that is light or heavy, staggered, at the end, or ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, n_intervals = draw(st.integers(20, 600)), draw(st.integers(1, 24))
    first, second = (rng.weibull(rng.uniform(0.4, 3), n) * rng.uniform(50, 2000) for _ in range(2))
    censored = {
        "at random": lambda: rng.exponential(rng.uniform(20, 3000), n),
        "staggered entry": lambda: rng.uniform(0, 1500, n),
        "end of follow-up": lambda: np.full(n, 1000.0),
        "yearly entry": lambda: 1000 - rng.integers(0, 4, n) * rng.uniform(50, 300),
        "early or never": lambda: np.where(rng.random(n) < 0.8, rng.uniform(1, 30, n), 1000.0),
    }[draw(st.sampled_from(["at random", "staggered entry", "end of follow-up", "yearly entry", "early or never"]))]()
    came = np.minimum(first, second)
    if draw(st.booleans()):  # whole days, so that events and censorings tie
        came, censored = np.ceil(came), np.ceil(censored)
    is_event, days = came <= censored, np.maximum(np.minimum(came, censored), 1e-3)
    horizon = float({"longest": days.max(), "past it": 1.3 * days.max(), "before": np.quantile(days, 0.8)}[
        draw(st.sampled_from(["longest", "past it", "before"]))
    ])  # fmt: skip
    is_event = is_event & (days <= horizon)
    assume(is_event.sum() >= 2)
    cause, days = np.where(is_event, np.where(first <= second, 1, 2), 0), np.minimum(days, horizon)
    return Followed(days, cause, fit_time_grid(days, is_event, horizon_days=horizon, n_intervals=n_intervals))


def optimum(loss: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """Hazards (K, R) that minimise a sum of T multinomial terms with counts A: slopes in logits are -A + T h.

    Slopes at two places give A and T.
    """
    slopes, hazards = [], []
    for height in (0.0, 1.0):
        logits = torch.full(shape, height, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(logits), logits)
        slopes.append(slope)
        hazards.append(np.exp(height) / (1 + shape[1] * np.exp(height)))
    total = (slopes[1] - slopes[0]) / (hazards[1] - hazards[0])
    return ((total * hazards[0] - slopes[0]) / total).numpy()


def kaplan_meier(days: np.ndarray, is_event: np.ndarray, at: np.ndarray) -> np.ndarray:
    """By scikit-survival."""
    times, curve = kaplan_meier_estimator(is_event, days)
    return np.concatenate([[1.0], curve])[np.searchsorted(times, at, side="right")]


@settings(max_examples=1000, deadline=None)
@given(patterns())
def test_the_likelihood_is_greatest_at_kaplan_meiers_curve(subjects: Followed) -> None:
    event, survived = torch.from_numpy(subjects.is_event), torch.from_numpy(subjects.survived)
    edges = np.array(subjects.grid.edges_days)

    def loss(logits: Tensor) -> Tensor:
        return negative_log_likelihood(logits[:, 0].expand(len(event), -1), survived, event)

    found = np.cumprod(1 - optimum(loss, (subjects.grid.n_intervals, 1))[:, 0])
    np.testing.assert_allclose(found, kaplan_meier(subjects.days, subjects.is_event, edges[1:]), atol=1e-6)


@settings(max_examples=1000, deadline=None)
@given(patterns())
def test_that_of_two_causes_is_greatest_at_aalen_and_johansens_incidence(subjects: Followed) -> None:
    n_subjects, shape = len(subjects.days), (subjects.grid.n_intervals, 2)
    weight = EventWeights.of(subjects.grid, subjects.days, subjects.cause).weigh(subjects.days, subjects.cause)
    survived, cause, weights = (torch.from_numpy(values) for values in (subjects.survived, subjects.cause, weight))

    def loss(logits: Tensor) -> Tensor:
        return cause_likelihood(logits.expand(n_subjects, *shape), survived, cause, weights).mean()

    hazard = optimum(loss, shape)
    before = np.concatenate([[1.0], np.cumprod(1 - hazard.sum(axis=1))[:-1]])
    start = marginal_logits(subjects.survived, subjects.cause, n_intervals=shape[0], n_causes=shape[1], weight=weight)
    of_start = cumulative_incidence(torch.from_numpy(start)[None])[1][0, :, -1]
    for r in (1, 2):
        expected = aalen_johansen(subjects.days, subjects.cause, of=r, by_day=subjects.grid.horizon_days)
        assert (before * hazard[:, r - 1]).sum() == pytest.approx(expected, abs=1e-6)
        assert of_start[r - 1].item() == pytest.approx(expected, abs=WITHIN)


@settings(max_examples=100, deadline=None)
@given(patterns())
def test_a_subject_is_seen_through_more_of_an_interval_the_later_it_is_censored(subjects: Followed) -> None:
    days = np.linspace(0, subjects.grid.horizon_days, 200)[1:]
    survived = subjects.grid.survived(days, np.zeros(199, dtype=bool))
    assert (np.diff(survived) >= -1e-12).all()
    assert (np.floor(survived + 1e-12) >= subjects.grid.interval_of(days, np.zeros(199, dtype=bool))).all()
    assert survived[-1] == subjects.grid.n_intervals


def test_the_share_of_an_interval_by_hand() -> None:
    """Of ten, one has the event on day 10 and one on day 20 of (0, 30]: 1 - S(30) is .2, and 1 / 9 is left after 10."""
    grid = TimeGrid((0.0, 30.0)).timed_by([10.0, 20.0] + [30.0] * 8, [True, True] + [False] * 8)
    found = grid.survived([5.0, 10.0, 19.0, 20.0, 29.0, 30.0], [False] * 6)
    np.testing.assert_allclose(found, [0, 1 - (1 / 9) / 0.2, 1 - (1 / 9) / 0.2, 1, 1, 1])
    assert grid.survived([5.0, 25.0], [True, True]).tolist() == [0, 0]


def test_without_a_clock_it_is_the_share_of_the_days() -> None:
    grid = TimeGrid((0.0, 10.0, 30.0))
    assert grid.survived([4.0, 10.0, 25.0, 30.0], [False] * 4).tolist() == [0.4, 1, 1.75, 2]
    nobody = grid.timed_by([30.0, 5.0], [False, True])  # no event in the second interval
    assert nobody.survived([25.0], [False]).tolist() == [1.75]


def test_a_grid_that_is_read_back_goes_by_days_and_names_no_subjects_days() -> None:
    fitted = fit_time_grid([3.0, 8.0, 9.0, 20.0], [True, True, False, False], horizon_days=20, n_intervals=1)
    assert fitted.to_json() == '{"edges_days": [0.0, 20.0]}'
    again = TimeGrid.from_json(fitted.to_json())
    assert again == fitted
    assert again.clock is None


def past_the_end() -> tuple[Outcomes, float]:
    """Follow-up ends on day 1095 for everybody, and the horizon is the day after."""
    rng = np.random.default_rng(1)
    came = rng.exponential(2500, 300)
    days = np.minimum(came, FOLLOW_UP)
    return Outcomes(days, came <= FOLLOW_UP, np.where(came <= FOLLOW_UP, rng.integers(1, 3, 300), 0)), FOLLOW_UP + 1


def staggered() -> tuple[Outcomes, float]:
    """Subjects enter over three years, and the horizon is the longest follow-up."""
    rng = np.random.default_rng(2)
    came, censored = rng.exponential(2500, 300), rng.uniform(1, FOLLOW_UP, 300)
    days = np.minimum(came, censored)
    cause = np.where(came <= censored, rng.integers(1, 3, 300), 0)
    return Outcomes(days, came <= censored, cause), float(days.max())


COHORTS = pytest.mark.parametrize("cohort", [past_the_end, staggered])


def after_training(start: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits after 1,000 steps of AdamW at .01, as far as 10,000 at .001."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.AdamW([logits], lr=1e-2, weight_decay=0.0)
    for _ in range(1000):
        optimizer.zero_grad()
        loss(logits).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return logits.detach()


@COHORTS
def test_training_does_not_move_the_risk_of_the_population(cohort: Callable[[], tuple[Outcomes, float]]) -> None:
    outcomes, horizon = cohort()
    objective = survival.Survival(
        survival.SurvivalConfig(), TrainingFacts(np.ones(5, dtype=np.int64), outcomes, horizon)
    )
    expected = 1 - kaplan_meier(outcomes.follow_up_days, outcomes.is_event, np.array([horizon]))[0]
    start = objective.baseline_logits()
    assert risk_at_horizon(start[None]).item() == pytest.approx(expected, abs=1e-5)
    end = after_training(start, lambda logits: objective.likelihood(logits.expand(300, -1), outcomes))
    assert risk_at_horizon(end[None]).item() == pytest.approx(expected, abs=WITHIN)


@COHORTS
def test_ranking_moves_nothing_where_all_are_alike(cohort: Callable[[], tuple[Outcomes, float]]) -> None:
    outcomes, horizon = cohort()
    objective = survival.Survival(
        survival.SurvivalConfig(), TrainingFacts(np.ones(5, dtype=np.int64), outcomes, horizon)
    )
    logits = objective.baseline_logits().double().requires_grad_()
    days, event = outcomes.follow_up_days, outcomes.is_event
    survived, is_event = torch.from_numpy(objective.grid.survived(days, event)), torch.from_numpy(event)
    loss = survival_loss(logits.expand(300, -1), survived, is_event, torch.from_numpy(days), lambda_rank=0.5)
    (slope,) = torch.autograd.grad(loss, logits)
    assert slope.abs().max() < 1e-7


@COHORTS
def test_training_does_not_move_the_incidence_of_each_cause(cohort: Callable[[], tuple[Outcomes, float]]) -> None:
    outcomes, horizon = cohort()
    facts = TrainingFacts(np.ones(5, dtype=np.int64), outcomes, horizon)
    objective = competing_risks.CompetingRisks(competing_risks.CompetingRisksConfig(n_intervals=10), facts)
    start = objective.baseline_logits()
    end = after_training(start, lambda logits: objective.likelihood(logits.flatten().expand(300, -1), outcomes))
    assert outcomes.cause is not None
    for r in (1, 2):
        expected = aalen_johansen(outcomes.follow_up_days, outcomes.cause, of=r, by_day=horizon)
        for logits in (start, end):
            found = cumulative_incidence(logits[None])[1][0, r - 1, -1].item()
            assert found == pytest.approx(expected, abs=WITHIN)


def test_an_event_of_validation_after_all_training_follow_up_has_a_finite_weight() -> None:
    days, cause = np.array([5.0, 10.0, 12.0, 20.0]), np.array([1, 0, 2, 0])
    weights = EventWeights.of(TimeGrid((0.0, 30.0)).timed_by(days, cause > 0), days, cause)
    np.testing.assert_allclose(weights.weigh(days, cause), [1 / 1.25, 1, 1.5 / 1.25, 1])  # 1 / G is 1 and 3 / 2
    np.testing.assert_allclose(weights.weigh(np.array([25.0]), np.array([1])), [1.5 / 1.25])
