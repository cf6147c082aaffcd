"""What baselines of classes share: a probability, in the form in which survival models predict."""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Floats
from ehrtrack.baselines.base import ReadFeatures
from ehrtrack.data.cohort import CLASS_DAYS


class ClassModel(Generic[ReadFeatures]):
    """A fitted model of the probability of a class."""

    @abstractmethod
    def probability(self, features: ReadFeatures) -> Floats:
        """(B,) of the class."""

    def survival(self, features: ReadFeatures, times: npt.ArrayLike) -> Floats:
        """(B, M) one minus the probability at `CLASS_DAYS` and later; before, by a straight line from 1."""
        passed = np.clip(np.atleast_1d(np.asarray(times, dtype=np.float64)) / CLASS_DAYS, 0, 1)
        return 1 - np.outer(self.probability(features), passed)

    def risk(self, features: ReadFeatures, horizon_days: float) -> Floats:
        """(B,) the probability, whatever the horizon."""
        return self.probability(features)
