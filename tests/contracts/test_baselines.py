"""What every baseline must do; a new module in ehrtrack/baselines is tested here on arrival."""

from __future__ import annotations

import json
import typing

import numpy as np
import polars as pl
import pytest

from ehrtrack import plugins
from ehrtrack.baselines._protocol import FittedBaseline, Tabular
from ehrtrack.section import Section
from ehrtrack.survival.metrics import c_index


def subjects(n: int, seed: int) -> Tabular:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.0, (n, 4))
    time = rng.exponential(500 * np.exp(-counts[:, 0]))
    features = pl.DataFrame(counts, schema=["A", "B", "C", "D"], orient="row").cast(pl.Float32)
    return Tabular(features, np.minimum(time, 365), time < 365)


TRAIN, VALIDATION, TEST = (subjects(200, seed) for seed in range(3))
TIMES = [0.0, 30.0, 180.0, 365.0]


@pytest.fixture(scope="module", params=plugins.names("baselines"))
def name(request: pytest.FixtureRequest) -> str:
    return typing.cast(str, request.param)


@pytest.fixture(scope="module")
def model(name: str) -> FittedBaseline:
    module = plugins.load("baselines", name)
    return typing.cast(FittedBaseline, module.fit(module.Config(), TRAIN, VALIDATION))


def test_config_is_a_section_that_carries_its_name(name: str) -> None:
    config = plugins.load("baselines", name).Config()
    assert isinstance(config, Section)
    assert config.name == name


def test_survival_is_a_falling_probability_from_one(model: FittedBaseline) -> None:
    survival = model.survival(TEST.features, TIMES)
    assert survival.shape == (200, 4)
    np.testing.assert_allclose(survival[:, 0], 1)
    assert (np.diff(survival, axis=1) <= 0).all()
    assert (survival >= 0).all()


def test_risk_is_one_minus_survival(model: FittedBaseline) -> None:
    np.testing.assert_allclose(model.risk(TEST.features, 180.0), 1 - model.survival(TEST.features, [180.0])[:, 0])


def test_it_learns_a_strong_effect(model: FittedBaseline) -> None:
    assert c_index(model.risk(TEST.features, 365.0), TEST.follow_up_days, TEST.is_event) > 0.65


def test_the_same_data_give_the_same_model(name: str, model: FittedBaseline) -> None:
    module = plugins.load("baselines", name)
    assert module.fit(module.Config(), TRAIN, VALIDATION).to_json() == model.to_json()


def test_columns_go_by_name(model: FittedBaseline) -> None:
    shuffled = TEST.features.select("D", "B", "A", "C")
    np.testing.assert_array_equal(model.risk(shuffled, 365.0), model.risk(TEST.features, 365.0))


def test_facts_can_be_logged(model: FittedBaseline) -> None:
    facts = model.describe()
    assert {"n_features", "n_parameters"} <= facts.keys()
    assert all(isinstance(value, float | int | str) for value in facts.values())


def test_json_brings_back_the_same_predictions(name: str, model: FittedBaseline) -> None:
    text = model.to_json()
    json.loads(text)
    again = plugins.load("baselines", name).from_json(text)
    np.testing.assert_array_equal(again.survival(TEST.features, TIMES), model.survival(TEST.features, TIMES))
