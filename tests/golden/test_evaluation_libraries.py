"""Measures under censoring, with ties, against other libraries or the formula written out with loops."""

from __future__ import annotations

import lifelines
import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lifelines.utils import concordance_index
from scipy.stats import chi2
from sklearn.metrics import auc, average_precision_score
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import brier_score, concordance_index_ipcw, cumulative_dynamic_auc
from sksurv.util import Surv

from ehrtrack.survival.bootstrap import auc_interval, slope_interval, uno_c_interval
from ehrtrack.survival.brier import brier_at
from ehrtrack.survival.calibration_curve import (
    calibration_curve,
    calibration_slope,
    d_calibration,
    log_hazard,
    spline_columns,
)
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.conformal import fit_lower_bounds
from ehrtrack.survival.decision import decision_curve
from ehrtrack.survival.discrimination import (
    antolini_c,
    average_precision,
    dynamic_auc,
    precision_recall_table,
    roc_table,
    uno_c,
)
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.proportional_hazards import ProportionalHazards
from ehrtrack.survival.recalibration import at_risk_intervals, fit_recalibration
from ehrtrack.survival.subgroups import score_subgroups
from ehrtrack.survival.time_grid import TimeGrid

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

HORIZON = 12.0
GRID = TimeGrid((0.0, 2.0, 5.0, 9.0, HORIZON))


def tied(seed: int, n: int = 120) -> tuple[Array, Array, Bools]:
    """Risks in (0, 1) and whole days up to the horizon, with ties of every kind and many followed to the end."""
    rng = np.random.default_rng(seed)
    risk = rng.integers(1, 30, n) / 31
    event_day = np.ceil(rng.exponential(14 * (1.2 - risk)))
    censored = np.minimum(np.ceil(rng.exponential(18, n)), HORIZON)
    return risk, np.minimum(event_day, censored), event_day <= censored


def follow_up_of(seed: int, n: int = 120) -> tuple[Array, FollowUp, Array, Bools]:
    risk, days, event = tied(seed, n)
    _, train_days, train_event = tied(seed + 1_000_000, 200)
    return risk, FollowUp.of(train_days, train_event, days, event), days, event


def curves(seed: int, n: int = 120) -> Array:
    """Survival at the edges of the grid; curves of different subjects cross."""
    hazard = np.random.default_rng(seed).uniform(0.02, 0.5, (n, GRID.n_intervals))
    return np.column_stack([np.ones(n), np.cumprod(1 - hazard, axis=1)])


def censoring_weight(follow_up: FollowUp, days: Array) -> Array:
    """1 / G by lifelines: the probability of being uncensored just before each day."""
    fitter = lifelines.KaplanMeierFitter().fit(follow_up.train_days, ~follow_up.train_is_event)
    return 1 / fitter.survival_function_at_times(days).to_numpy()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100_000))
def test_uno_c_equals_its_formula_with_weights_from_lifelines(seed: int) -> None:
    risk, follow_up, days, event = follow_up_of(seed, n=50)
    assume(event.any())
    weight = censoring_weight(follow_up, days) ** 2
    above = below = 0.0
    for i in np.flatnonzero(event):
        outlives = (days > days[i]) | ((days == days[i]) & ~event)  # event meets censoring: the censored outlives
        concordant = (risk[i] > risk[outlives]).sum() + 0.5 * (risk[i] == risk[outlives]).sum()
        above += weight[i] * concordant
        below += weight[i] * outlives.sum()
    assert uno_c(risk, follow_up, horizon_days=HORIZON) == pytest.approx(above / below, abs=1e-9)


def test_without_censoring_uno_c_is_harrells_c_of_lifelines() -> None:
    risk, days, _ = tied(0)
    event = np.ones(days.size, bool)
    follow_up = FollowUp.of(days, event, days, event)
    assert uno_c(risk, follow_up, horizon_days=days.max() + 1) == pytest.approx(
        concordance_index(days, -risk, event), abs=1e-12
    )


def test_bootstrap_of_uno_c_equals_scikit_survival_on_each_resample() -> None:
    risk, follow_up, _, _ = follow_up_of(1)
    drawn = np.random.default_rng(7).integers(120, size=(30, 120))
    tau = np.nextafter(HORIZON, np.inf)
    reference = [concordance_index_ipcw(follow_up.train_surv, follow_up.surv[i], risk[i], tau=tau)[0] for i in drawn]
    interval = uno_c_interval(risk, follow_up, horizon_days=HORIZON, n_resamples=30, seed=7)
    assert interval.lower == pytest.approx(np.quantile(reference, 0.025), abs=1e-6)
    assert interval.upper == pytest.approx(np.quantile(reference, 0.975), abs=1e-6)


