"""The folder a model is kept in: it comes back whole, or says what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from simulated import random_store, study

from ehrtrack.config import override
from ehrtrack.data.batch import collate
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import CheckpointError
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.record_columns import Levels
from ehrtrack.pipeline.model_folder import read_model_folder, write_checksums, write_model_folder
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.training.checkpoint import load_tensors, save_tensors

V = 30
VOCABULARY = Vocabulary(SPECIAL_TOKENS + tuple(f"CODE//{k}" for k in range(V - 4)), {"CODE//1": (0.5, 2.0)}, (1,) * V)
GRID = TimeGrid((0.0, 10.0, 365.0))


def effects_of_codes() -> CodeEffects:
    levels = Levels.of(VOCABULARY)
    return CodeEffects(levels, torch.tensor([7.0]), torch.randn(CodeEffects.n_columns(levels, 1), 1), torch.randn(1))


def write(folder: Path, codes: CodeEffects | None = None, **changes: Any) -> EhrModel:
    torch.manual_seed(0)
    config = study(folder / "meds", folder / "cache", strategy={"name": "lora", "rank": 3})
    encoder = Behrt(config.model, V)
    model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(GRID.n_intervals), codes)).eval()
    arguments: dict[str, Any] = {
        "config": config, "vocabulary": VOCABULARY, "fingerprints": {"data": "d"}, "model": model, "grid": GRID,
    }  # fmt: skip
    write_model_folder(folder / "model", **arguments | changes)
    return model


@pytest.mark.parametrize("has_effects", [False, True])
def test_a_model_comes_back_with_the_same_predictions(tmp_path: Path, has_effects: bool) -> None:
    model = write(tmp_path, effects_of_codes() if has_effects else None)
    folder = read_model_folder(tmp_path / "model")
    assert folder.vocabulary == replace(VOCABULARY, counts=())  # a model tells no counts of a few subjects
    assert folder.grid == GRID
    assert folder.config.to_json()["strategy"]["rank"] == 3
    assert folder.fingerprints["data"] == "d"
    assert len(folder.fingerprints["encoder"]) == 16
    batch = collate(random_store(5, V), np.arange(5), max_tokens=20)
    with torch.no_grad():
        assert torch.equal(folder.survival_model()(batch), model(batch))


def test_it_is_safetensors_and_json_alone(tmp_path: Path) -> None:
    write(tmp_path)
    files = {file.name for file in (tmp_path / "model").iterdir()}
    assert files == {
        "model.safetensors", "run_config.json", "vocabulary.json", "time_grid.json", "fingerprints.json",
        "reading.json", "sha256sums.txt",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "run_config.json", "vocabulary.json", "fingerprints.json", "reading.json", "sha256sums.txt"],
)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / "model" / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        read_model_folder(tmp_path / "model")


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "run_config.json", "vocabulary.json", "fingerprints.json", "time_grid.json", "reading.json"],
)
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    file = tmp_path / "model" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError):
        read_model_folder(tmp_path / "model")


@pytest.mark.parametrize("text", ['{"max_tokens": "many"}', '{"seen": null}', '{"max_tokens": 8, "seen": {}}'])
def test_a_folder_that_does_not_say_how_it_reads_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / "model" / "reading.json").write_text(text)
    write_checksums(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"says max_tokens|what the model saw in training"):
        read_model_folder(tmp_path / "model")


def test_weights_beside_another_vocabulary_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    shorter = Vocabulary(VOCABULARY.tokens[:-1], {}, (1,) * (V - 1))
    shorter.save(tmp_path / "model" / "vocabulary.json")
    write_checksums(tmp_path / "model")
    with pytest.raises(CheckpointError, match="weights for 30 tokens beside a vocabulary of 29"):
        read_model_folder(tmp_path / "model")


def test_weights_of_another_size_than_the_configuration_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "model" / "run_config.json"
    values = json.loads(file.read_text())
    values["model"]["size"] = "small"
    file.write_text(json.dumps(values))
    write_checksums(tmp_path / "model")
    with pytest.raises(CheckpointError, match="do not fit"):
        read_model_folder(tmp_path / "model").survival_model()


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_tensors(file)
    del tensors["encoder.norm.weight"]
    save_tensors(file, tensors)
    write_checksums(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"encoder\.norm\.weight"):
        read_model_folder(tmp_path / "model").survival_model()


@pytest.mark.parametrize("name", ["effect", "code"])
def test_effects_of_codes_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, effects_of_codes())
    folder = read_model_folder(tmp_path / "model")
    weights = folder.weights | {f"head.codes.{name}": folder.weights[f"head.codes.{name}"][:-1].contiguous()}
    with pytest.raises(CheckpointError, match="effects of shape"):
        replace(folder, weights=weights).survival_model()


@pytest.mark.parametrize("prefix", ["head.effects.", "head.heads.time-to-event.effects."])
def test_what_pretraining_fitted_of_onsets_comes_back(tmp_path: Path, prefix: str) -> None:
    write(tmp_path)
    folder = read_model_folder(tmp_path / "model")
    folder = replace(folder, config=override(folder.config, {"model.readout_days": [7.0]}))
    assert folder.onset_effects() is None
    effects = effects_of_codes()
    weights = folder.weights | {prefix + name: tensor for name, tensor in effects.state_dict().items()}
    again = replace(folder, weights=weights).onset_effects()
    assert again is not None
    assert torch.equal(again.effect, effects.effect)
    with pytest.raises(CheckpointError, match="the effects on onsets do not fit each other"):
        replace(folder, weights=weights | {f"{prefix}effect": effects.effect[:-1]}).onset_effects()
    with pytest.raises(CheckpointError, match=r"of 30 tokens and 1 scales of times, and the model has 29 and 1"):
        replace(folder, weights=weights, vocabulary=replace(VOCABULARY, tokens=VOCABULARY.tokens[:-1])).onset_effects()


def test_a_pretrained_model_predicts_no_survival(tmp_path: Path) -> None:
    write(tmp_path, grid=None)
    with pytest.raises(CheckpointError, match="predicts no survival"):
        read_model_folder(tmp_path / "model").survival_model()
