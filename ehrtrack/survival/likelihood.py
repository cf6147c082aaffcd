"""The likelihood of survival curves, and its gain over the population's curve.

A C-index says who is ahead of whom; a likelihood says as well whether the risks themselves are any good.
"""

from __future__ import annotations

import numpy as np

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.survival.resampling import Interval
from ehrtrack.survival.time_grid import TimeGrid

LEAST_PROBABILITY = 1e-6
"""Of what came: a curve that rules it out counts as one in a million, so that one subject cannot decide alone."""
NORMAL_95 = 1.959964


def log_likelihood(survival: Floats, grid: TimeGrid, follow_up_days: Floats, is_event: Bools) -> Floats:
    """The log-likelihood of each subject's survival curve, on the intervals of the grid.

    An event in interval k has S_k - S_(k+1); a subject censored in it, having been seen through the share f of it, has
    S_k (S_(k+1) / S_k)^f. With hazards h it is the likelihood of `losses.negative_log_likelihood`.

    Parameters
    ----------
    survival : (B, K + 1) S at the edges of the grid

    Examples
    --------
    The event in the second interval has S(10) - S(30) = .4; the subject followed to the horizon S(30) = .4 as well:

    >>> curves, grid = np.array([[1.0, 0.8, 0.4]] * 2), TimeGrid((0, 10, 30))
    >>> np.exp(log_likelihood(curves, grid, np.array([20.0, 30.0]), np.array([True, False]))).round(3).tolist()
    [0.4, 0.4]
    """
    survived = grid.survived(follow_up_days, is_event)
    interval = survived.astype(np.int64)
    rows = np.arange(len(survival))
    before, after = survival[rows, interval], survival[rows, np.minimum(interval + 1, grid.n_intervals)]
    stayed = np.divide(after, before, out=np.ones_like(before), where=before > 0)  # 1 - h
    probability = np.where(is_event, before - after, before * stayed ** (survived - interval))
    log_probability: Floats = np.log(np.maximum(probability, LEAST_PROBABILITY))
    return log_probability


def likelihood_gain(
    survival: Floats,
    population: Floats,
    grid: TimeGrid,
    follow_up_days: Floats,
    is_event: Bools,
    *,
    subject: Ints | None = None,
) -> Interval:
    """Mean log-likelihood of the curves less that of the population's curve, in nats a row.

    The interval is the normal one of a mean of paired differences. Where subjects have several rows it is that of a
    ratio of the subjects' sums to their numbers of rows (Cochran 1977, Sampling Techniques, section 2.11).

    Parameters
    ----------
    survival : (B, K + 1) of the model
    population : (K + 1,) Kaplan-Meier curve of the training subjects at the edges
    subject : (B,) whose row each is; None where each is of another

    Examples
    --------
    Both outcomes have a probability of .8 by the model and of .5 by the population's curve, a gain of log(.8 / .5) =
    .47:

    >>> curves, population, grid = np.array([[1.0, 0.2], [1.0, 0.8]]), np.array([1.0, 0.5]), TimeGrid((0, 30))
    >>> gain = likelihood_gain(curves, population, grid, np.array([20.0, 30.0]), np.array([True, False]))
    >>> round(gain.estimate, 3)
    0.47
    """
    everybody = np.tile(population, (len(survival), 1))
    gain = log_likelihood(survival, grid, follow_up_days, is_event)
    gain = gain - log_likelihood(everybody, grid, follow_up_days, is_event)
    mean = float(gain.mean())
    parts = gain if subject is None else mean + _residuals_of_subjects(gain - mean, subject)
    half = NORMAL_95 * float(parts.std(ddof=1)) / np.sqrt(len(parts)) if len(parts) > 1 else np.inf
    return Interval(mean, mean - half, mean + half)


def _residuals_of_subjects(residual: Floats, subject: Ints) -> Floats:
    """(S,) sums of the residuals (B,) of each subject, over the mean number of rows a subject."""
    sums = np.bincount(np.unique(subject, return_inverse=True)[1], weights=residual).astype(np.float64)
    scaled: Floats = sums * len(sums) / len(residual)
    return scaled