def test_bootstrap_of_the_auc_equals_scikit_survival_on_each_resample() -> None:
    risk, follow_up, _, _ = follow_up_of(2)
    drawn = np.random.default_rng(7).integers(120, size=(30, 120))
    reference = [cumulative_dynamic_auc(follow_up.train_surv, follow_up.surv[i], risk[i], [9.0])[1] for i in drawn]
    interval = auc_interval(risk, follow_up, horizon_days=9, n_resamples=30, seed=7)
    assert interval.lower == pytest.approx(np.quantile(reference, 0.025), abs=1e-6)
    assert interval.upper == pytest.approx(np.quantile(reference, 0.975), abs=1e-6)


def test_bootstrap_of_the_slope_equals_scikit_survival_on_each_resample() -> None:
    risk, follow_up, _, _ = follow_up_of(2)
    drawn = np.random.default_rng(7).integers(120, size=(20, 120))
    x = log_hazard(risk)[:, None]
    cox = CoxPHSurvivalAnalysis(ties="breslow")
    reference = [cox.fit(x[i], follow_up.surv[i]).coef_[0] for i in drawn]
    interval = slope_interval(risk, follow_up, horizon_days=HORIZON, n_resamples=20, seed=7)
    assert interval.lower == pytest.approx(np.quantile(reference, 0.025), abs=1e-6)
    assert interval.upper == pytest.approx(np.quantile(reference, 0.975), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100_000))
def test_antolini_c_equals_the_double_loop_of_the_paper(seed: int) -> None:
    _, follow_up, days, event = follow_up_of(seed, n=40)
    assume(event.any())
    survival = curves(seed, n=40).round(1)
    at = interpolate_survival(survival, GRID, days)  # (subject, day of subject)
    concordant, comparable = 0.0, 0
    for i in np.flatnonzero(event):
        for j in range(40):
            if days[j] > days[i] or (days[j] == days[i] and not event[j]):
                comparable += 1
                concordant += 1.0 if at[i, i] < at[j, i] else 0.5 if at[i, i] == at[j, i] else 0.0
    assume(comparable)
    assert antolini_c(survival, GRID, follow_up) == pytest.approx(concordant / comparable, abs=1e-12)


