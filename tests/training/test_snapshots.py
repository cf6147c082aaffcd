"""Training states: whole or named as damaged, whatever happens to the process, the disk or the files."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ehrtrack.errors import CheckpointError
from ehrtrack.training import _state_files
from ehrtrack.training.snapshots import CheckpointWriter, Snapshot, latest_snapshot

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ehrtrack.training.snapshots"])


def tensors_of(step: int, n_values: int = 6) -> dict[str, Tensor]:
    return {"weight": torch.full((n_values,), float(step)), "n_steps": torch.tensor(step)}


def is_whole(snapshot: Snapshot) -> bool:
    expected = tensors_of(snapshot.step, len(snapshot.tensors["weight"]))
    return snapshot.facts == {"epoch": snapshot.step} and all(
        torch.equal(snapshot.tensors[name], expected[name]) for name in expected
    )


def write_steps(folder: Path, *steps: int, n_kept: int = 2) -> None:
    writer = CheckpointWriter(folder, n_kept=n_kept)
    for step in steps:
        writer.save(step, tensors_of(step), {"epoch": step})
    writer.close()


def step_of(snapshot: Snapshot | None) -> int | None:
    assert snapshot is None or is_whole(snapshot)
    return snapshot and snapshot.step


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The states of steps 1 and 2."""
    write_steps(tmp_path / "states", 1, 2)
    return tmp_path / "states"


def test_tensors_and_facts_come_back_bit_for_bit(tmp_path: Path) -> None:
    whole = torch.tensor([[1.0, float("nan")], [-0.0, 1e-45]])
    tensors = {
        "turned": whole.T, "part": whole[:, :1], "scalar": torch.tensor(7.0), "none": torch.zeros(0, 3),
        "half": torch.tensor([1.5], dtype=torch.bfloat16), "mask": torch.tensor([True, False]),
        "state": torch.arange(256).to(torch.uint8),
    }  # fmt: skip
    facts = {"epoch": 3, "best": 0.1 + 0.2, "history": [{"val/loss": float("inf")}], "name": "Müller", "none": None}
    writer = CheckpointWriter(tmp_path)
    writer.save(12, tensors, facts)
    writer.close()
    snapshot = latest_snapshot(tmp_path)
    assert snapshot is not None
    assert (snapshot.step, snapshot.facts) == (12, facts)
    assert names_in(tmp_path) == ["step-000012"]
    assert snapshot.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        again = snapshot.tensors[name]
        assert (again.shape, again.dtype) == (tensor.shape, tensor.dtype)
        assert again.contiguous().flatten().view(torch.uint8).tolist() == (
            tensor.contiguous().flatten().view(torch.uint8).tolist()
        )


def test_what_changes_after_the_copy_does_not_reach_the_state(tmp_path: Path) -> None:
    tensors, facts = {"weight": torch.ones(10_000_000)}, {"history": [1]}
    writer = CheckpointWriter(tmp_path)
    writer.save(1, tensors, facts)
    facts["history"].append(2)
    writer.wait_copied()
    tensors["weight"].zero_()
    writer.close()
    snapshot = latest_snapshot(tmp_path)
    assert snapshot is not None
    assert float(snapshot.tensors["weight"].sum()) == 10_000_000
    assert snapshot.facts == {"history": [1]}


