"""What every baseline must do; a new module in ehrtrack/baselines is tested here on arrival."""

from __future__ import annotations

import json
import typing

import numpy as np
import polars as pl
import pytest
from simulated import History, Visit, store_of

from ehrtrack import plugins
from ehrtrack.baselines.base import Baseline, FittedBaseline, Labelled, TokenHistories, baseline_class
from ehrtrack.baselines.settings import TunedChoice
from ehrtrack.data.value_features import SCHEMA
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.survival.bootstrap import c_index_interval
from ehrtrack.survival.metrics import c_index

NO_VALUES = pl.DataFrame(schema=SCHEMA)
TIMES = [0.0, 30.0, 180.0, 365.0]
VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "A", "B", "C", "D"), {})
ROWS = {"train": np.arange(200), "validation": np.arange(200, 400), "test": np.arange(400, 600)}
TRAIN, VALIDATION, TEST = ROWS.values()
QUICK = {"n_candidates": 2, "epochs": 4, "batch_tokens": 256, "n_trees": 20, "max_trees": 60}
"""What keeps these tests short, where a baseline has it."""


def population(seed: int = 0) -> tuple[TokenHistories, np.ndarray, np.ndarray]:
    """600 subjects of whom each visit with token A multiplies the hazard by 4.5; B, C and D mean nothing."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.0, (600, 4))
    histories = [
        History([Visit([4 + code], 50.0, 20.0) for code in rng.permutation(np.repeat(np.arange(4), row))])
        for row in counts
    ]
    time = rng.exponential(800 * np.exp(-1.5 * counts[:, 0]))
    features = TokenHistories(store_of(histories), VOCABULARY, np.arange(600), max_tokens=32, values=NO_VALUES)
    return features, np.minimum(time, 365), time < 365


HISTORIES, FOLLOW_UP_DAYS, IS_EVENT = population()


def subjects(name: str, rows: np.ndarray, order: np.ndarray | None = None) -> Labelled:
    """Subjects as a baseline reads them; `order` gives them each other's outcomes."""
    features = quick(name).read(HISTORIES)[rows]
    labels = rows if order is None else rows[order]
    return Labelled(features, FOLLOW_UP_DAYS[labels], IS_EVENT[labels])


def quick(name: str) -> Baseline:
    config = plugins.settings("baselines", name)
    return baseline_class(name)(config(**{k: v for k, v in QUICK.items() if k in config.model_fields}))


def fit(name: str, train: Labelled, validation: Labelled) -> FittedBaseline:
    return quick(name).fit(train, validation)


@pytest.fixture(scope="module", params=plugins.names("baselines"))
def name(request: pytest.FixtureRequest) -> str:
    return typing.cast(str, request.param)


@pytest.fixture(scope="module")
def model(name: str) -> FittedBaseline:
    return fit(name, subjects(name, TRAIN), subjects(name, VALIDATION))


@pytest.fixture(scope="module")
def test_features(name: str) -> pl.DataFrame | TokenHistories:
    return subjects(name, TEST).features


def test_config_is_a_choice_that_carries_its_name(name: str) -> None:
    config = plugins.settings("baselines", name)()
    assert isinstance(config, TunedChoice)
    assert isinstance(config, baseline_class(name).Config)
    assert config.name == name


def test_all_have_the_same_budget_for_tuning(name: str) -> None:
    assert plugins.settings("baselines", name)().n_candidates == TunedChoice.model_fields["n_candidates"].default


def test_no_more_candidates_are_tried_than_the_budget(name: str, model: FittedBaseline) -> None:
    assert model.describe()["n_candidates"] == 2


def test_survival_is_a_falling_probability_from_one(model: FittedBaseline, test_features) -> None:
    survival = model.survival(test_features, TIMES)
    assert survival.shape == (200, 4)
    np.testing.assert_allclose(survival[:, 0], 1)
    assert (np.diff(survival, axis=1) <= 0).all()
    assert (survival >= 0).all()


