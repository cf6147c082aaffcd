"""Training, validation and test subjects, by a hash of the subject: stable however the data grow."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.data.split_settings import SplitConfig

SPLITS = ("train", "validation", "test")


def assign_splits(subject_ids: pl.Series, config: SplitConfig) -> pl.Series:
    """The split of each subject, one of `SPLITS`.

    It depends on the subject and the seed alone, so adding or removing subjects moves nobody between splits.

    Examples
    --------
    The same subjects are in the same splits however many others there are:

    >>> few, many = (pl.Series(range(n)) for n in (5, 1000))
    >>> assign_splits(few, SplitConfig()).to_list() == assign_splits(many, SplitConfig()).to_list()[:5]
    True
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
    """(N,) a number in [0, 1) for each key, which depends on the key and the seed alone.

    Examples
    --------
    >>> uniform(pl.Series([3, 1, 3]), seed=0).round(3).tolist()
    [0.706, 0.299, 0.706]
    """
    digests = b"".join(hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest() for key in keys.to_list())
    return np.frombuffer(digests, dtype="<u8").astype(np.float64) / 2.0**64