def test_antolini_c_of_curves_that_never_cross_is_harrells_c_of_lifelines() -> None:
    risk, follow_up, days, event = follow_up_of(2)
    survival = np.exp(-np.outer(risk, GRID.edges_days))
    assert antolini_c(survival, GRID, follow_up) == pytest.approx(concordance_index(days, -risk, event), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_auc_at_the_horizon_equals_its_formula_and_the_weighted_roc_curve(seed: int) -> None:
    """Uno et al. 2007: pairs of a subject with the event and one who outlives the horizon."""
    risk, follow_up, days, event = follow_up_of(seed)
    case, control = event & (days <= 9), (days > 9) | ((days == 9) & ~event)
    weight = censoring_weight(follow_up, days)[case]
    gap = risk[case][:, None] - risk[control]
    reference = (weight[:, None] * ((gap > 0) + 0.5 * (gap == 0))).sum() / (weight.sum() * control.sum())
    ours, _ = dynamic_auc(risk, follow_up, [9.0])
    assert ours[0] == pytest.approx(reference, abs=1e-9)
    roc = roc_table(risk, follow_up, horizon_days=9)
    assert auc(roc["false_positive_rate"], roc["true_positive_rate"]) == pytest.approx(reference, abs=1e-9)


def test_mean_auc_equals_scikit_survival_on_days_without_ties() -> None:
    rng = np.random.default_rng(0)
    risk, days, event = rng.random(150), rng.uniform(0.5, 12, 150), rng.random(150) < 0.5
    times = np.array([3.0, 6.0, 9.0])
    reference = cumulative_dynamic_auc(Surv.from_arrays(event, days), Surv.from_arrays(event, days), risk, times)
    auc_at, mean = dynamic_auc(risk, FollowUp.of(days, event, days, event), times)
    np.testing.assert_allclose(auc_at, reference[0], atol=1e-12)
    assert mean == pytest.approx(reference[1], abs=1e-12)


def test_average_precision_equals_scikit_learn_with_weights_from_lifelines() -> None:
    risk, follow_up, days, event = follow_up_of(3)
    beyond = (days == HORIZON) & ~event
    known = event | beyond
    weight = censoring_weight(follow_up, np.where(event, days, HORIZON))[known]
    table = precision_recall_table(risk, follow_up, horizon_days=HORIZON)
    reference = average_precision_score(event[known], risk[known], sample_weight=weight)
    assert average_precision(table) == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize("horizon_days", [5.0, HORIZON])
def test_brier_score_at_a_horizon_equals_grafs_formula(horizon_days: float) -> None:
    risk, follow_up, days, event = follow_up_of(4)
    case = event & (days <= horizon_days)
    control = (days > horizon_days) | ((days == horizon_days) & ~event)
    weight_at = censoring_weight(follow_up, np.array([horizon_days]))[0]
    terms = case * (1 - risk) ** 2 * censoring_weight(follow_up, days) + control * risk**2 * weight_at
    ours = brier_at(risk, follow_up, horizon_days=horizon_days)
    assert ours == pytest.approx(terms.mean(), abs=1e-9)
    at = np.array([horizon_days])
    library = brier_score(follow_up.train_surv, follow_up.surv, 1 - risk[:, None], at)[1][0]
    assert ours == pytest.approx(library, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_small_cox_regression_equals_scikit_survival_with_ties(seed: int) -> None:
    risk, follow_up, _, _ = follow_up_of(seed)
    x = spline_columns(log_hazard(risk))
    fit = ProportionalHazards(x, follow_up.days, follow_up.is_event).fit()
    reference = CoxPHSurvivalAnalysis(ties="breslow").fit(x, follow_up.surv)
    np.testing.assert_allclose(fit.beta, reference.coef_, atol=1e-7)
    at_day_9 = [1 - curve(9) for curve in reference.predict_survival_function(x)]
    np.testing.assert_allclose(fit.risk(x, 9), at_day_9, atol=1e-7)


def test_a_drawn_subject_counts_as_often_as_it_was_drawn_in_cox_regression() -> None:
    risk, follow_up, _, _ = follow_up_of(5)
    drawn = np.random.default_rng(0).integers(120, size=120)
    x = risk[:, None]
    ours = ProportionalHazards(x, follow_up.days, follow_up.is_event).fit(
        np.bincount(drawn, minlength=120).astype(float)
    )
    reference = CoxPHSurvivalAnalysis(ties="breslow").fit(x[drawn], follow_up.surv[drawn])
    np.testing.assert_allclose(ours.beta, reference.coef_, atol=1e-7)


def test_calibration_slope_equals_lifelines_on_days_without_ties() -> None:
    rng = np.random.default_rng(1)
    risk = rng.uniform(0.05, 0.9, 200)
    event_day, censored = rng.exponential(10 / risk), rng.uniform(1, 20, 200)
    days, event = np.minimum(event_day, censored), event_day <= censored
    follow_up = FollowUp.of(days, event, days, event)
    is_early = days <= HORIZON
    frame = pd.DataFrame({"x": log_hazard(risk), "t": np.minimum(days, HORIZON), "e": event & is_early})
    fitter = lifelines.CoxPHFitter()
    fitter.fit(frame, "t", "e", fit_options={"precision": 1e-9})
    assert calibration_slope(risk, follow_up, horizon_days=HORIZON) == pytest.approx(fitter.params_["x"], abs=1e-6)


def test_ici_equals_a_spline_regression_by_scikit_survival() -> None:
    risk, follow_up, _, _ = follow_up_of(6, n=200)
    x = log_hazard(risk)
    low, middle, high = np.quantile(x, [0.1, 0.5, 0.9])
    bend = [  # Harrell 2015, eq. 2.25, one subject at a time
        (
            max(v - low, 0) ** 3
            - max(v - middle, 0) ** 3 * (high - low) / (high - middle)
            + max(v - high, 0) ** 3 * (middle - low) / (high - middle)
        )
        / (high - low) ** 2
        for v in x
    ]
    columns = np.column_stack([x, bend])
    reference = CoxPHSurvivalAnalysis(ties="breslow").fit(columns, follow_up.surv)
    observed = np.array([1 - curve(HORIZON) for curve in reference.predict_survival_function(columns)])
    curve = calibration_curve(risk, follow_up, horizon_days=HORIZON)
    assert curve.ici == pytest.approx(np.abs(observed - risk).mean(), abs=1e-6)
    assert curve.quantile(0.9) == pytest.approx(np.quantile(np.abs(observed - risk), 0.9), abs=1e-6)


def test_d_calibration_equals_the_formula_subject_by_subject() -> None:
    _, follow_up, days, event = follow_up_of(7)
    survival = curves(7)
    shares = np.zeros(10)
    for i in range(120):
        own = interpolate_survival(survival[i : i + 1], GRID, [days[i]])[0, 0]
        for k in range(10):
            lower, upper = k / 10, (k + 1) / 10
            if event[i]:
                shares[k] += lower < own <= upper
            elif own > upper:
                shares[k] += 0.1 / own
            elif own > lower:
                shares[k] += (own - lower) / own
    statistic = ((shares - 12) ** 2 / 12).sum()
    p_value, ours = d_calibration(survival, GRID, follow_up)
    np.testing.assert_allclose(ours, shares / 120, atol=1e-9)
    assert p_value == pytest.approx(chi2.sf(statistic, 9), abs=1e-9)


def test_net_benefit_equals_vickers_formula_with_lifelines_kaplan_meier() -> None:
    risk, follow_up, days, event = follow_up_of(8)
    table = decision_curve(risk, follow_up, horizon_days=9, thresholds=[0.1, 0.3, 0.6])
    for row in table.iter_rows(named=True):
        for column, called in (("net_benefit", risk >= row["threshold"]), ("treat_all", np.ones(120, bool))):
            among = 1 - lifelines.KaplanMeierFitter().fit(days[called], event[called]).predict(9)
            odds = row["threshold"] / (1 - row["threshold"])
            reference = called.mean() * among - called.mean() * (1 - among) * odds
            assert row[column] == pytest.approx(reference, abs=1e-9)


def test_platt_scaling_maximises_the_likelihood_of_the_intervals_at_risk() -> None:
    """Where its two slopes are 0: those of sum w (y log p + (1 - y) log(1 - p)) for logit p = a + b logit h."""
    risk, _, days, event = follow_up_of(9)
    survival = np.exp(-0.02 * np.outer(1 + 3 * risk, GRID.edges_days))
    hazard, failed, weight = at_risk_intervals(survival, GRID, days, event)
    recalibrated = fit_recalibration("platt", survival, GRID, days, event).apply(survival)
    seen, _, _ = at_risk_intervals(recalibrated, GRID, days, event)
    logit, logit_seen = (np.log(h / (1 - h)) for h in (hazard, seen))
    slope, intercept = np.polyfit(logit, logit_seen, 1)
    np.testing.assert_allclose(logit_seen, intercept + slope * logit, atol=1e-9)
    assert (weight < 1).any()
    assert (weight * (failed - seen)).mean() == pytest.approx(0, abs=1e-6)
    assert (weight * (failed - seen) * logit).mean() == pytest.approx(0, abs=1e-6)


def test_conformal_level_equals_the_search_over_all_levels() -> None:
    _, follow_up, days, event = follow_up_of(10)
    survival = curves(10)
    own = np.array([interpolate_survival(survival[i : i + 1], GRID, [days[i]])[0, 0] for i in range(120)])
    weight = censoring_weight(follow_up, days) * event
    passing = [level for level in own[event] if ((weight * (own > level)).sum() + max(1.0, weight.max())) / 121 <= 0.2]
    assert fit_lower_bounds(survival, GRID, follow_up, coverage=0.8).survival_level == pytest.approx(min(passing))


def test_gap_between_groups_is_the_difference_of_their_c_indices_by_lifelines() -> None:
    risk, follow_up, days, event = follow_up_of(11)
    sex = np.where(np.arange(120) % 2 == 0, "F", "M")
    gaps = score_subgroups(risk, follow_up, {"sex": pl.Series(sex)}, horizon_days=HORIZON, n_resamples=50).gaps
    by_sex = {name: concordance_index(days[sex == name], -risk[sex == name], event[sex == name]) for name in "FM"}
    row = gaps.row(0, named=True)
    assert row["gap"] == pytest.approx(by_sex[row["highest"]] - by_sex[row["lowest"]], abs=1e-12)
    assert row["lower"] < row["gap"] < row["upper"]
