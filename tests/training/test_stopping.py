"""Ctrl-C and SIGTERM while training: the step is finished, kept, and nothing is trained twice."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import train, without_times

import ehrtrack.training.loop as loop
from ehrtrack.errors import CheckpointError
from ehrtrack.objectives.base import Selection
from ehrtrack.signals import STOPPING
from ehrtrack.training.snapshots import CheckpointWriter, latest_snapshot
from ehrtrack.training.stopping import signals_wait

INT, TERM = STOPPING


class Told(Exception):
    pass


@pytest.fixture(autouse=True)
def outer_handler() -> Any:
    def tell(*_: object) -> None:
        raise Told

    before = [(number, signal.signal(number, tell)) for number in STOPPING]
    yield
    for number, handler in before:
        signal.signal(number, handler)


def signal_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, numbers: tuple[int, ...]) -> None:
    """Signals in the n-th call of a method of Training."""
    n_calls, method = 0, getattr(loop.Training, name)

    def with_signal(*arguments: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            for number in numbers:
                signal.raise_signal(number)
        return method(*arguments)

    monkeypatch.setattr(loop.Training, name, with_signal)


@pytest.mark.parametrize(
    ("method", "call", "numbers"),
    [
        ("take_step", 1, (TERM,)),
        ("take_step", 9, (INT,)),
        ("take_step", 4, (INT, TERM)),  # as `mlflow run` in a terminal gives it
        ("stop_if_alone", 3, (TERM,)),
        ("stop_if_alone", 2, (INT,)),
    ],
)
def test_a_run_told_to_stop_in_a_step_or_a_validation_ends_bit_identical_once_resumed(
    method: str, call: int, numbers: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, weights, _ = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_at(patch, method, call, numbers)
        with pytest.raises(Told):
            train(tmp_path / "cut")
    kept = latest_snapshot(tmp_path / "cut" / "snapshots")
    assert kept is not None
    n_steps = call if method == "take_step" else int(whole.history[0]["train/batches"])
    assert kept.step == n_steps  # the step under way was finished, and is not lost
    resumed, weights_then, _ = train(tmp_path / "cut")
    assert without_times(resumed.history) == without_times(whole.history)
    assert all(torch.equal(value, weights_then[name]) for name, value in weights.items())


def test_a_snapshot_brings_back_the_kept_weights_of_its_moment(tmp_path: Path) -> None:
    train(tmp_path, epochs=2)
    snapshot = latest_snapshot(tmp_path / "snapshots")
    assert snapshot is not None
    then = {file.name: file.read_bytes() for file in tmp_path.glob("epoch-*")}
    assert then
    for name in then:
        (tmp_path / name).unlink()
    (tmp_path / "epoch-000009.safetensors").write_bytes(b"of an epoch after it, which was lost")
    train(tmp_path, epochs=2)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("epoch-*")} == then


def as_before(folder: Path, best_epoch: int) -> None:
    """Make a snapshot what an earlier version wrote: the weights of the best epoch alone, and which it is."""
    snapshot = latest_snapshot(folder / "snapshots")
    assert snapshot is not None
    best = folder / "best.safetensors"
    best.write_bytes((folder / f"epoch-{best_epoch:06d}.safetensors").read_bytes())
    for file in folder.glob("epoch-*"):
        file.unlink()
    writer = CheckpointWriter(folder / "snapshots")
    facts = snapshot.facts | {"best_epoch": best_epoch, "best_score": 0.2}
    writer.save(snapshot.step, snapshot.tensors, facts, beside=[best])
    writer.close()


def test_a_snapshot_of_an_earlier_version_goes_on_where_one_measure_decides(tmp_path: Path) -> None:
    begun, weights, _ = train(tmp_path, select_by="ibs", epochs=2)
    as_before(tmp_path, begun.kept_epoch)
    again, weights_then, _ = train(tmp_path, select_by="ibs", epochs=2)
    assert (again.history, again.kept_epoch) == (begun.history, begun.kept_epoch)
    assert all(torch.equal(value, weights_then[name]) for name, value in weights.items())


def test_a_snapshot_of_an_earlier_version_that_lacks_weights_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, _, _ = train(tmp_path, epochs=2)
    as_before(tmp_path, begun.kept_epoch)
    monkeypatch.setattr(Selection, "candidates", lambda self, history: [1, 2])
    with pytest.raises(CheckpointError, match=r"lacks the weights of epoch .*another version"):
        train(tmp_path, epochs=2)


@pytest.mark.parametrize("number", STOPPING)
def test_a_second_signal_is_not_held_back(number: int) -> None:
    with signals_wait() as stop:
        signal.raise_signal(number)
        assert stop.is_asked
        with pytest.raises(Told):
            signal.raise_signal(number)
        stop.is_obeyed = True


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_after_the_last_step_is_obeyed_in_the_end(number: int) -> None:
    with pytest.raises(Told), signals_wait():
        signal.raise_signal(number)


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    before = signal.signal(INT, signal.SIG_IGN)
    with signals_wait() as stop:
        signal.raise_signal(INT)
    signal.signal(INT, before)
    assert not stop.is_asked


def test_in_a_notebook_ctrl_c_is_the_exception_that_it_always_is() -> None:
    before = signal.signal(INT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), signals_wait():
        signal.raise_signal(INT)
    assert signal.getsignal(INT) is signal.default_int_handler
    signal.signal(INT, before)
