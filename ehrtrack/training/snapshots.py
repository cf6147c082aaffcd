"""Snapshots: whole training states on disk from which a training is resumed, written in the background."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ehrtrack.errors import CheckpointError
from ehrtrack.training._state_files import (
    bytes_of,
    link_or_copy,
    put_in_place,
    read_state,
    read_step,
    remove,
    write_state,
)
from ehrtrack.training.state_folders import list_states, state_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A training state as it was after `step`; `folder` also holds the files that were saved beside it."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    folder: Path


class CheckpointWriter:
    """Writes training states in the background of the training, and keeps the last `n_kept`. One writer to a folder.

    Training waits for a copy in memory only, and only if the next step comes before the copy is done; a thread hashes
    it and writes it to the disk. The next snapshot uses the same buffers again, so that the memory of one state is
    enough, and page faults occur with the first snapshot alone.

    Parameters
    ----------
    on_written : called by the thread with the folder of a state that is in place and will not change

    Raises
    ------
    CheckpointError
        If the folder cannot be made or written.
    """

    def __init__(self, folder: Path, *, n_kept: int = 2, on_written: Callable[[Path], object] | None = None) -> None:
        if n_kept < 1:
            raise ValueError(f"n_kept is {n_kept}; at least 1 state has to be kept")
        self._folder = folder
        self._n_kept = n_kept
        self._on_written = on_written
        self._buffers: dict[str, Tensor] = {}
        self._copied = threading.Event()
        self._copied.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._step = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left_behind in folder.glob("step-*.part"):
                remove(left_behind)
        except OSError as error:
            raise CheckpointError(
                f"no training states can be kept in {folder} ({error}); give a folder that can be written"
            ) from error

    def save(
        self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, beside: Sequence[Path] = ()
    ) -> None:
        """Have the state of `step` written, and return at once; a save still under way is waited for first.

        States of later steps, left by a run that was resumed from before them, are removed: they are of another
        course of training.

        Parameters
        ----------
        tensors : on any device; must not change until `wait_copied`
        facts : values that JSON has, keyed by strings; may change after this call
        beside : files that belong to this state, on the same disk; they may be replaced, but never written to, after
            this call

        Raises
        ------
        CheckpointError
            If the save before this one failed. This state is not written then; calling again tries anew.
        """
        self._finish()
        facts_then = json.loads(json.dumps(dict(facts)))
        held = {name: tensor.detach() for name, tensor in tensors.items()}
        self._step = step
        aside = self._aside(step, beside)
        self._copied.clear()
        self._writing = self._thread.submit(self._write, step, aside, held, facts_then)

    def wait_copied(self) -> None:
        """Wait until the tensors of the last save may change."""
        self._copied.wait()

    def close(self) -> None:
        """Wait until everything is on the disk.

        Raises
        ------
        CheckpointError
            If the last save failed.
        """
        try:
            self._finish()
        finally:
            self._thread.shutdown()
            self._buffers = {}

    def _finish(self) -> None:
        writing = self._writing
        if writing is None:
            return
        wait([writing])  # a signal may end this early; the next call then waits again
        self._writing = None
        try:
            writing.result()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the state of step {self._step} could not be written to {self._folder} ({error}); the states before "
                "it are untouched. Free disk space or give a folder that can be written, then resume"
            ) from error

    def _aside(self, step: int, beside: Sequence[Path]) -> Path:
        """The folder to write to, with links to the files beside the state: they are of this moment."""
        aside = state_folder(self._folder, step).with_suffix(".part")
        with suppress(OSError):  # the thread meets it again, and its failure is told by the next call
            aside.mkdir()
            for file in beside:
                link_or_copy(file, aside / file.name)
        return aside

    def _write(self, step: int, aside: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        try:
            self._copy(tensors)
        finally:
            self._copied.set()
        target = state_folder(self._folder, step)
        try:
            aside.mkdir(exist_ok=True)
            write_state(aside, self._buffers, step, facts)
            put_in_place(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # is there only if writing failed; a full disk needs its room
        self._remove_others(step)
        if self._on_written is not None:
            self._on_written(target)

    def _copy(self, tensors: dict[str, Tensor]) -> None:
        """Copy into the buffers; between tensors of a CPU by numpy.

        torch would share out the copy over OpenMP threads, which stay with this thread. With more of them than cores
        OpenMP no longer lets any wait awake, whatever GOMP_SPINCOUNT says, and each of a step's parallel regions pays
        for it: after the first snapshot training on two threads of two cores ran at half its speed.
        """
        self._buffers = {name: _buffer_for(tensor, self._buffers.get(name)) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if tensor.is_cpu:
                np.copyto(bytes_of(self._buffers[name]), bytes_of(tensor.contiguous()))
            else:
                self._buffers[name].copy_(tensor, non_blocking=tensor.is_cuda)
        # The copies stand in the GPU's stream behind the step that was just taken, and this waits for them alone.
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).record_event().synchronize()

    def _remove_others(self, step: int) -> None:
        states = list_states(self._folder)
        kept = [path for of_step, path in states if of_step <= step and path.suffix != ".old"][: self._n_kept]
        for of_step, path in states:
            if of_step > step:
                _log.warning("%s is removed: training went on from an earlier state, and is at step %d", path, step)
            if path not in kept:
                remove(path)


def latest_snapshot(folder: Path) -> Snapshot | None:
    """Read the newest state that is whole; damaged ones are named in a warning and passed over.

    Returns
    -------
    None if there is no state at all. The tensors are on the CPU.

    Raises
    ------
    CheckpointError
        If there are states and none of them is whole.
    """
    damaged = []
    for step, path in list_states(folder):
        try:
            return Snapshot(step, *read_state(path, step), path)
        except CheckpointError as error:
            _log.warning("%s; it is passed over for the state before it", error)
            damaged.append(str(error))
    if damaged:
        raise CheckpointError(
            f"none of the {len(damaged)} training states in {folder} is whole ({'; '.join(damaged)}); "
            "fetch them again, or start anew in an empty folder"
        )
    return None


def newest_whole_step(folder: Path) -> tuple[int, list[str]]:
    """Step of the newest state that is whole, -1 if there is none; and what is wrong with those after it, as warned."""
    problems = []
    for step, path in list_states(folder):
        try:
            read_state(path, step)
        except CheckpointError as error:
            _log.warning("%s; it is passed over", error)
            problems.append(str(error))
        else:
            return step, problems
    return -1, problems


def snapshot_step(folder: Path) -> int:
    """The step that a state's facts say it is of; they are checked, and the rest is not read.

    Raises
    ------
    CheckpointError
        If there are none, or they are damaged.
    """
    return read_step(folder)


def adopt(fetched: Path, folder: Path) -> int:
    """Take a state that was fetched from elsewhere in among those of `folder`, if it is whole; returns its step.

    Raises
    ------
    CheckpointError
        If it is not whole; it is not taken in then.
    """
    step = read_step(fetched)
    read_state(fetched, step)
    folder.mkdir(parents=True, exist_ok=True)
    aside = state_folder(folder, step).with_suffix(".part")
    remove(aside)
    shutil.copytree(fetched, aside)
    put_in_place(aside, state_folder(folder, step))
    return step


def _buffer_for(tensor: Tensor, previous: Tensor | None) -> Tensor:
    if previous is not None and (previous.shape, previous.dtype) == (tensor.shape, tensor.dtype):
        return previous
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
