"""Ridge regressions with a penalty for each column, and those of hazards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import DataError
from ehrtrack.survival.hazard_regression import HazardRegression
from ehrtrack.survival.losses import negative_log_likelihood
from ehrtrack.survival.ridge import Axes, event_folds

RNG = np.random.default_rng(0)
N = 200
X = RNG.normal(size=(N, 4)) @ RNG.normal(size=(4, 4))
Y = (RNG.random(N) < expit(X[:, 0] - 1)).astype(float)


def log_loss(shift: np.ndarray) -> tuple[float, np.ndarray]:
    chance = expit(shift[:, 0])
    loss = -np.log(np.where(Y > 0, chance, 1 - chance)).mean()
    return float(loss), ((chance - Y) / N)[:, None]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_it_is_scikit_learns_logistic_regression_on_columns_divided_by_the_root_of_their_penalty(scale: float) -> None:
    penalty = np.array([0.3, 0.01, 0.1, 1.0])
    found = Axes(X * scale, penalty * scale**2).fit(log_loss, curvature=0.3)
    library = LogisticRegression(C=1 / N, tol=1e-10, max_iter=10_000).fit(X / np.sqrt(penalty), Y)
    np.testing.assert_allclose(found.effect[:, 0] * scale, library.coef_[0] / np.sqrt(penalty), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.intercept, library.intercept_, rtol=0, atol=1e-4)


def test_more_columns_than_subjects_have_the_effects_of_the_least_penalised_loss() -> None:
    wide = np.hstack([X, RNG.normal(size=(N, 300))])
    found = Axes(wide, np.full(304, 0.2)).fit(log_loss, curvature=0.3)
    _, slope = log_loss(found.at(wide))
    np.testing.assert_allclose(wide.T @ slope, -0.2 * found.effect, rtol=0, atol=1e-4)
    assert abs(slope.sum()) < 1e-4


def test_an_infinite_penalty_leaves_the_regression_on_the_others() -> None:
    alone = Axes(X[:, :2], np.full(2, 0.1)).fit(log_loss, curvature=0.3)
    beside = Axes(X, np.array([0.1, 0.1, np.inf, np.inf])).fit(log_loss, curvature=0.3)
    np.testing.assert_allclose(beside.effect[:2], alone.effect, rtol=0, atol=1e-4)
    assert (beside.effect[2:] == 0).all()
    nothing = Axes(X, np.full(4, np.inf)).fit(log_loss, curvature=0.3)
    np.testing.assert_allclose(expit(nothing.intercept), Y.mean(), rtol=0, atol=1e-5)


def test_rows_of_a_subject_are_in_one_fold() -> None:
    subject = np.repeat(np.arange(20), 3)
    fold = event_folds(subject % 2 == 0, subject, n_folds=5, seed=0)
    assert all(len(set(fold[subject == one])) == 1 for one in range(20))
    assert set(fold) == set(range(5))


def test_one_event_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="1 of 9 subjects to learn from have the event, and cross-validation"):
        event_folds(np.arange(9) == 0, None, n_folds=5, seed=0)


class _Hazards:
    """Those of three intervals of a day each."""

    def baseline_logits(self) -> torch.Tensor:
        return torch.tensor([-2.0, -1.5, -1.0])

    def likelihood(self, logits: torch.Tensor, outcomes: Outcomes) -> torch.Tensor:
        survived = torch.from_numpy(np.floor(outcomes.follow_up_days))
        return negative_log_likelihood(logits, survived, torch.from_numpy(outcomes.is_event))


def _outcomes(log_odds: np.ndarray, seed: int = 1) -> Outcomes:
    """Of hazards that fall from day to day, where everybody without an event is followed for three days."""
    rng = np.random.default_rng(seed)
    hazard = expit(log_odds[:, None] + [0.0, -1.0, -2.0])
    comes = rng.random(hazard.shape) < hazard
    day = np.where(comes.any(axis=1), comes.argmax(axis=1), 3).astype(float)
    return Outcomes(day, comes.any(axis=1))


def test_the_penalty_is_strong_for_columns_that_tell_nothing_and_weak_for_those_that_tell() -> None:
    x = np.random.default_rng(2).normal(size=(400, 3))
    telling = HazardRegression.of(_Hazards(), _outcomes(2 * x[:, 0] - 1))
    mute = HazardRegression.of(_Hazards(), _outcomes(np.full(400, -1.0)))
    penalties = [np.full(3, penalty) for penalty in (np.inf, 1.0, 0.1, 0.001)]
    assert telling.chosen(x, penalties)[0] == 0.001
    assert mute.chosen(x, penalties)[0] > 0.001


def test_the_baseline_beside_a_regression_foretells_as_many_events_a_day_as_came() -> None:
    x = np.random.default_rng(2).normal(size=(2000, 1))
    outcomes, everybody = _outcomes(2 * x[:, 0] - 1), np.arange(2000)
    regression = HazardRegression.of(_Hazards(), outcomes)
    shift = regression.fit(x, np.array([0.001]), everybody).effect[0, 0] * x
    baseline = regression.baseline_beside(shift, everybody)
    for day in range(3):
        at_risk = outcomes.follow_up_days >= day
        expected = expit(float(baseline[day]) + shift[at_risk, 0]).sum()
        came = (outcomes.is_event & (outcomes.follow_up_days == day)).sum()
        assert abs(expected - came) < 0.5


def test_penalties_in_the_same_proportions_share_their_axes() -> None:
    penalty = np.array([0.1, 0.2, np.inf, 0.3])
    axes = Axes(X, penalty)
    assert axes.strength(7 * penalty) == pytest.approx(7)
    stronger, alone = axes.fit(log_loss, curvature=0.3, strength=7.0), Axes(X, 7 * penalty).fit(log_loss, curvature=0.3)
    np.testing.assert_allclose(stronger.effect, alone.effect, atol=1e-4)
    assert axes.strength(penalty + np.array([0.1, 0, 0, 0])) is None
    assert axes.strength(np.full(4, 0.1)) is None
