"""The two files of a training state: written so that a folder with its name was whole once, read with distrust.

``step-000012`` holds ``state.safetensors``, whole files that were kept beside it, such as the best weights so far, and
``facts.json`` with the facts that are no tensors, the size and SHA-256 of the first file, the SHA-256 of the others
and of itself. Nothing in these files is ever used as a path out of the folder or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ehrtrack.errors import CheckpointError
from ehrtrack.files import flush, sha256_of
from ehrtrack.training.checkpoint import load_tensors

STATE_FILE = "state.safetensors"
FACTS_FILE = "facts.json"

# What a file from elsewhere may cost before it is known to be whole.
MAX_STATE_BYTES = 64 * 2**30
MAX_HEADER_BYTES = 16 * 2**20
MAX_FACTS_BYTES = 16 * 2**20


class _Record(BaseModel):
    """What ``facts.json`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    step: NonNegativeInt
    n_bytes: NonNegativeInt
    sha256: str
    tensors: dict[str, str]
    facts: dict[str, Any]
    beside: dict[str, str] = {}


def write_state(folder: Path, tensors: dict[str, Tensor], step: int, facts: Mapping[str, Any]) -> None:
    """Write a state's two files into `folder`, which is there, flush them to the disk and compare what was written.

    Parameters
    ----------
    tensors : contiguous, on the CPU
    """
    state = folder / STATE_FILE
    save_file(tensors, state)
    flush(state)
    written = load_tensors(state)
    if not all(_same_bytes(written[name], tensor) for name, tensor in tensors.items()):
        raise CheckpointError(f"{state} does not hold what was written to it; check the disk")
    record = {
        "step": step,
        "n_bytes": state.stat().st_size,
        "sha256": sha256_of(state),
        "tensors": _described(state),
        "facts": facts,
        "beside": {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file != state},
    }
    text = json.dumps({"record": record, "sha256": _record_digest(record)})
    if len(text) > MAX_FACTS_BYTES:
        raise CheckpointError(
            f"the facts of step {step} take {len(text):,} bytes; {MAX_FACTS_BYTES:,} are read back: keep less in them"
        )
    (folder / FACTS_FILE).write_text(text, encoding="utf-8")
    flush(folder / FACTS_FILE)
    flush(folder)


def put_in_place(aside: Path, target: Path) -> None:
    """Give the state its name. A state of the same step stays readable under another until this one has its name."""
    if target.exists():
        replaced = target.with_name(f"{target.name}.old")
        remove(replaced)
        target.rename(replaced)
    aside.rename(target)
    flush(target.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that nobody writes to any more a second name, or a copy where the disk knows no links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def remove(path: Path) -> None:
    """Delete a state, or whatever bears its name; of a link the link alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def read_step(folder: Path) -> int:
    """The step that a state says it is of, its facts being whole.

    Raises
    ------
    CheckpointError
        If there are no facts, or they are damaged.
    """
    try:
        return _read_record(folder / FACTS_FILE).step
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error})") from error


def read_state(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a state. What costs least is checked first, and all before memory is taken for a tensor.

    Raises
    ------
    CheckpointError
        If the state is not as it was written.
    """
    state = folder / STATE_FILE
    try:
        if folder.is_symlink():
            raise CheckpointError(f"{folder} is a link, and may lead anywhere")
        record = _read_record(folder / FACTS_FILE)
        if record.step != step:
            raise CheckpointError(f"{folder} holds the state of step {record.step}, not of step {step}")
        n_bytes = _regular_file_size(state, MAX_STATE_BYTES)
        if n_bytes != record.n_bytes:
            raise CheckpointError(f"{state} has {n_bytes:,} bytes, and was written with {record.n_bytes:,}")
        _check_header_size(state, n_bytes)
        if sha256_of(state) != record.sha256:
            raise CheckpointError(f"{state} is damaged: its SHA-256 is not the one it was written with")
        if _described(state) != record.tensors:
            raise CheckpointError(f"{state} holds tensors of other names, shapes or types than {FACTS_FILE} says")
        for name, digest in record.beside.items():
            _check_beside(folder / PurePosixPath(name).name, digest)
        return load_tensors(state), record.facts
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read ({error})") from error


def _check_beside(file: Path, digest: str) -> None:
    _regular_file_size(file, MAX_STATE_BYTES)
    if sha256_of(file) != digest:
        raise CheckpointError(f"{file} is damaged, or of another state: its SHA-256 is not the one it was written with")


def _read_record(path: Path) -> _Record:
    _regular_file_size(path, MAX_FACTS_BYTES)
    try:
        whole = json.loads(path.read_bytes())
        if whole["sha256"] != _record_digest(whole["record"]):
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one it was written with")
        return _Record.model_validate(whole["record"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not whole, or was not written by ehrtrack ({type(error).__name__})"
        ) from error


def _regular_file_size(path: Path, max_bytes: int) -> int:
    """Bytes of a file that is neither a link, which may lead out of the folder, nor a pipe, which may never end."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file")
    if status.st_size > max_bytes:
        raise CheckpointError(f"{path} has {status.st_size:,} bytes; at most {max_bytes:,} are read")
    return status.st_size


def _check_header_size(path: Path, n_bytes: int) -> None:
    """Check the header's length, which a safetensors file states in its first 8 bytes."""
    with path.open("rb") as file:
        n_header_bytes = int.from_bytes(file.read(8), "little")
    if n_header_bytes > min(n_bytes - 8, MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{path} states a header of {n_header_bytes:,} bytes; it has {n_bytes:,}, and {MAX_HEADER_BYTES:,} are read"
        )


def _described(path: Path) -> dict[str, str]:
    """Type and shape of each tensor, such as ``F32[384, 1536]``, from the header alone."""
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (a handle, not a dict)
        return {name: f"{part.get_dtype()}{part.get_shape()}" for name, part in parts.items()}


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors are the same, NaN and -0 included."""
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(bytes_of(a), bytes_of(b))


def bytes_of(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a tensor on the CPU, in the same memory where it is contiguous."""
    return tensor.flatten().view(torch.uint8).numpy()


def _record_digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
