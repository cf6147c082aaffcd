"""What a model that starts from a pretrained one takes from it."""

from __future__ import annotations

import pytest

from ehrtrack.errors import ConfigError
from ehrtrack.models.settings import ModelConfig
from ehrtrack.recipes._adapt import with_shape_of

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
