"""How probable survival curves hold what came, beside the population's curve: what "has learned" means for risks.

A C-index says who is ahead of whom; a likelihood says as well whether the risks themselves are any good.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ehrtrack.survival.bootstrap import Interval
from ehrtrack.survival.time_grid import TimeGrid

FloatArray = npt.NDArray[np.float64]

LEAST_PROBABILITY = 1e-6
"""Of what came: a curve that rules it out counts as one in a million, so that one subject cannot decide alone."""
NORMAL_95 = 1.959964


def log_likelihood(
    survival: FloatArray, grid: TimeGrid, follow_up_days: FloatArray, is_event: npt.NDArray[np.bool_]
) -> FloatArray:
    """(B,) log-probability that the curves of B subjects gave to what came, on the intervals of the grid.

    An event in interval k has S_k - S_(k+1); a subject censored in it, having been seen through the share f of it, has
    S_k (S_(k+1) / S_k)^f. With hazards h it is the likelihood of `losses.negative_log_likelihood`.

    Parameters
    ----------
    survival : (B, K + 1) S at the edges of the grid
    """
    survived = grid.survived(follow_up_days, is_event)
    interval = survived.astype(np.int64)
    rows = np.arange(len(survival))
    before, after = survival[rows, interval], survival[rows, np.minimum(interval + 1, grid.n_intervals)]
    stayed = np.divide(after, before, out=np.ones_like(before), where=before > 0)  # 1 - h
    probability = np.where(is_event, before - after, before * stayed ** (survived - interval))
    log_probability: FloatArray = np.log(np.maximum(probability, LEAST_PROBABILITY))
    return log_probability


def likelihood_gain(
    survival: FloatArray,
    population: FloatArray,
    grid: TimeGrid,
    follow_up_days: FloatArray,
    is_event: npt.NDArray[np.bool_],
) -> Interval:
    """Mean log-likelihood of the curves less that of the population's curve, in nats a subject.

    The interval is the normal one of a mean of paired differences.

    Parameters
    ----------
    survival : (B, K + 1) of the model
    population : (K + 1,) Kaplan-Meier curve of the training subjects at the edges
    """
    everybody = np.tile(population, (len(survival), 1))
    gain = log_likelihood(survival, grid, follow_up_days, is_event)
    gain = gain - log_likelihood(everybody, grid, follow_up_days, is_event)
    half = NORMAL_95 * float(gain.std(ddof=1)) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    mean = float(gain.mean())
    return Interval(mean, mean - half, mean + half)
