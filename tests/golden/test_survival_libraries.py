"""Our numbers against those of independent libraries; tests/README.md says which is from where."""

from __future__ import annotations

import lifelines
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lifelines.utils import concordance_index
from sklearn.metrics import log_loss
from sksurv.metrics import concordance_index_censored

from ehrtrack.errors import DataError
from ehrtrack.survival import concordance
from ehrtrack.survival.bootstrap import c_index_interval
from ehrtrack.survival.calibration import calibration_table
from ehrtrack.survival.concordance import RankedSubjects
from ehrtrack.survival.curves import survival_curve
from ehrtrack.survival.losses import negative_log_likelihood
from ehrtrack.survival.metrics import c_index, evaluation_times, integrated_brier_score
from ehrtrack.survival.time_grid import TimeGrid

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def tied_subjects(seed: int, n: int = 60) -> tuple[Array, Array, Bools]:
    """Few distinct risks and times, half the subjects censored: ties of every kind."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 8, n) / 8, rng.integers(1, 12, n).astype(np.float64), rng.random(n) < 0.5


@settings(max_examples=60)
@given(st.integers(0, 100_000))
def test_c_index_equals_lifelines_and_scikit_survival_with_ties_and_censoring(seed: int) -> None:
    risk, days, event = tied_subjects(seed)
    assume(event.any() and days[event].min() < days.max())
    ours = c_index(risk, days, event)
    assert ours == pytest.approx(concordance_index(days, -risk, event), abs=1e-12)
    assert ours == pytest.approx(concordance_index_censored(event, days, risk)[0], abs=1e-12)


@settings(max_examples=300)
@given(
    n=st.integers(1, 70),
    n_risks=st.sampled_from([1, 3, 10, 10**9]),
    n_days=st.sampled_from([1, 2, 7, 10**9]),
    event_share=st.sampled_from([0.05, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_c_index_equals_lifelines_from_one_subject_up(
    n: int, n_risks: int, n_days: int, event_share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    risk, days = rng.integers(0, n_risks, n) / 7, rng.integers(0, n_days, n).astype(np.float64)
    event = rng.random(n) < event_share
    try:
        reference = concordance_index(days, -risk, event)
    except ZeroDivisionError:  # lifelines found no pair
        with pytest.raises(DataError, match="no comparable pair"):
            c_index(risk, days, event)
    else:
        assert c_index(risk, days, event) == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize("n", [4095, 4096, 4097])
def test_c_index_equals_lifelines_round_a_power_of_two(n: int) -> None:
    rng = np.random.default_rng(n)
    risk, days, event = rng.normal(size=n), np.ceil(rng.exponential(100, n)), rng.random(n) < 0.3
    assert c_index(risk, days, event) == pytest.approx(concordance_index(days, -risk, event), abs=1e-12)


@settings(max_examples=40)
@given(
    n=st.integers(2, 60),
    n_levels=st.sampled_from([2, 9, 10**9]),
    event_share=st.sampled_from([0.2, 0.6, 1.0]),
    tile_size=st.sampled_from([1, 4, 16, 64]),
    seed=st.integers(0, 10**6),
)
def test_each_resample_scores_as_lifelines_does_whatever_the_tiles(
    n: int, n_levels: int, event_share: float, tile_size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    risk, days = rng.integers(0, n_levels, (2, n)).astype(np.float64)
    event = rng.random(n) < event_share
    counts = rng.multinomial(n, np.full(n, 1 / n), size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concordance, "MIN_TILE", tile_size)
        ranked = RankedSubjects.of(risk, days, event)
        n_comparable, n_concordant = ranked.resampled_pairs(counts.astype(np.float32))
    for row, comparable, concordant in zip(counts, n_comparable, n_concordant, strict=True):
        drawn = np.repeat(np.arange(n), row)
        if comparable:
            reference = concordance_index(days[drawn], -risk[drawn], event[drawn])
            assert concordant / comparable == pytest.approx(reference, abs=1e-12)
        else:
            with pytest.raises(ZeroDivisionError, match="No admissable pairs"):
                concordance_index(days[drawn], -risk[drawn], event[drawn])


@pytest.mark.parametrize("event_share", [0.2, 0.6])
def test_bootstrap_over_many_tiles_equals_lifelines_on_each_resample(event_share: float) -> None:
    n = 1_500
    rng = np.random.default_rng(1)
    risk, days, event = rng.normal(size=n).round(2), np.ceil(rng.exponential(90, n)), rng.random(n) < event_share
    counts = rng.multinomial(n, np.full(n, 1 / n), size=6)
    n_comparable, n_concordant = RankedSubjects.of(risk, days, event).resampled_pairs(counts.astype(np.float32))
    rows = [np.repeat(np.arange(n), count) for count in counts]
    reference = [concordance_index(days[i], -risk[i], event[i]) for i in rows]
    np.testing.assert_allclose(n_concordant / n_comparable, reference, rtol=0, atol=1e-12)


def test_bootstrap_equals_scikit_survival_on_each_resample() -> None:
    risk, days, event = tied_subjects(0)
    rows = np.random.default_rng(5).integers(60, size=(40, 60))
    reference = [concordance_index_censored(event[i], days[i], risk[i])[0] for i in rows]
    interval = c_index_interval(risk, days, event, n_resamples=40, seed=5)
    assert interval.lower == pytest.approx(np.quantile(reference, 0.025), abs=1e-12)
    assert interval.upper == pytest.approx(np.quantile(reference, 0.975), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_likelihood_equals_sklearn_log_loss_on_person_periods(seed: int) -> None:
    """Discrete-time survival is logistic regression on subject-intervals at risk (Tutz & Schmid 2016), each with the
    share of its days as the weight."""
    grid = TimeGrid((0.0, 2.0, 5.0, 9.0, 12.0))
    _, days, event = tied_subjects(seed)
    event &= days <= grid.horizon_days
    logits = np.random.default_rng(seed).normal(size=(60, 4))
    upper = grid.edges_days[1:]
    failed, hazards, weights = [], [], []
    for i in range(60):
        for k in range(4):
            is_event_here = bool(event[i]) and grid.edges_days[k] < days[i] <= upper[k]
            seen = np.clip((days[i] - grid.edges_days[k]) / (upper[k] - grid.edges_days[k]), 0, 1)
            failed.append(is_event_here)
            hazards.append(1 / (1 + np.exp(-logits[i, k])))
            weights.append(1.0 if is_event_here else 0.0 if event[i] and seen < 1 else seen)
    assert any(0 < weight < 1 for weight in weights)
    reference = log_loss(failed, hazards, normalize=False, labels=[False, True], sample_weight=weights) / 60
    ours = negative_log_likelihood(
        torch.from_numpy(logits), torch.from_numpy(grid.survived(days, event)), torch.from_numpy(event)
    )
    assert ours.item() == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_hazards_that_minimise_the_likelihood_are_kaplan_meier_of_lifelines(seed: int) -> None:
    """With an edge at every time, the best common hazards are d / n, the steps of Kaplan-Meier.

    This checks the censoring rule: a wrong one would put another number at risk.
    """
    _, days, event = tied_subjects(seed, n=80)
    event[days == days.max()] = True
    times = np.unique(days)
    grid = TimeGrid((0.0, *times.tolist()))
    interval = grid.interval_of(days, event)
    n_failed = np.array([((interval == k) & event).sum() for k in range(times.size)])
    n_at_risk = np.array([((interval > k) | ((interval == k) & event)).sum() for k in range(times.size)])
    hazard = torch.from_numpy(n_failed / n_at_risk).clamp(1e-9, 1 - 1e-9)
    logits = torch.logit(hazard).requires_grad_(True)
    loss = negative_log_likelihood(logits.expand(80, -1), torch.from_numpy(interval), torch.from_numpy(event))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-8  # d / n is where the likelihood is flat
    reference = lifelines.KaplanMeierFitter().fit(days, event).survival_function_at_times(times).to_numpy()
    ours = survival_curve(logits.detach()[None])[0, 1:].numpy()
    np.testing.assert_allclose(ours, reference, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_integrated_brier_score_equals_the_formula_with_weights_from_lifelines(seed: int) -> None:
    """Graf et al. 1999, eq. 3; times without ties, where the libraries' censoring estimators agree."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> tuple[Array, Bools, Array]:
        x = rng.normal(size=n)
        time, censoring = rng.exponential(300 * np.exp(-x)), rng.exponential(400, n)
        return np.minimum(time, censoring), time <= censoring, x

    train_days, train_event, _ = draw(400)
    days, event, x = draw(150)
    times = evaluation_times(train_days, train_event, days, n_times=20)
    survival = np.exp(-np.outer(np.exp(x), times / 300))
    days_in_range = np.minimum(days, train_days.max())
    g = lifelines.KaplanMeierFitter().fit(train_days, ~train_event)
    g_at_times = g.survival_function_at_times(times).to_numpy()
    g_at_days = np.maximum(g.survival_function_at_times(days_in_range).to_numpy(), 1e-12)
    is_case = (days[:, None] <= times) & event[:, None]
    is_control = days[:, None] > times
    errors = is_case * survival**2 / g_at_days[:, None] + is_control * (1 - survival) ** 2 / g_at_times
    reference = np.trapezoid(errors.mean(axis=0), times) / (times[-1] - times[0])
    ours = integrated_brier_score(train_days, train_event, days, event, survival, times)
    assert ours == pytest.approx(reference, abs=1e-9)


def test_observed_risk_and_its_interval_equal_lifelines() -> None:
    rng = np.random.default_rng(0)
    days, event = np.ceil(rng.exponential(300, 200)), rng.random(200) < 0.6
    table = calibration_table(np.full(200, 0.4), days, event, horizon_days=365)
    fitter = lifelines.KaplanMeierFitter().fit(days, event)
    bounds = fitter.confidence_interval_survival_function_
    at_horizon = bounds.loc[bounds.index <= 365].iloc[-1].to_numpy()
    assert table["observed"][0] == pytest.approx(1 - fitter.predict(365), abs=1e-9)
    assert table["lower"][0] == pytest.approx(1 - at_horizon.max(), abs=1e-9)
    assert table["upper"][0] == pytest.approx(1 - at_horizon.min(), abs=1e-9)
