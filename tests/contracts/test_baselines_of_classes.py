"""What every baseline must do with labels of classes: probabilities that are right, and a model that reads back."""

from __future__ import annotations

import typing

import numpy as np
import pytest
from test_baselines import HISTORIES, IS_EVENT, QUICK, TEST, TRAIN, VALIDATION

from ehrtrack import plugins
from ehrtrack.baselines.base import Baseline, FittedBaseline, Labelled, TokenHistories, baseline_class
from ehrtrack.errors import ConfigError
from ehrtrack.survival.classes import Classes, auroc


def quick(name: str) -> Baseline:
    config = plugins.settings("baselines", name)
    chosen = baseline_class(name, has_classes=True)
    return chosen(config(**{k: v for k, v in QUICK.items() if k in config.model_fields}))


def subjects(name: str, rows: np.ndarray) -> Labelled:
    features = quick(name).read(HISTORIES)[rows]
    return Labelled(features, np.ones(len(rows)), IS_EVENT[rows], has_classes=True)


@pytest.fixture(scope="module", params=plugins.names("baselines"))
def name(request: pytest.FixtureRequest) -> str:
    return typing.cast(str, request.param)


@pytest.fixture(scope="module")
def model(name: str) -> FittedBaseline:
    return quick(name).fit(subjects(name, TRAIN), subjects(name, VALIDATION))


def test_it_ranks_the_classes_by_right_probabilities(name: str, model: FittedBaseline) -> None:
    test = subjects(name, TEST)
    risk = model.risk(test.features, 1.0)
    assert auroc(Classes(risk, test.is_event)) > 0.7
    assert risk.mean() == pytest.approx(IS_EVENT[TRAIN].mean(), abs=0.07)
    np.testing.assert_allclose(model.survival(test.features, [1.0])[:, 0], 1 - risk)


def test_facts_name_the_score_that_chose(model: FittedBaseline) -> None:
    facts = model.describe()
    assert 0.5 < float(facts["validation_auroc"]) <= 1
    assert "validation_c_index" not in facts


def test_the_model_reads_back(name: str, model: FittedBaseline) -> None:
    test = subjects(name, TEST)
    again = baseline_class(name, has_classes=True).from_json(model.to_json())
    np.testing.assert_allclose(again.risk(test.features, 1.0), model.risk(test.features, 1.0), atol=1e-6)


def test_a_baseline_that_models_when_is_refused() -> None:
    class OfTime(Baseline[TokenHistories]):
        """From outside, and never told of classes."""

    with pytest.raises(ConfigError, match="OfTime models when the outcome comes"):
        OfTime.for_classes()
