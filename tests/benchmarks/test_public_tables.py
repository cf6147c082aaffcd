from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from benchmarks.public_tables import study
from benchmarks.public_tables.hazard_head import fit_hazards
from benchmarks.public_tables.models import MODELS, fit_forest
from benchmarks.public_tables.report import result_of, squared_errors, verdict
from benchmarks.public_tables.study import Scored, fit_and_predict, folds, score_fold
from benchmarks.public_tables.tables import Table, fit_preprocessing, load_table
from ehrtrack.survival.metrics import c_index, evaluation_times, integrated_brier_score

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def veterans() -> Table:
    return load_table("veterans")


def test_columns_that_tell_of_the_outcome_are_not_read() -> None:
    assert "chapter" not in load_table("flchain").columns
    assert "los" not in load_table("whas500").columns


@pytest.mark.parametrize("name", ["gbsg2", "whas500", "flchain", "veterans"])
def test_a_table_becomes_finite_columns_of_mean_0_and_variance_1_in_training(name: str) -> None:
    table = load_table(name)
    train = np.arange(0, len(table), 2)
    prepare = fit_preprocessing(table.columns.iloc[train])
    x = prepare(table.columns.iloc[train])
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-9)
    assert set(x.std(axis=0).round(9)) <= {0.0, 1.0}
    assert np.isfinite(prepare(table.columns)).all()
    assert (table.days > 0).all()


def test_nothing_is_fitted_on_the_rows_left_out(veterans: Table) -> None:
    """Their ages and follow-up are changed; what is predicted of one of them that is not, is the same."""
    train, test = next(folds(veterans.is_event, 5, seed=0))
    columns, days = veterans.columns.copy(), veterans.days.copy()
    columns.iloc[test[1:], columns.columns.get_loc("Age_in_years")] += 30
    middle = test[(days[test] > days[test].min()) & (days[test] < days[test].max())]
    days[middle] += 0.25
    changed = replace(veterans, columns=columns, days=days)
    for name in ("cox", "discrete-hazards"):
        model = MODELS[name]
        ours, theirs = (fit_and_predict(t, model, model.settings[0], train, test, 0)[1][0] for t in (veterans, changed))
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_errors_of_subjects_average_to_the_integrated_brier_score() -> None:
    rng = np.random.default_rng(0)
    days, event = rng.exponential(100, 300), rng.random(300) < 0.6  # without ties
    table = Table("made", load_table("veterans").columns, days, event)
    test, train = np.arange(100), np.arange(100, 300)
    times = evaluation_times(days[train], event[train], days[test])
    survival = np.exp(-np.outer(rng.uniform(0.5, 2, 100), times / 100))
    ours = squared_errors(Scored(test, train, times, survival, {}), table).mean()
    reference = integrated_brier_score(days[train], event[train], days[test], event[test], survival, times)
    assert ours == pytest.approx(reference, abs=1e-9)


def test_with_one_coefficient_for_all_intervals_the_order_is_that_of_cox() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 3))
    event_day, censored = rng.exponential(100 * np.exp(-x @ [1.0, -0.5, 0.0])), rng.uniform(20, 300, 400)
    days, event = np.minimum(event_day, censored), event_day <= censored
    setting = {"own_penalty": 100.0, "penalty": 1e-6, "lambda_rank": 0.0}
    times = np.linspace(10, 90, 9)
    risk = -fit_hazards(x, days, event, setting, 0)(x, times).mean(axis=1)
    cox = CoxPHSurvivalAnalysis().fit(x, Surv.from_arrays(event, days))
    assert np.corrcoef(risk.argsort().argsort(), cox.predict(x).argsort().argsort())[0, 1] > 0.995
    assert c_index(risk, days, event) == pytest.approx(cox.score(x, Surv.from_arrays(event, days)), abs=0.003)


def test_forest_curves_fall_from_one_and_are_read_on_days() -> None:
    rng = np.random.default_rng(2)
    x, days = rng.normal(size=(120, 2)), rng.exponential(50, 120)
    survival = fit_forest(x, days, np.ones(120, bool), {"min_samples_leaf": 15, "max_features": 0.6}, 0)
    curves = survival(x, np.array([0.0, 20.0, 60.0, 1e6]))
    np.testing.assert_array_equal(curves[:, 0], 1.0)
    assert (np.diff(curves, axis=1) <= 0).all()
    np.testing.assert_allclose(curves.mean(axis=0)[1:3], [(days > day).mean() for day in (20, 60)], atol=0.06)


def test_a_fold_that_is_kept_is_not_fitted_again(
    veterans: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score_fold(veterans, "cox", 1, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(study, "choose_setting", lambda *_: pytest.fail("fitted again"))
        again = score_fold(veterans, "cox", 1, tmp_path)
    np.testing.assert_array_equal(first.survival, again.survival)
    assert first.setting == again.setting


def test_a_verdict_names_what_was_missed(veterans: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "choose_setting", lambda *_: {"penalty": 0.003})
    parts = [score_fold(veterans, "cox", fold, tmp_path) for fold in range(5)]
    cox = result_of(veterans, parts)
    worse = result_of(veterans, [replace(part, survival=1 - part.survival * 0.2) for part in parts])
    assert "met." in verdict("veterans", {"cox": cox, "random-survival-forest": cox, "discrete-hazards": cox})
    assert "**missed**" in verdict("veterans", {"cox": cox, "random-survival-forest": cox, "discrete-hazards": worse})
    difference, _ = cox.minus(cox)
    assert (difference.estimate, difference.lower, difference.upper) == (0, 0, 0)
