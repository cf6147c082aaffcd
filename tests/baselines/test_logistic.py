"""The logistic regression that stands in the place of the Cox model where labels are classes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from ehrtrack.baselines._logistic import Logistic, LogisticModel
from ehrtrack.baselines.base import Labelled, Tabular, baseline_class
from ehrtrack.baselines.settings import CoxConfig
from ehrtrack.errors import CheckpointError


def labelled(seed: int, n: int = 600) -> Tabular:
    """Counts a, b and c; the log odds of the class are those of a, and b and c mean nothing."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.0, (n, 3))
    truth = rng.random(n) < 1 / (1 + np.exp(-(2.0 * np.log1p(counts[:, 0]) - 1.5)))
    table = pl.DataFrame(counts, schema=["a", "b", "c"])
    return Labelled(table, np.ones(n), truth, has_classes=True)


TRAIN, VALIDATION = labelled(0), labelled(1)


def test_it_stands_in_the_place_of_cox_for_classes_alone() -> None:
    assert baseline_class("cox", has_classes=True) is Logistic
    assert baseline_class("cox") is not Logistic


def test_a_penalty_gives_the_coefficients_of_scikit_learn() -> None:
    model = Logistic(CoxConfig(penalties=(0.02,), l1_ratio=0.5)).fit(TRAIN, VALIDATION)
    x = np.log1p(TRAIN.features.to_numpy().astype(float))
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    library = LogisticRegression(solver="saga", l1_ratio=0.5, C=1 / (0.02 * 600), tol=1e-8, max_iter=10_000)
    library.fit(z, TRAIN.is_event)
    beta = {feature.name: feature.beta for feature in model.features}
    assert [beta.get(name, 0.0) for name in "abc"] == pytest.approx(library.coef_[0].tolist(), abs=1e-3)
    np.testing.assert_allclose(model.probability(TRAIN.features), library.predict_proba(z)[:, 1], atol=1e-3)


def test_the_path_begins_where_the_first_coefficient_leaves_0() -> None:
    at_first = Logistic(CoxConfig(n_candidates=1, l1_ratio=1.0)).fit(TRAIN, VALIDATION)
    assert all(abs(feature.beta) < 1e-3 for feature in at_first.features)
    model = Logistic(CoxConfig(n_candidates=8)).fit(TRAIN, VALIDATION)
    assert "a" in {feature.name for feature in model.features}
    assert model.n_candidates == 8


def test_its_probabilities_are_right() -> None:
    """A Cox model with all events on one day has a calibration slope of 6 on such labels."""
    model = Logistic(CoxConfig()).fit(labelled(2, 3_000), VALIDATION)
    test = labelled(3, 3_000)
    assert model.probability(test.features).mean() == pytest.approx(test.is_event.mean(), abs=0.03)
    high = model.probability(test.features) > 0.6
    assert test.is_event[high].mean() == pytest.approx(model.probability(test.features)[high].mean(), abs=0.05)


def test_survival_is_one_minus_the_probability_at_the_day_that_classes_have() -> None:
    model = Logistic(CoxConfig()).fit(TRAIN, VALIDATION)
    p = model.probability(TEN := VALIDATION.features[:10])
    np.testing.assert_allclose(model.survival(TEN, [0.0, 0.5, 1.0]), np.stack([np.ones(10), 1 - p / 2, 1 - p], axis=1))
    np.testing.assert_array_equal(model.risk(TEN, 1.0), p)


def test_json_keeps_the_predictions_and_other_texts_are_refused() -> None:
    model = Logistic(CoxConfig()).fit(TRAIN, VALIDATION)
    again = LogisticModel.from_json(model.to_json())
    np.testing.assert_array_equal(again.probability(VALIDATION.features), model.probability(VALIDATION.features))
    with pytest.raises(CheckpointError, match="not a logistic regression"):
        LogisticModel.from_json('{"features": []}')
