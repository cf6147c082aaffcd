"""What a model that starts from a pretrained one takes from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import Population, study, write_dataset

from ehrtrack.errors import ConfigError
from ehrtrack.models.settings import ModelConfig
from ehrtrack.pipeline.build import read_base, with_shape_of
from ehrtrack.pipeline.model_folder import read_model_folder
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.queries import download, get_run

pytestmark = pytest.mark.usefixtures("undrawn_figures")

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


def test_from_scratch_a_base_that_the_file_names_is_dropped_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = study(tmp_path, tmp_path, strategy={"name": "scratch"}, init={"run": "latest"})
    base, settled = read_base(config)
    assert (base, settled.init.run) == (None, "")
    assert capsys.readouterr().out == "strategy scratch starts from random weights: init.run=latest is dropped\n"


def test_a_rank_beyond_the_width_is_refused_before_data_are_read(tmp_path: Path) -> None:
    config = study(tmp_path / "none", tmp_path, strategy={"name": "lora", "rank": 500, "embeddings": True})
    with pytest.raises(ConfigError, match=r"strategy.rank is 500 and the encoder is 32 wide.*at most 32"):
        finetune(config)


@pytest.mark.parametrize("verdict", ["ok", "fail"])
def test_a_base_that_failed_its_sanity_checks_is_warned_of_where_it_is_used(
    verdict: str, local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(local_store / "meds", Population(n_subjects=200, hazard_ratio=3.0))
    settings, train = (dataset.path, local_store / "cache"), {"epochs": 1, "batch_tokens": 512}
    base = pretrain(study(*settings, objective={"name": "mlm"}, train=train))
    for check in ("learned", "moved", "verdict"):
        client().set_tag(base.run_id, f"sanity.{check}", "ok" if check == "moved" else verdict)
    capsys.readouterr()
    run = finetune(study(*settings, strategy={"name": "frozen"}, init={"run": base.run_id}, train=train))
    warned = f"warning: the base, run {base.run_id}, failed its sanity checks: learned (the reasons"
    said, tags = capsys.readouterr().out, get_run(run.run_id).tags
    assert (warned in said) is (verdict == "fail")
    assert said.find(warned) < said.find("epoch   1/1")  # before it trains
    assert tags["sanity.base"] == ("ok" if verdict == "ok" else "warn")
    assert ("failed its sanity checks: learned" in tags["mlflow.note.content"]) is (verdict == "fail")
