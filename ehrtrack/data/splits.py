"""Training, validation and test subjects, by a hash of the subject: stable however the data grow."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.data.settings import SplitConfig

SPLITS = ("train", "validation", "test")

Floats = npt.NDArray[np.float64]


def assign_splits(subject_ids: pl.Series, config: SplitConfig) -> pl.Series:
    """The split of each subject, one of `SPLITS`.

    It depends on the subject and the seed alone, so adding or removing subjects moves nobody between splits.
    """
    bounds = (config.train, config.train + config.validation)
    return by_share(uniform(subject_ids, config.seed), *bounds)


def by_share(position: Floats, validation_from: float, test_from: float) -> pl.Series:
    """The split of each of N positions in [0, 1): what lies below both bounds trains.

    >>> by_share(np.array([0.0, 0.69, 0.7, 0.9]), 0.7, 0.9).to_list()
    ['train', 'train', 'validation', 'test']
    """
    split = np.searchsorted([validation_from, test_from], position, side="right")
    return pl.Series("split", np.array(SPLITS, dtype=object)[split].tolist(), dtype=pl.String)


def uniform(keys: pl.Series, seed: int) -> Floats:
    """(N,) a number in [0, 1) for each key, which depends on the key and the seed alone."""
    digests = b"".join(hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest() for key in keys.to_list())
    return np.frombuffer(digests, dtype="<u8").astype(np.float64) / 2.0**64
