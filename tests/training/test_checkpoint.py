"""Tensors on disk: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ehrtrack.errors import CheckpointError
from ehrtrack.training import checkpoint
from ehrtrack.training.checkpoint import load_tensors, save_tensors, weights_fingerprint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    save_tensors(tmp_path / "deep" / "w.safetensors", TENSORS)
    again = load_tensors(tmp_path / "deep" / "w.safetensors")
    assert again.keys() == TENSORS.keys()
    assert all(torch.equal(again[name], TENSORS[name]) for name in TENSORS)


def test_tensors_that_share_memory_or_are_transposed_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "w.safetensors", {"part": whole[:1], "turned": whole.T})
    assert torch.equal(load_tensors(tmp_path / "w.safetensors")["turned"], whole.T)


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, TENSORS)

    def break_down(tensors: object, file: Path) -> None:
        Path(file).write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", break_down)
    with pytest.raises(OSError, match="no space left"):
        save_tensors(path, {"a": torch.zeros(2, 3)})
    assert torch.equal(load_tensors(path)["a"], TENSORS["a"])


@pytest.mark.parametrize("n_bytes", [0, 4, 60, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_tensors(path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError):
        load_tensors(tmp_path / "w.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        load_tensors(tmp_path / "nothing.safetensors")


def test_the_fingerprint_depends_on_names_shapes_and_values_and_not_on_order() -> None:
    fingerprint = weights_fingerprint(TENSORS)
    assert len(fingerprint) == 16
    assert fingerprint == weights_fingerprint(dict(reversed(TENSORS.items())))
    changed = TENSORS["a"].clone()
    changed[0, 0] = 1e-20
    assert fingerprint != weights_fingerprint(TENSORS | {"a": changed})
    assert fingerprint != weights_fingerprint(TENSORS | {"a": TENSORS["a"].reshape(3, 2)})
    assert fingerprint != weights_fingerprint({"c": TENSORS["a"], "b": TENSORS["b"]})