def test_mean_survival_is_near_the_share_that_survived(model: FittedBaseline, test_features) -> None:
    """Nobody is censored before day 365, so the share is known."""
    seen = [(FOLLOW_UP_DAYS[TEST] > day).mean() for day in (30.0, 180.0)]
    np.testing.assert_allclose(model.survival(test_features, [30.0, 180.0]).mean(axis=0), seen, atol=0.12)


def test_survival_past_the_last_follow_up_is_that_at_its_end(model: FittedBaseline, test_features) -> None:
    at_end, past = model.survival(test_features, [365.0, 4000.0]).T
    np.testing.assert_array_equal(past, at_end)


def test_risk_is_one_minus_survival(model: FittedBaseline, test_features) -> None:
    np.testing.assert_allclose(model.risk(test_features, 180.0), 1 - model.survival(test_features, [180.0])[:, 0])


def test_it_learns_a_strong_effect(model: FittedBaseline, test_features) -> None:
    assert c_index(model.risk(test_features, 365.0), FOLLOW_UP_DAYS[TEST], IS_EVENT[TEST]) > 0.7


def test_permuted_labels_teach_nothing(name: str, test_features) -> None:
    """All subjects get each other's outcomes, those of the test too: whoever then scores reads the labels."""
    rng = np.random.default_rng(5)
    train, validation, test = (subjects(name, rows, rng.permutation(200)) for rows in ROWS.values())
    risk = fit(name, train, validation).risk(test_features, 365.0)
    interval = c_index_interval(risk, test.follow_up_days, test.is_event, n_resamples=200, seed=0)
    assert interval.lower <= 0.5 <= interval.upper


def test_the_same_data_give_the_same_model(name: str, model: FittedBaseline) -> None:
    assert fit(name, subjects(name, TRAIN), subjects(name, VALIDATION)).to_json() == model.to_json()


def test_subjects_go_one_by_one(model: FittedBaseline, test_features) -> None:
    """What is predicted of a subject does not depend on who is predicted beside it."""
    some = np.array([7, 3, 150])
    np.testing.assert_allclose(
        model.risk(test_features[some], 365.0), model.risk(test_features, 365.0)[some], rtol=1e-5
    )


def test_columns_go_by_name(model: FittedBaseline, test_features) -> None:
    if isinstance(test_features, TokenHistories):
        pytest.skip("has no columns")
    turned = test_features.select(reversed(test_features.columns))
    np.testing.assert_array_equal(model.risk(turned, 365.0), model.risk(test_features, 365.0))


def test_nobody_is_predicted_nothing(model: FittedBaseline, test_features) -> None:
    assert model.survival(test_features[np.arange(0)], TIMES).shape == (0, 4)


def test_facts_can_be_logged(model: FittedBaseline) -> None:
    facts = model.describe()
    assert {"n_features", "n_parameters", "n_candidates", "validation_c_index"} <= facts.keys()
    assert all(isinstance(value, float | int | str) for value in facts.values())


def test_json_brings_back_the_same_predictions(name: str, model: FittedBaseline, test_features) -> None:
    text = model.to_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    again = baseline_class(name).from_json(text)
    np.testing.assert_array_equal(again.survival(test_features, TIMES), model.survival(test_features, TIMES))


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"facts": {}}'])
def test_other_text_is_no_model(name: str, text: str) -> None:
    with pytest.raises(CheckpointError, match="is not a"):
        baseline_class(name).from_json(text)


def test_a_model_of_another_vocabulary_is_told(name: str, model: FittedBaseline) -> None:
    other = Vocabulary((*SPECIAL_TOKENS, "E", "F", "G"), {})
    store = store_of([History([Visit([4], 50.0)])])
    histories = TokenHistories(store, other, np.arange(1), max_tokens=32, values=NO_VALUES)
    with pytest.raises(DataError, match="vocabulary of the training run"):
        model.risk(quick(name).read(histories), 365.0)


def test_without_a_training_event_there_is_no_model(name: str) -> None:
    train = subjects(name, TRAIN)
    nobody = Labelled(train.features, train.follow_up_days, np.zeros(200, dtype=bool))
    with pytest.raises(DataError, match="no event among 200 training subjects"):
        fit(name, nobody, subjects(name, VALIDATION))
