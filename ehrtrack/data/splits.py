"""Training, validation and test subjects, by a hash of the subject: stable however the data grow."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from ehrtrack.errors import ConfigError
from ehrtrack.section import Section

SPLITS = ("train", "validation", "test")


class SplitConfig(Section):
    """Shares of the subjects; what `train` and `validation` leave is the test set."""

    seed: int = 0
    train: float = Field(default=0.7, gt=0, lt=1)
    validation: float = Field(default=0.15, gt=0, lt=1)

    def model_post_init(self, _context: object) -> None:
        if self.train + self.validation >= 1:
            raise ConfigError(
                f"split.train + split.validation is {self.train + self.validation:g}, "
                "which leaves no test subjects; make them add up to less than 1"
            )


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