def test_tensors_of_another_shape_follow_in_the_same_writer(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.save(1, {"weight": torch.ones(3), "gone": torch.ones(2)}, {})
    writer.save(2, {"weight": torch.ones(2, 2)}, {})
    writer.close()
    snapshot = latest_snapshot(tmp_path)
    assert snapshot is not None
    assert {name: tensor.tolist() for name, tensor in snapshot.tensors.items()} == {"weight": [[1, 1], [1, 1]]}


@pytest.mark.parametrize(("n_kept", "kept"), [(1, [5]), (2, [4, 5]), (3, [2, 4, 5])])
def test_the_last_n_are_kept(tmp_path: Path, n_kept: int, kept: list[int]) -> None:
    write_steps(tmp_path, 1, 2, 4, 5, n_kept=n_kept)
    assert names_in(tmp_path) == [f"step-{step:06d}" for step in kept]


def test_no_state_is_not_an_error(tmp_path: Path) -> None:
    assert latest_snapshot(tmp_path) is None
    assert latest_snapshot(tmp_path / "missing") is None


def test_what_a_killed_process_left_is_no_state_and_is_cleared_away(folder: Path) -> None:
    (folder / "step-000003.part").mkdir()
    (folder / "step-000003.part" / "state.safetensors").write_bytes(b"a part")
    assert step_of(latest_snapshot(folder)) == 2
    CheckpointWriter(folder).close()
    assert names_in(folder) == ["step-000001", "step-000002"]


def test_a_state_of_the_same_step_is_replaced(folder: Path) -> None:
    writer = CheckpointWriter(folder)
    writer.save(2, {"weight": torch.zeros(1)}, {"again": True})
    writer.close()
    snapshot = latest_snapshot(folder)
    assert snapshot is not None
    assert (snapshot.step, snapshot.facts) == (2, {"again": True})
    assert names_in(folder) == ["step-000001", "step-000002"]


def test_a_kill_between_the_two_renames_of_a_replacement_leaves_the_replaced_state(folder: Path) -> None:
    (folder / "step-000002").rename(folder / "step-000002.old")
    assert step_of(latest_snapshot(folder)) == 2
    write_steps(folder, 2)
    assert names_in(folder) == ["step-000001", "step-000002"]


def test_states_of_a_later_step_go_when_training_went_on_from_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_steps(tmp_path, 1, 8, 9)
    write_steps(tmp_path, 3, n_kept=3)
    assert names_in(tmp_path) == ["step-000003"]
    assert [record.getMessage().split(" is removed")[0][-11:] for record in caplog.records] == [
        "step-000009", "step-000008",
    ]  # fmt: skip


# Damage


def cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def expect_the_one_before(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    assert step_of(latest_snapshot(folder)) == 1
    assert len(caplog.records) == 1
    assert "step-000002" in caplog.text
    assert "passed over" in caplog.text


@pytest.mark.parametrize("name", ["state.safetensors", "facts.json"])
@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 9, 60, -8, -1])
def test_a_state_cut_short_is_named_and_the_one_before_is_used(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str, n_bytes: int
) -> None:
    cut(folder / "step-000002" / name, n_bytes)
    expect_the_one_before(folder, caplog)


