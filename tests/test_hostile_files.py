"""Files from elsewhere: damaged ones are named, none leads out of its folder, none takes memory that it cannot fill."""

from __future__ import annotations

import base64
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from simulated import study

from ehrtrack.baselines._trees import Trees
from ehrtrack.baselines.sequence import FittedSequenceModel, Sequence, _network
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import CheckpointError
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.heads import HazardHead
from ehrtrack.pipeline.model_files import CHECKSUMS
from ehrtrack.pipeline.model_folder import read_model_folder, write_checksums, write_model_folder
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.outbox import sync
from ehrtrack.tracking.outbox.journal import Journal, Progress, write_progress

V = 30
GRID = TimeGrid((0.0, 10.0, 365.0))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder as a finetune run writes it."""
    encoder = Behrt(ModelConfig(size="tiny"), V)
    write_model_folder(
        tmp_path / "model",
        config=study(tmp_path / "meds", tmp_path / "cache"),
        vocabulary=Vocabulary(SPECIAL_TOKENS + tuple(f"CODE//{k}" for k in range(V - 4)), {}, (1,) * V),
        fingerprints={"data": "d"},
        model=EhrModel(encoder, HazardHead(encoder.width, torch.zeros(2))),
        grid=GRID,
    )
    return tmp_path / "model"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "run_config.json", "vocabulary.json", "time_grid.json", "fingerprints.json"]
)
def test_one_flipped_bit_of_a_model_is_noticed(model: Path, name: str) -> None:
    read_model_folder(model)
    content = bytearray((model / name).read_bytes())
    content[len(content) * 2 // 3] ^= 1
    (model / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name.replace('.', chr(92) + '.')} is damaged: its SHA-256"):
        read_model_folder(model)


def test_a_link_a_pipe_and_a_file_of_any_size_are_not_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = model.parent / "secret.json"
    secret.write_text("{}")
    (model / "run_config.json").rename(model.parent / "kept")
    for make in (lambda file: file.symlink_to(secret), os.mkfifo):
        make(model / "run_config.json")
        with pytest.raises(CheckpointError, match=r"run_config\.json is no regular file"):
            read_model_folder(model)
        (model / "run_config.json").unlink()
    with (model / "run_config.json").open("wb") as sparse:
        sparse.truncate(3 * 2**30)
    with pytest.raises(CheckpointError, match=r"of at most 2,147,483,648 bytes"):
        read_model_folder(model)


def test_checksums_that_name_files_elsewhere_are_of_files_in_the_folder(model: Path) -> None:
    (model / CHECKSUMS).write_text(f"{'0' * 64}  ../../etc/hostname\n")
    with pytest.raises(CheckpointError, match="model/hostname is missing"):
        read_model_folder(model)


def test_a_file_that_was_put_in_later_is_not_read(model: Path) -> None:
    (model / "baseline.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"baseline\.json is not in sha256sums\.txt"):
        read_model_folder(model)


def test_a_tensor_larger_than_its_file_takes_no_memory(model: Path) -> None:
    n_values = 10**12
    header = {
        "encoder.embeddings.code.weight": {"dtype": "F32", "shape": [n_values], "data_offsets": [0, 4 * n_values]}
    }
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    write_checksums(model)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_model_folder(model)


def test_a_time_grid_larger_than_the_head_takes_no_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "time_grid.json").write_text(json.dumps({"edges_days": list(range(200_001))}))
    write_checksums(model)
    monkeypatch.setattr("ehrtrack.objectives.survival.HazardHead", lambda *_: pytest.fail("a head was made"))
    with pytest.raises(CheckpointError, match=r"hazards of shape \(2,\), 200000 intervals"):
        read_model_folder(model).survival_model()


def test_a_sequence_model_larger_than_its_weights_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"name": "gru", "width": 8, "n_codes": V}
    network = _network(shape, HazardHead(8, torch.zeros(2)), dropout=0.0)
    text = FittedSequenceModel(network, shape, GRID, {}).to_json()
    assert Sequence.from_json(text).shape == shape
    monkeypatch.setattr("ehrtrack.baselines.sequence._network", lambda *_, **__: pytest.fail("a network was made"))
    for name in ("width", "n_codes"):
        fields = json.loads(text)
        fields["shape"][name] = 10**9
        with pytest.raises(CheckpointError, match="beside weights of another"):
            Sequence.from_json(json.dumps(fields))
    fields = json.loads(text)
    fields["weights"] = base64.b64encode(safetensors.torch.save({"a": torch.zeros(1)})).decode()
    with pytest.raises(CheckpointError):
        Sequence.from_json(json.dumps(fields))


TREE = {
    "roots": [0], "feature": [0, -1, -1], "threshold": [0.5, 0, 0], "is_missing_left": [True, False, False],
    "left": [1, 0, 0], "right": [2, 0, 0], "value": [0.0, 0.1, 0.9],
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"feature": [1, -1, -1]},
        {"value": [[0.0], [0.1], [0.9]]},
        {"roots": 0},
        {"threshold": [[0.5], [0], [0]]},
        {"left": [0, 0, 0]},
        {"right": [3, 0, 0]},
        {"left": [-1, 0, 0]},
        {"roots": [3]},
        {"roots": [-1]},
        {"value": [0.0]},
    ],
    ids=str,
)
def test_a_tree_that_leads_in_circles_or_out_of_the_list_is_refused(changes: dict[str, list[float]]) -> None:
    assert [leaf.tolist() for leaf in Trees.from_json(TREE, n_columns=1).leaves(np.array([[0.2], [0.7]]))] == [[1, 2]]
    with pytest.raises(ValueError, match="make no trees"):
        Trees.from_json(TREE | changes, n_columns=1)


@pytest.mark.parametrize("name", ["../../../kept/mine.txt", "/{kept}/mine.txt", f"{'0' * 64}-00000000/.."])
def test_a_journal_from_elsewhere_sends_and_removes_no_other_file(local_store: Path, name: str) -> None:
    """It says that the server has the file already, after which a journal removes its own copy."""
    kept = local_store / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    folder = local_store / "elsewhere" / ("a" * 32)
    file = name.replace("/{kept}", str(kept))
    record = {"do": "artifact", "path": "a.txt", "sha256": "0" * 64, "bytes": 4, "file": file}
    opening = {
        "do": "open", "key": "a" * 32, "time": 1, "experiment": "study", "name": "run", "tags": {}, "parent": None,
        "joined": None,
    }  # fmt: skip
    journal = Journal(folder)
    journal.append(opening, opening, record, record | {"path": "b.txt"}, {"do": "end", "status": "FINISHED", "time": 2})
    journal.close()
    write_progress(folder, Progress(artifacts={"a.txt": "0" * 64}))
    sync.sync(local_store / "elsewhere")
    assert (kept / "mine.txt").read_text() == "mine"
    (run,) = client().search_runs([e.experiment_id for e in client().search_experiments()])
    assert queries.list_artifacts(run.info.run_id) in ([], ["sha256sums.txt"])
