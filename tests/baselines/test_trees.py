"""Boosting and forest: what is kept as JSON predicts what the library predicts, and time is handled as stated."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sksurv.ensemble import RandomSurvivalForest
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from ehrtrack.baselines import gradient_boosting, random_survival_forest
from ehrtrack.baselines._cuts import N_PARTS, Cuts
from ehrtrack.baselines.base import Baseline, Tabular, candidates, seen_within
from ehrtrack.baselines.gradient_boosting import CutPeriods, GradientBoosting, GradientBoostingConfig
from ehrtrack.baselines.random_survival_forest import Forest, RandomSurvivalForestConfig
from ehrtrack.errors import DataError
from ehrtrack.survival.time_grid import TimeGrid

COLUMNS = ["a", "b", "c", "d", "e"]


def subjects(n: int, seed: int, *, share_missing: float = 0.0) -> Tabular:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    time = rng.exponential(200 * np.exp(-x[:, 0]))
    x[rng.random(x.shape) < share_missing] = np.nan
    return Tabular(pl.DataFrame(x, schema=COLUMNS), np.minimum(time, 365), time < 365)


@pytest.mark.parametrize("n", [200, 1200], ids=["few values", "quantiles"])
def test_the_trees_kept_are_those_of_scikit_learn(n: int) -> None:
    train = subjects(n, 1, share_missing=0.2)
    grid = TimeGrid((0.0, 50.0, 150.0, 365.0))
    data = CutPeriods.of(COLUMNS, grid, train)
    x, y, weight = data.train
    library = HistGradientBoostingClassifier(max_iter=30, max_leaf_nodes=6, early_stopping=False).fit(x, y, weight)
    model = gradient_boosting._from_library(library, 30, data)
    others = subjects(100, 2, share_missing=0.2).features
    periods = np.column_stack([np.repeat(others.to_numpy(), 3, axis=0), np.tile(np.arange(3), 100)])
    expected = library.predict_proba(data.cuts.part(periods))[:, 1].reshape(100, 3)
    np.testing.assert_allclose(model.hazard(others), expected, rtol=1e-12)


def test_a_column_with_few_values_is_cut_as_scikit_learn_cuts_it() -> None:
    rng = np.random.default_rng(0)
    x = np.where(rng.random((400, 2)) < 0.1, np.nan, rng.integers(0, 40, (400, 2)) / 7)
    y, others = x[:, 0] + rng.normal(size=400) > 2, rng.normal(3, 2, (100, 2))
    cuts = Cuts.of(x, np.ones(400))
    by_cuts, by_itself = (HistGradientBoostingClassifier(early_stopping=False) for _ in range(2))
    by_cuts.fit(cuts.part(x), y)
    by_itself.fit(x, y)
    np.testing.assert_array_equal(by_cuts.predict_proba(cuts.part(others)), by_itself.predict_proba(others))


def test_a_row_without_weight_has_no_value_to_cut_at() -> None:
    assert Cuts.of(np.array([[1.0], [2.0], [9.0]]), np.array([1.0, 1.0, 0.0])).edges[0].tolist() == [1.5]


def test_parts_of_many_values_have_equal_weight_and_a_row_without_weight_has_no_say() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(5000, 1)), rng.random(5000)
    x[:10], weight[:10] = 1e6, 0.0
    cuts = Cuts.of(x, weight)
    assert len(cuts.edges[0]) == N_PARTS - 1
    assert cuts.edges[0].max() < 1e6
    of_part = np.bincount(cuts.part(x)[10:, 0].astype(int), weights=weight[10:])
    np.testing.assert_allclose(of_part, weight.sum() / N_PARTS, atol=1.0)


def test_the_first_trees_are_those_of_that_stage() -> None:
    train, grid = subjects(300, 1), TimeGrid((0.0, 100.0, 365.0))
    data = CutPeriods.of(COLUMNS, grid, train)
    library = HistGradientBoostingClassifier(max_iter=20, early_stopping=False).fit(data.train.x, data.train.is_event)
    first = data.cuts.part(np.column_stack([train.features.to_numpy(), np.zeros(300)]))
    stage = list(library.staged_predict_proba(first))[6]
    model = gradient_boosting._from_library(library, 7, data)
    np.testing.assert_allclose(model.hazard(train.features)[:, 0], stage[:, 1], rtol=1e-12)


def test_a_splits_column_that_is_not_used_need_not_be_there() -> None:
    """Of constant and noise columns beside a strong one, those that no tree asks for are not kept."""
    train = subjects(300, 1)
    wide = Tabular(train.features.with_columns(f=pl.lit(1.0)), train.follow_up_days, train.is_event)
    model = GradientBoosting(GradientBoostingConfig(n_candidates=1, max_trees=5)).fit(wide, wide)
    assert "a" in model.columns
    assert "f" not in model.columns
    model.risk(train.features.select(model.columns), 365.0)
    with pytest.raises(DataError, match="first: 'a'"):
        model.risk(train.features.drop("a"), 365.0)


def test_trees_that_ask_for_the_interval_alone_predict_the_same_curve_for_everybody() -> None:
    """With few subjects the validation loss may keep no other tree."""
    train, grid = subjects(300, 1), TimeGrid((0.0, 50.0, 150.0, 365.0))
    data = CutPeriods.of(COLUMNS, grid, train)
    data.train.x[:, :5] = 0
    library = HistGradientBoostingClassifier(max_iter=5, early_stopping=False).fit(data.train.x, data.train.is_event)
    model = gradient_boosting._from_library(library, 5, data)
    assert model.columns == ()
    hazard = model.hazard(train.features)
    assert hazard.shape == (300, 3)
    assert (hazard == hazard[0]).all()
    assert len(set(hazard[0])) == 3


def test_a_subject_is_a_row_for_each_interval_it_was_seen_through_and_in_part_for_that_of_its_censoring() -> None:
    grid = TimeGrid((0.0, 10.0, 20.0, 30.0))
    days = np.array([5.0, 15.0, 17.5, 30.0, 2.5])
    is_event = np.array([True, True, False, False, False])
    rows = Tabular(pl.DataFrame({"a": [1.0, 2.0, 3.0, 4.0, 5.0]}), days, is_event)
    x, y, weight = gradient_boosting.person_periods(rows, ["a"], grid)
    assert x.tolist() == [[1, 0], [2, 0], [2, 1], [3, 0], [3, 1], [4, 0], [4, 1], [4, 2], [5, 0]]
    assert y.tolist() == [True, False, True, False, False, False, False, False, False]
    assert weight.tolist() == [1, 1, 1, 1, 0.75, 1, 1, 1, 0.25]


def test_the_forest_sees_a_censored_subject_in_two_parts() -> None:
    """Seen through the second interval with 3 / 4, and not with 1 / 4; of the last subject only the former is told."""
    grid = TimeGrid((0.0, 10.0, 20.0, 30.0))
    days, is_event = np.array([15.0, 17.5, 30.0, 2.5]), np.array([True, False, False, False])
    rows = Tabular(pl.DataFrame({"a": [1.0, 2.0, 3.0, 4.0]}), days, is_event)
    x, y, weight = random_survival_forest._on_grid(rows, ["a"], grid)
    found = zip(x[:, 0].tolist(), y["event"].tolist(), y["time"].tolist(), weight.tolist(), strict=True)
    assert sorted(found) == [
        (1, True, 2, 1), (2, False, 1, 0.25), (2, False, 2, 0.75), (3, False, 3, 1), (4, False, 1, 0.25),
    ]  # fmt: skip


def test_the_forest_kept_is_that_of_scikit_survival() -> None:
    train, grid = subjects(300, 1), TimeGrid((0.0, 50.0, 150.0, 250.0, 365.0))
    x, y, weight = random_survival_forest._on_grid(train, COLUMNS, grid)
    library = RandomSurvivalForest(10, min_samples_leaf=8, random_state=0).fit(x, y, weight)
    model = random_survival_forest.from_library(library, COLUMNS, grid)
    others = subjects(100, 2).features
    expected = library.predict_survival_function(others.to_numpy(), return_array=True)
    assert library.unique_times_.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(model.survival(others, grid.edges_days)[:, 1:], expected, atol=1e-6)


def test_an_interval_that_nobody_leaves_has_the_curve_of_the_one_before() -> None:
    y = Surv.from_arrays(np.array([True, False] * 20), np.array([1.0, 3.0] * 20))
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    library = RandomSurvivalForest(3, random_state=0).fit(x, y)
    model = random_survival_forest.from_library(library, COLUMNS, TimeGrid((0.0, 1.0, 2.0, 3.0)))
    survival = model.survival(pl.DataFrame(x, schema=COLUMNS), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(survival[:, 0], survival[:, 1])
    assert survival[:, 0].mean() < 0.9


def test_the_forest_refuses_missing_values() -> None:
    train = subjects(100, 1, share_missing=0.1)
    with pytest.raises(DataError, match="missing or infinite"):
        Forest(RandomSurvivalForestConfig(n_candidates=1, n_trees=2)).fit(train, train)


def test_validation_events_past_the_last_training_follow_up_do_not_stop_a_fit() -> None:
    train, late = subjects(200, 1), subjects(200, 2)
    short = Tabular(train.features, np.minimum(train.follow_up_days, 100), train.is_event & (train.follow_up_days < 90))
    model = GradientBoosting(GradientBoostingConfig(n_candidates=1)).fit(short, late)
    assert model.grid.horizon_days == 100


def test_an_event_past_the_grid_is_a_censoring_at_its_end() -> None:
    rows = Tabular(pl.DataFrame({"a": [1.0, 2.0, 3.0]}), np.array([50.0, 100.0, 150.0]), np.ones(3, dtype=bool))
    seen = seen_within(rows, 100.0)
    assert seen.follow_up_days.tolist() == [50.0, 100.0, 100.0]
    assert seen.is_event.tolist() == [True, True, False]


@pytest.mark.parametrize("kind", [GradientBoosting, Forest])
def test_with_staggered_entry_the_mean_risk_is_kaplan_meiers(kind: type[Baseline]) -> None:
    """Features mean nothing. Without the share of the interval of censoring, risks are .1 too high and more."""
    rng = np.random.default_rng(0)
    came, censored = rng.exponential(900, 1000), rng.uniform(1, 1095, 1000)
    features = pl.DataFrame(rng.normal(size=(1000, 3)), schema=["a", "b", "c"])
    everybody = Tabular(features, np.minimum(came, censored), came <= censored)
    everybody = seen_within(everybody, float(np.sort(everybody.follow_up_days)[-10]))
    config = {"n_candidates": 1, "n_intervals": 4, "n_trees": 50, "min_rows": (50,)}
    settings = {name: value for name, value in config.items() if name in kind.Config.model_fields}
    model = kind(kind.Config(**settings)).fit(everybody, everybody)
    _, curve = kaplan_meier_estimator(everybody.is_event, everybody.follow_up_days)
    risk = model.risk(features, model.grid.horizon_days)
    assert risk.mean() == pytest.approx(1 - curve[-1], abs=0.02)


def test_candidates_begin_with_the_defaults_and_never_repeat() -> None:
    space = {"rate": (0.1, 0.2, 0.3), "leaves": (8, 16)}
    drawn = candidates(space, 5, seed=0)
    assert drawn[0] == {"rate": 0.1, "leaves": 8}
    assert len({tuple(setting.values()) for setting in drawn}) == 5
    assert len(candidates(space, 100, seed=0)) == 6
    assert candidates(space, 5, seed=0) == drawn
