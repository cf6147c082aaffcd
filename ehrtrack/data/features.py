"""Hidden states of a fixed encoder, computed once and kept as memory-mapped arrays."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ehrtrack.arrays import Float32s, Ints
from ehrtrack.errors import DataError
from ehrtrack.files import folder_aside


@dataclass(frozen=True)
class FeatureStore:
    """The states of N subjects; those of subject i are `hidden[offsets[i]:offsets[i + 1]]`, its [CLS] the last."""

    offsets: Ints  # (N + 1,)
    hidden: Float32s  # (T, D)

    @property
    def lengths(self) -> Ints:
        """(N,) tokens of each subject, [CLS] included."""
        return np.diff(self.offsets)

    def hidden_of(self, rows: Ints) -> Float32s:
        """(T, D) states of some subjects, one after the other."""
        return np.concatenate([self.hidden[self.offsets[row] : self.offsets[row + 1]] for row in rows])


def build_features(
    folder: Path,
    lengths: Ints,
    width: int,
    states: Iterable[tuple[Ints, Float32s]],
) -> FeatureStore:
    """Write the states of all subjects into `folder`, or open it where that was done.

    Parameters
    ----------
    folder : named by the fingerprint of all that the states depend on; there whole or not at all
    lengths : (N,) tokens of each subject, [CLS] included
    width : D
    states : rows of some subjects and their states (T, D), until every subject was there; not read if `folder` is there

    Raises
    ------
    DataError
        If the disk has no room.
    """
    if not folder.is_dir():
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(folder.parent, int(offsets[-1]) * width * 4)
        with folder_aside(folder) as aside:
            np.save(aside / "offsets.npy", offsets)
            shape = (int(offsets[-1]), width)
            hidden = np.lib.format.open_memmap(aside / "hidden.npy", mode="w+", dtype=np.float32, shape=shape)
            for rows, block in states:
                ends = np.cumsum(lengths[rows])
                for row, part in zip(rows, np.split(block, ends[:-1]), strict=True):
                    hidden[offsets[row] : offsets[row + 1]] = part
            hidden.flush()
    return _open(folder, int(lengths.sum()), width)


def _open(folder: Path, n_tokens: int, width: int) -> FeatureStore:
    try:
        offsets, hidden = np.load(folder / "offsets.npy"), np.load(folder / "hidden.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the encoder's states in {folder} are damaged ({error}); remove it, and it is made again"
        ) from error
    if hidden.shape != (n_tokens, width) or offsets[-1] != n_tokens:
        raise DataError(f"the encoder's states in {folder} are not of these records; remove it, and it is made again")
    return FeatureStore(offsets, hidden)


def _check_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise DataError(
            f"the encoder's states take {n_bytes / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; set "
            "runtime.cache to a larger disk, or strategy.cache=false to compute them anew in every epoch"
        )
