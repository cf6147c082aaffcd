"""Gradient boosting that is chosen by cross-validation over training and validation subjects."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from ehrtrack.baselines._folds import HeldOut
from ehrtrack.baselines.base import Tabular
from ehrtrack.baselines.gradient_boosting import BoostingModel, GradientBoosting, _brier_score
from ehrtrack.baselines.settings import GradientBoostingConfig, GradientBoostingTimingConfig
from ehrtrack.errors import ConfigError
from ehrtrack.survival.metrics import c_index, evaluation_times, integrated_brier_score

SETTINGS = {"select": "cross-validation", "n_candidates": 1, "n_folds": 3, "max_trees": 40, "min_rows": (10,)}


def simulated(n: int, seed: int) -> Tabular:
    """A value that raises the hazard, recorded of two thirds, and one that means nothing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    days = rng.exponential(300 * np.exp(-1.5 * x[:, 0]))
    x[rng.random((n, 2)) < 1 / 3] = np.nan
    table = pl.DataFrame(x, schema=["last_value A", "last_value B"]).with_columns(
        age_years=pl.Series(rng.normal(60, 9, n))
    )
    return Tabular(table, np.minimum(days, 365), days < 365)


def boosting() -> GradientBoosting:
    return GradientBoosting(GradientBoostingConfig.model_validate(SETTINGS))


def test_it_learns_from_both_and_says_how_it_was_chosen():
    train, validation, test = simulated(150, 0), simulated(100, 1), simulated(300, 2)
    model = boosting().fit(train, validation)
    assert c_index(model.risk(test.features, 365), test.follow_up_days, test.is_event) > 0.65
    facts = model.describe()
    assert facts["chosen_by"] == "likelihood in 3-fold cross-validation over training and validation subjects"
    assert 0.6 < float(facts["validation_c_index"]) < 0.85
    assert BoostingModel.from_json(model.to_json()).describe() == facts
    alone = test.features.drop("last_value B").head(4)  # nobody's B
    gaps = test.features.head(4).with_columns(pl.lit(float("nan"), pl.Float32).alias("last_value B"))
    np.testing.assert_array_equal(model.risk(alone, 365), model.risk(gaps, 365))


def test_validation_subjects_are_scored_by_models_that_did_not_learn_from_them():
    """A label that is hard to believe is believed by the model that learnt it, and not by the one without its fold."""
    train, validation = simulated(150, 0), simulated(60, 1)
    chosen = boosting()
    model = chosen.fit(train, validation)
    scored = chosen.validation_survival(model, validation, [100.0, 365.0])
    assert scored.shape == (60, 2)
    in_sample = c_index(model.risk(validation.features, 365), validation.follow_up_days, validation.is_event)
    assert c_index(1 - scored[:, 1], validation.follow_up_days, validation.is_event) < in_sample


@pytest.mark.parametrize("has_classes", [False, True])
def test_by_integrated_brier_score_the_better_of_two_settings_is_kept(has_classes: bool):
    """The first learns next to nothing; and the score is told by its name."""
    train, validation = simulated(150, 0), simulated(60, 1)
    if has_classes:
        train, validation = (
            replace(of, follow_up_days=np.ones(len(of.is_event)), has_classes=True) for of in (train, validation)
        )
    settings = {**SETTINGS, "select": "cross-validation-ibs", "n_candidates": 2, "learning_rates": (1e-4, 0.1)}
    one = {"max_leaves": (8,), "penalties": (1.0,), "feature_shares": (1.0,), "n_intervals": 1 if has_classes else 4}
    facts = GradientBoosting(GradientBoostingConfig.model_validate(settings | one)).fit(train, validation).describe()
    assert facts["learning_rate"] == 0.1
    assert (
        facts["chosen_by"] == "integrated Brier score in 3-fold cross-validation over training and validation subjects"
    )


def test_the_brier_score_of_folds_is_that_of_everybody_at_once():
    everyone = simulated(60, 0)
    curve = np.array([0.7, 0.4])

    class Constant:
        def survival(self, features: pl.DataFrame, times: npt.ArrayLike) -> npt.NDArray[np.float64]:
            return np.full((len(features), np.size(times)), curve[int(features["fold"][0])])

    fold = np.arange(60) % 2
    of_folds = replace(everyone, features=everyone.features.with_columns(fold=pl.Series(fold)))
    held_out: HeldOut[pl.DataFrame] = HeldOut(0)
    for number in (0, 1):
        held_out.add(np.flatnonzero(fold == number), cast(BoostingModel, Constant()))
    days, is_event = everyone.follow_up_days, everyone.is_event
    times = evaluation_times(days, is_event, days)
    survival = np.broadcast_to(curve[fold][:, None], (60, len(times)))
    expected = integrated_brier_score(days, is_event, days, is_event, survival, times)
    assert _brier_score(held_out, of_folds) == pytest.approx(expected, rel=1e-12)


def test_by_validation_subjects_nothing_is_held_out():
    train, validation = simulated(100, 0), simulated(60, 1)
    chosen = GradientBoosting(GradientBoostingConfig(n_candidates=1, max_trees=20))
    model = chosen.fit(train, validation)
    expected = model.survival(validation.features, [365.0])
    np.testing.assert_array_equal(chosen.validation_survival(model, validation, [365.0]), expected)


def test_times_and_recorded_values_are_not_read_together():
    with pytest.raises(ConfigError, match="gradient-boosting for these"):
        GradientBoostingTimingConfig(features="values")
