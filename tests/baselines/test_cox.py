from __future__ import annotations

import json

import lifelines
import numpy as np
import polars as pl
import pytest
from sksurv.datasets import load_whas500

from ehrtrack.baselines.base import Tabular
from ehrtrack.baselines.cox import Cox, CoxConfig, CoxModel
from ehrtrack.errors import CheckpointError, ConfigError, DataError
from ehrtrack.survival.metrics import c_index


def whas500() -> Tabular:
    """The Worcester Heart Attack Study: 500 subjects, 215 deaths; times made distinct, so that tie rules agree."""
    x, y = load_whas500()
    features = pl.from_pandas(x.astype(float))
    days = y["lenfol"] + np.random.default_rng(0).uniform(0, 0.5, len(y))
    return Tabular(features, days, y["fstat"].astype(bool))


def simulated(n: int, n_codes: int, seed: int = 0) -> Tabular:
    """Counts of codes of which the first five raise the hazard; follow-up ends at 365 days."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.0, (n, n_codes))
    age = rng.normal(60, 10, n)
    time = rng.exponential(600 * np.exp(-0.5 * np.log1p(counts[:, :5]).sum(axis=1) - 0.03 * (age - 60)))
    features = pl.DataFrame(counts, schema=[f"code_{j}" for j in range(n_codes)])
    features = features.with_columns(age_years=pl.Series(age))
    return Tabular(features, np.minimum(time, 365), time < 365)


def separated() -> Tabular:
    """Twelve subjects whose order of dying is that of a column: without a penalty beta is infinite."""
    x = np.random.default_rng(0).normal(size=(12, 2))
    return Tabular(pl.DataFrame(x, schema=["a", "b"]), np.exp(-3 * x[:, 0]), np.ones(12, bool))


def test_with_no_penalty_to_speak_of_it_is_the_cox_model_of_lifelines() -> None:
    data = whas500()
    model = Cox(CoxConfig(penalties=(1e-7,), log_counts=False)).fit(data, data)
    frame = data.features.to_pandas().assign(days=data.follow_up_days, event=data.is_event)
    reference = lifelines.CoxPHFitter().fit(frame, "days", "event")
    beta = {feature.name: feature.beta / feature.scale for feature in model.features}
    assert beta == pytest.approx(reference.params_.to_dict(), abs=1e-3)
    times = reference.baseline_survival_.index[[50, 200, 400]]  # steps: between them lifelines interpolates
    expected = reference.predict_survival_function(frame, times=times).to_numpy().T
    np.testing.assert_allclose(model.survival(data.features, times), expected, atol=1e-3)


def test_the_penalty_with_the_best_validation_c_index_is_chosen() -> None:
    train, validation = simulated(200, 100, seed=1), simulated(300, 100, seed=2)
    penalties = (3.0, 1.0, 0.5, 0.01)
    model = Cox(CoxConfig(penalties=penalties)).fit(train, validation)
    singles = [Cox(CoxConfig(penalties=(penalty,))).fit(train, validation) for penalty in penalties]
    best = max(singles, key=lambda single: single.validation_c_index)
    assert model.penalty == best.penalty
    assert 0.01 < model.penalty < 3.0
    risk = model.risk(validation.features, 365)
    assert model.validation_c_index == c_index(risk, validation.follow_up_days, validation.is_event)


def test_more_features_than_subjects_still_find_the_signal() -> None:
    train, validation, test = (simulated(250, 2000, seed=seed) for seed in range(3))
    model = Cox(CoxConfig()).fit(train, validation)
    assert model.n_features > 250
    assert c_index(model.risk(test.features, 365), test.follow_up_days, test.is_event) > 0.6


def test_a_path_that_diverges_is_cut_short() -> None:
    config = CoxConfig(min_penalty_ratio=1e-9, min_subjects=1, l1_ratio=1.0)
    model = Cox(config).fit(separated(), separated())
    assert model.validation_c_index == 1
    asked = Cox(config.model_copy(update={"penalties": (0.1, 1e-12)})).fit(separated(), separated())
    assert asked.penalty == 0.1


def test_constant_and_rare_columns_are_left_out() -> None:
    data = simulated(100, 3)
    rare = np.zeros(100)
    rare[:4] = 1
    features = data.features.with_columns(constant=pl.lit(1.0), rare=pl.Series(rare))
    model = Cox(CoxConfig(min_subjects=5)).fit(
        Tabular(features, data.follow_up_days, data.is_event), data_of(data, features)
    )
    assert model.n_features == 4  # 3 codes and age
    assert not {"constant", "rare"} & {feature.name for feature in model.features}


def data_of(data: Tabular, features: pl.DataFrame) -> Tabular:
    return Tabular(features, data.follow_up_days, data.is_event)


def test_nothing_of_the_validation_features_enters_the_scaling() -> None:
    train, validation = simulated(200, 5, seed=1), simulated(200, 5, seed=2)
    config = CoxConfig(penalties=(0.01,))
    moved = data_of(validation, validation.features * 10 + 3)
    assert Cox(config).fit(train, validation).features == Cox(config).fit(train, moved).features


def test_counts_are_logged_and_ages_are_not() -> None:
    model = Cox(CoxConfig(penalties=(0.001,))).fit(simulated(200, 5), simulated(200, 5))
    assert {feature.name: feature.is_count for feature in model.features} == {
        **{f"code_{j}": True for j in range(5)},
        "age_years": False,
    }


def test_survival_falls_from_one_and_ends_at_one_minus_risk() -> None:
    data = simulated(200, 5)
    model = Cox(CoxConfig()).fit(data, data)
    survival = model.survival(data.features, [0.0, 1.0, 100.0, 365.0])
    assert survival.shape == (200, 4)
    assert (survival[:, 0] == 1).all()
    assert (np.diff(survival, axis=1) <= 0).all()
    np.testing.assert_array_equal(model.risk(data.features, 365.0), 1 - survival[:, -1])


def test_mean_predicted_risk_is_about_the_observed_one() -> None:
    train, test = simulated(2000, 5, seed=1), simulated(2000, 5, seed=2)
    model = Cox(CoxConfig()).fit(train, test)
    assert model.risk(test.features, 364.9).mean() == pytest.approx(test.is_event.mean(), abs=0.03)


def test_columns_go_by_name_and_others_are_ignored() -> None:
    data = simulated(200, 5)
    model = Cox(CoxConfig()).fit(data, data)
    shuffled = data.features.select(reversed(data.features.columns)).with_columns(other=pl.lit(1.0))
    np.testing.assert_array_equal(model.risk(shuffled, 365), model.risk(data.features, 365))


def test_json_round_trip_predicts_the_same() -> None:
    data = simulated(200, 5)
    model = Cox(CoxConfig()).fit(data, data)
    again = CoxModel.from_json(model.to_json())
    assert again == model
    np.testing.assert_array_equal(again.risk(data.features, 365), model.risk(data.features, 365))
    assert set(json.loads(model.to_json())) >= {"features", "baseline_days", "penalty"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"features": [{"name": 1}]}'])
def test_json_that_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="is not a Cox model"):
        CoxModel.from_json(text)


def test_missing_columns_are_named_when_predicting() -> None:
    data = simulated(200, 5)
    model = Cox(CoxConfig(penalties=(0.001,))).fit(data, data)
    with pytest.raises(DataError, match=r"1 of 6 features of the model are missing \(first: 'code_3'\)"):
        model.risk(data.features.drop("code_3"), 365)


def test_missing_values_are_named() -> None:
    data = simulated(50, 3)
    holes = data.features.with_columns(code_1=pl.Series([None, *range(49)], dtype=pl.Float64))
    with pytest.raises(DataError, match=r"1 of 4 features have missing or infinite values \(first: 'code_1'\)"):
        Cox(CoxConfig()).fit(data_of(data, holes), data)


def test_no_event_is_refused() -> None:
    data = simulated(50, 3)
    with pytest.raises(DataError, match="no event among 50 training subjects"):
        Cox(CoxConfig()).fit(Tabular(data.features, data.follow_up_days, np.zeros(50, bool)), data)


def test_no_usable_feature_is_refused() -> None:
    data = simulated(50, 3)
    with pytest.raises(DataError, match="none of 1 features varies"):
        Cox(CoxConfig()).fit(data_of(data, pl.DataFrame({"constant": [1.0] * 50})), data)


def test_text_columns_are_refused() -> None:
    with pytest.raises(DataError, match=r"columns that are not numbers: sex \(String\)"):
        Tabular(pl.DataFrame({"sex": ["F"]}), np.array([1.0]), np.array([True]))


def test_rows_must_agree_with_outcomes() -> None:
    with pytest.raises(DataError, match="2 rows of features, 1 follow-ups and 1 event flags"):
        Tabular(pl.DataFrame({"a": [1, 2]}), np.array([1.0]), np.array([True]))


def test_a_single_penalty_too_weak_to_fit_says_so() -> None:
    with pytest.raises(ConfigError, match=r"diverges at every penalty tried .* raise baseline\.penalties"):
        Cox(CoxConfig(penalties=(1e-12,), min_subjects=1, l1_ratio=1.0)).fit(separated(), separated())
