"""Survival curves between the edges of a time grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Floats
from ehrtrack.errors import DataError
from ehrtrack.survival.time_grid import TimeGrid


def interpolate_survival(survival: npt.ArrayLike, grid: TimeGrid, days: npt.ArrayLike) -> Floats:
    """S at any day up to the horizon, by straight lines between the edges of the grid.

    A straight line spreads the events of an interval evenly over it (the constant-density interpolation of
    Kvamme & Borgan 2021, Lifetime Data Analysis 27, section 3.3) and stays defined where S reaches 0.

    Parameters
    ----------
    survival : (B, K + 1) at the edges, from `curves.survival_curve`
    grid : the time grid of those edges
    days : (M,) days since the index date, within [0, horizon]

    Returns
    -------
    (B, M)

    Raises
    ------
    DataError
        If a day lies outside the grid: the model says nothing there.

    Examples
    --------
    >>> grid = TimeGrid((0, 10, 30))
    >>> interpolate_survival([[1.0, 0.8, 0.4]], grid, [5, 10, 20]).round(3).tolist()
    [[0.9, 0.8, 0.6]]
    """
    curves = np.asarray(survival, dtype=np.float64)
    at = np.atleast_1d(np.asarray(days, dtype=np.float64))
    edges = np.asarray(grid.edges_days)
    if curves.ndim != 2 or curves.shape[1] != edges.size:
        raise DataError(f"survival curves of shape {curves.shape}; this time grid needs (subjects, {edges.size})")
    if np.any(at < 0) or np.any(at > grid.horizon_days):
        raise DataError(
            f"survival asked for at {at.min():g} to {at.max():g} days; the model covers 0 to {grid.horizon_days:g}"
        )
    right = np.clip(np.searchsorted(edges, at, side="left"), 1, edges.size - 1)  # (M,)
    weight = (at - edges[right - 1]) / (edges[right] - edges[right - 1])  # (M,) in [0, 1]
    interpolated: Floats = curves[:, right - 1] * (1 - weight) + curves[:, right] * weight
    return interpolated
