"""Training, validation and test subjects, by a hash of the subject: stable however the data grow."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.data.settings import SplitConfig

SPLITS = ("train", "validation", "test")


def assign_splits(subject_ids: pl.Series, config: SplitConfig) -> pl.Series:
    """The split of each subject, one of `SPLITS`.

    It depends on the subject and the seed alone, so adding or removing subjects moves nobody between splits.
    """
    position = _uniform(subject_ids.to_numpy(), config.seed)  # (N,) in [0, 1)
    split = np.searchsorted([config.train, config.train + config.validation], position, side="right")
    return pl.Series("split", np.array(SPLITS, dtype=object)[split].tolist(), dtype=pl.String)


def _uniform(subject_ids: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    digests = b"".join(
        hashlib.blake2b(f"{seed}:{subject_id}".encode(), digest_size=8).digest() for subject_id in subject_ids.tolist()
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.float64) / 2.0**64
