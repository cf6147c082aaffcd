"""What a model that starts from a pretrained one takes from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import Population, study, write_dataset

from ehrtrack.errors import ConfigError
from ehrtrack.models.settings import ModelConfig
from ehrtrack.recipes._adapt import with_shape_of
from ehrtrack.recipes._model_folder import read_model_folder
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.tracking.queries import download

BASE = ModelConfig(size="tiny", dropout=0.3, readout_days=(0.05, 0.3))


def test_the_encoders_shape_comes_from_the_base_and_dropout_does_not() -> None:
    model = with_shape_of(BASE, ModelConfig(dropout=0.2), "abc")
    assert (model.size, model.readout_days, model.dropout) == ("tiny", (0.05, 0.3), 0.2)
    assert with_shape_of(BASE, ModelConfig(size="tiny"), "abc").readout_days == (0.05, 0.3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (ModelConfig(size="small"), "init.run abc holds an encoder with model.size=tiny and model.size is small"),
        (
            ModelConfig(readout_days=(1.0, 30.0)),
            r"model.readout_days=\(0.05, 0.3\) and model.readout_days is \(1.0, 30.0",
        ),
    ],
)
def test_another_shape_is_refused(asked: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_shape_of(BASE, asked, "abc")


def test_a_lasso_starts_from_what_the_base_says_of_onsets(local_store: Path) -> None:
    """The records go on past the index date, where the outcome's code is one of the onsets."""
    dataset = write_dataset(local_store / "meds", Population(n_subjects=300, hazard_ratio=3.0))
    effects = []
    for lasso in (0.1, 0.0):
        settings = (dataset.path, local_store / "cache")
        train = {"epochs": 1, "batch_tokens": 512}
        base = pretrain(study(*settings, objective={"name": "time-to-event", "lasso": lasso}, train=train))
        adapted = study(
            *settings,
            strategy={"name": "frozen"},
            objective={"name": "survival", "lasso": 0.4},
            init={"run": base.run_id},
            train=train,
        )
        run = finetune(adapted)
        folder = read_model_folder(download(run.run_id, "model", local_store / f"model-{lasso}"))
        effects.append(folder.weights["head.codes.effect"])
    from_onsets, alone = effects
    assert from_onsets.shape == alone.shape
    assert 0 < int(alone.count_nonzero()) < 40
    assert int(from_onsets.count_nonzero()) > 2 * int(alone.count_nonzero())  # an onset has many effects at once
