"""Tensors on disk as safetensors: whole or not at all, and read without unpickling."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ehrtrack.errors import CheckpointError
from ehrtrack.files import BROKEN, written_aside

NUMBERS_OF_TOKENS = ("codes.code", "effects.code", "statics.token")
"""Ends of the names of the tensors that number codes and tokens."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors aside and rename, so that `path` is the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors.

    Raises
    ------
    CheckpointError
        If the file is missing or not whole.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}: the run has not logged this checkpoint")
    try:
        return load_file(path)
    except (SafetensorError, *BROKEN) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); fetch it again") from error


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Make sure that tensors of a model from elsewhere are of the kinds that models are written with, and finite.

    Raises
    ------
    ValueError
        If one is not float32 (int64 of those in `NUMBERS_OF_TOKENS`), or holds NaN or an infinite number.
    """
    for name, tensor in tensors.items():
        needed = torch.int64 if name.endswith(NUMBERS_OF_TOKENS) else torch.float32
        if tensor.dtype != needed:
            raise ValueError(f"{name} is {tensor.dtype}, and {needed} is needed")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds numbers that are not finite")


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex characters over names, shapes and values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