@pytest.mark.parametrize("name", ["state.safetensors", "facts.json"])
def test_a_flipped_bit_in_any_byte_is_noticed(folder: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    path = folder / "step-000002" / name
    content = path.read_bytes()
    for at_byte in range(len(content)):
        flip(path, bit=8 * at_byte + at_byte % 8)
        expect_the_one_before(folder, caplog)
        path.write_bytes(content)
    assert step_of(latest_snapshot(folder)) == 2


@pytest.mark.parametrize("name", ["state.safetensors", "facts.json"])
def test_a_missing_file_is_noticed(folder: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (folder / "step-000002" / name).unlink()
    expect_the_one_before(folder, caplog)


def test_bytes_after_the_end_are_noticed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (folder / "step-000002" / "state.safetensors").open("ab") as file:
        file.write(b"\0")
    expect_the_one_before(folder, caplog)
    assert "bytes, and was written with" in caplog.text


def test_a_state_under_the_name_of_another_step_is_noticed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "step-000002").rename(folder / "step-000009")
    assert step_of(latest_snapshot(folder)) == 1
    assert "holds the state of step 2, not of step 9" in caplog.text


def test_damage_to_all_states_is_an_error_that_names_each(folder: Path) -> None:
    for step in (1, 2):
        flip(folder / f"step-{step:06d}" / "state.safetensors", 500)
    with pytest.raises(CheckpointError, match=r"none of the 2 .*step-000002.*step-000001.* start anew"):
        latest_snapshot(folder)


# Files made to harm: their hashes are right


def forge(state: Path, **changes: Any) -> None:
    """Change what ``facts.json`` says, and make it agree with the file beside it."""
    record = json.loads((state / "facts.json").read_text())["record"]
    content = (state / "state.safetensors").read_bytes()
    record |= {"n_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} | changes
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (state / "facts.json").write_text(json.dumps({"record": record, "sha256": digest}))


def test_a_forged_state_passes_for_the_tests_below_mean_something(folder: Path) -> None:
    forge(folder / "step-000002")
    assert step_of(latest_snapshot(folder)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((2**60).to_bytes(8, "little") + b"{}", "states a header of"),
        ((20 * 2**20).to_bytes(8, "little") + bytes(21 * 2**20), "states a header of"),
        (b"\x80\x04\x95 a pickle .", "states a header of"),
        ((2).to_bytes(8, "little") + b"[]", "cannot be read"),
        (b"", "states a header of"),
    ],
    ids=["header beyond the end", "header over the limit", "pickle", "no header", "empty"],
)
def test_a_file_that_is_no_safetensors_is_refused(
    folder: Path, caplog: pytest.LogCaptureFixture, content: bytes, message: str
) -> None:
    (folder / "step-000002" / "state.safetensors").write_bytes(content)
    forge(folder / "step-000002")
    expect_the_one_before(folder, caplog)
    assert message in caplog.text


def test_tensors_of_other_shapes_than_stated_are_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = folder / "step-000002"
    save_file({"weight": torch.zeros(3, 2), "n_steps": torch.tensor(2)}, state / "state.safetensors")
    forge(state)
    expect_the_one_before(folder, caplog)
    assert "other names, shapes or types" in caplog.text


def test_a_file_over_the_limit_is_refused_unread(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "step-000002" / "state.safetensors").open("ab") as file:
        file.truncate(2**20)
    forge(folder / "step-000002")
    monkeypatch.setattr(_state_files, "MAX_STATE_BYTES", 2**20 - 1)
    expect_the_one_before(folder, caplog)
    assert "1,048,576 bytes; at most 1,048,575 are read" in caplog.text


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "{}", '{"record": 1, "sha256": 2}', "\udcff", "9" * 5000], ids=lambda text: text[:9]
)
def test_facts_that_are_none_are_refused(folder: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    (folder / "step-000002" / "facts.json").write_text(text, errors="surrogateescape")
    expect_the_one_before(folder, caplog)


@pytest.mark.parametrize("changes", [{"step": -1}, {"step": "2"}, {"facts": [1]}, {"code": "import os"}])
def test_facts_of_other_types_are_refused(
    folder: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
) -> None:
    forge(folder / "step-000002", **changes)
    expect_the_one_before(folder, caplog)


@pytest.mark.parametrize("name", ["", "state.safetensors", "facts.json"])
def test_a_link_out_of_the_folder_is_not_followed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    inside, outside = folder / "step-000002" / name, tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    expect_the_one_before(folder, caplog)
    write_steps(folder, 3, 4)
    assert names_in(folder) == ["step-000003", "step-000004"]
    assert outside.exists()


@pytest.mark.parametrize("name", ["state.safetensors", "facts.json"])
def test_a_pipe_does_not_hold_the_reader_up(folder: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (folder / "step-000002" / name).unlink()
    os.mkfifo(folder / "step-000002" / name)
    expect_the_one_before(folder, caplog)


# Failures while writing


def test_a_file_in_the_place_of_the_folder_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "states").write_text("")
    with pytest.raises(CheckpointError, match=r"states.*give a folder that can be written"):
        CheckpointWriter(tmp_path / "states")
    with pytest.raises(CheckpointError, match="no training states can be read"):
        latest_snapshot(tmp_path / "states")


@pytest.mark.parametrize("call", ["save", "close"])
def test_a_failed_save_surfaces_at_the_next_call(folder: Path, call: str) -> None:
    writer = CheckpointWriter(folder)
    folder.rename(folder.with_name("away"))
    folder.write_text("")
    writer.save(3, tensors_of(3), {"epoch": 3})
    writer.wait_copied()
    with pytest.raises(CheckpointError, match=r"step 3 could not be written to .*states.*Free disk space"):
        writer.save(4, tensors_of(4), {"epoch": 4}) if call == "save" else writer.close()
    folder.unlink()
    folder.with_name("away").rename(folder)
    assert step_of(latest_snapshot(folder)) == 2
    if call == "save":
        writer.save(5, tensors_of(5), {"epoch": 5})
        writer.close()
        assert step_of(latest_snapshot(folder)) == 5


def test_a_disk_that_lies_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_another(tensors: dict[str, Tensor], path: Path) -> None:
        save_file(tensors | {"weight": tensors["weight"] + 1}, path)

    monkeypatch.setattr(_state_files, "save_file", write_another)
    writer = CheckpointWriter(folder)
    writer.save(3, tensors_of(3), {"epoch": 3})
    with pytest.raises(CheckpointError, match="does not hold what was written"):
        writer.close()
    assert names_in(folder) == ["step-000001", "step-000002"]


def save_on_a_full_disk(folder: Path, report: Connection, max_file_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    writer = CheckpointWriter(folder)
    writer.save(3, tensors_of(3, n_values=100_000), {"epoch": 3})
    try:
        writer.close()
    except CheckpointError as error:
        report.send(str(error))
    else:
        report.send("written")


@pytest.mark.parametrize(
    ("max_file_bytes", "outcome"),
    [(10, "could not be written"), (200_000, "could not be written"), (2**20, "written")],
)
def test_a_full_disk_is_an_error_and_leaves_the_states_before(folder: Path, max_file_bytes: int, outcome: str) -> None:
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=save_on_a_full_disk, args=(folder, there, max_file_bytes))
    process.start()
    there.close()
    assert outcome in here.recv()
    process.join()
    assert names_in(folder) == (
        ["step-000002", "step-000003"] if outcome == "written" else ["step-000001", "step-000002"]
    )
    assert step_of(latest_snapshot(folder)) == (3 if outcome == "written" else 2)


def save_until_killed(folder: Path, report: Connection) -> None:
    """Go on from the latest state, and report each step that is known to be on the disk."""
    torch.set_num_threads(1)
    latest = latest_snapshot(folder)
    step = latest.step if latest else 0
    writer = CheckpointWriter(folder)
    while True:
        step += 1
        writer.save(step, tensors_of(step, n_values=500_000), {"epoch": step})
        report.send(step - 1)


def test_a_kill_at_any_moment_leaves_the_last_written_state_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(20261122)
    seconds_to_kill = [rng.uniform(0, 0.3) for _ in range(12)]
    for n_seconds in seconds_to_kill:
        here, there = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=save_until_killed, args=(tmp_path, there))
        process.start()
        there.close()
        reported = here.recv()
        time.sleep(n_seconds)  # the moment is what is tried
        process.kill()
        process.join()
        reported = last_of(here, reported)
        left_by_the_kill = names_in(tmp_path)
        snapshot = latest_snapshot(tmp_path)
        assert (snapshot.step if snapshot else 0) in (reported, reported + 1), left_by_the_kill
        assert snapshot is None or is_whole(snapshot)
    assert caplog.record_tuples == []  # no state was found damaged
    assert step_of(latest_snapshot(tmp_path)) is not None


def last_of(connection: Connection, first: int) -> int:
    last = first
    try:
        while True:
            last = connection.recv()
    except EOFError:
        return last
