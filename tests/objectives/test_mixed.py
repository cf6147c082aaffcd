"""Weighted sums of objectives: the parts are what they are alone, and the settings reach them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretraining import V, diseases, objective_for

from ehrtrack.config import parse_config
from ehrtrack.data.batch import Batches, collate
from ehrtrack.errors import ConfigError
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives.mixed import Mixed, MixedConfig
from ehrtrack.training.loop import evaluate
from ehrtrack.training.ranks import join_ranks

WEIGHTS = {"mlm": 2.0, "next-visit": 0.5}


@pytest.fixture(scope="module")
def mixed() -> tuple[Mixed, EhrModel]:
    torch.manual_seed(0)
    objective = objective_for(diseases(), "mixed", weights=WEIGHTS)
    assert isinstance(objective, Mixed)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    return objective, EhrModel(encoder, objective.make_head(encoder.width)).eval()


def test_loss_and_metrics_are_the_weighted_sums_of_the_parts_alone(mixed: tuple[Mixed, EhrModel]) -> None:
    objective, model = mixed
    batch = collate(diseases(), np.arange(20), max_tokens=64)
    loss, alone = objective.loss(model, batch), {}
    batches = Batches(diseases(), np.arange(30), 100, 64)
    metrics, parts = evaluate(model, objective, batches, join_ranks("cpu")), {}
    for name in WEIGHTS:
        single = EhrModel(model.encoder, model.head.get_submodule(f"heads.{name}"))
        alone[name] = objective.parts[name].loss(single, batch).mean
        parts[name] = evaluate(single, objective.parts[name], batches, join_ranks("cpu"))
    assert loss.weight == 20
    assert loss.mean == pytest.approx(sum(WEIGHTS[name] * mean for name, mean in alone.items()), rel=1e-5)
    assert metrics["val/loss"] == pytest.approx(sum(WEIGHTS[name] * m["val/loss"] for name, m in parts.items()))
    assert metrics["val/mlm_loss"] == parts["mlm"]["val/mlm_loss"]
    assert metrics["val/next_visit_loss"] == parts["next-visit"]["val/next_visit_loss"]
    assert objective.trivial.keys() >= {"val/mlm_loss", "val/next_visit_loss"}


def test_settings_reach_their_part() -> None:
    config = MixedConfig(weights=WEIGHTS, settings={"next-visit": {"n_cuts": 7}})
    assert config.parts()["next-visit"].model_dump()["n_cuts"] == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"mlm": 0.0}}, "one positive weight a part"),
        ({"weights": {"mixed": 1.0}}, "one positive weight a part"),
        ({"weights": {"mln": 1.0}}, "did you mean 'mlm'"),
        (
            {"weights": {"mlm": 1.0, "survival": 1.0}},
            "weights names survival: each part is an objective that pretrains",
        ),
        ({"weights": {"mlm": 1.0}, "settings": {"next-visit": {}}}, "settings of next-visit"),
        ({"weights": {"mlm": 1.0}, "settings": {"mlm": {"n_cut": 3}}}, "n_cut"),
    ],
)
def test_what_makes_no_sum_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"study": "s", "data": {"path": "d"}, "objective": {"name": "mixed", **settings}})
