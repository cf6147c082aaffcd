"""Regression with an L2 penalty that may differ from column to column, for any loss of a few outputs.

    (u, c) = argmin  loss(c + x u)  +  1/2 sum_p lambda_p |u_p|^2

Columns are divided by sqrt(lambda_p), turned to their principal axes, where a problem of more columns than subjects has
no more unknowns than subjects, and scaled by their curvature, so that L-BFGS needs some ten steps (as `ridge_cox`,
whose penalty is one for all columns).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.errors import DataError

Loss = Callable[[Floats], tuple[float, Floats]]
"""From what is added to the baseline of each subject and output (N, R): the mean loss, and its slopes (N, R)."""

TOLERANCE = 1e-5
"""Of the gradient in units of the scaled axes."""
MAX_STEPS = 1_000
LEAST_SHARE_OF_AXIS = 1e-12
"""Of an axis's sum of squares, in units of the longest's: what is shorter is rounding."""


class Regression(NamedTuple):
    """Effects (P, R) of the columns, and intercepts (R,).

    Examples
    --------
    >>> Regression(np.array([[2.0]]), np.array([1.0])).at(np.array([[0.0], [3.0]])).tolist()
    [[1.0], [7.0]]
    """

    effect: Floats
    intercept: Floats

    def at(self, x: Floats) -> Floats:
        """(N, R) c + x u."""
        said: Floats = self.intercept + x @ self.effect
        return said


def axes_of(x: Floats) -> tuple[Floats, Floats]:
    """The A directions in which rows of x (N, P) differ, (P, A) with lengths of 1, and (A,) sums of squares on them.

    There are no more than rows, or than columns.

    A ridge regression with one penalty for all columns is the same on these axes.

    Examples
    --------
    A column and its copy differ in one direction:

    >>> axes, square = axes_of(np.array([[1.0, 1.0], [2.0, 2.0], [-3.0, -3.0]]))
    >>> abs(axes).round(3).tolist(), square.round(3).tolist()
    ([[0.707], [0.707]], [28.0])
    """
    is_wide = x.shape[1] > len(x)
    square, vectors = np.linalg.eigh(x @ x.T if is_wide else x.T @ x)
    is_there = square > LEAST_SHARE_OF_AXIS * square.max(initial=0)
    square, vectors = square[is_there], vectors[:, is_there]
    return x.T @ (vectors / np.sqrt(square)) if is_wide else vectors, square


class Axes:
    """Columns on their principal axes under a penalty, which penalties in the same proportions share.

    Parameters
    ----------
    x : (N, P)
    penalty : (P,) lambda > 0; where it is infinite, the column has no effect

    Examples
    --------
    Twice the penalty is twice the strength; in other proportions it is of other axes:

    >>> axes = Axes(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.5, 2.0]))
    >>> axes.strength(np.array([1.0, 4.0])), axes.strength(np.array([1.0, 1.0]))
    (2.0, None)
    """

    def __init__(self, x: Floats, penalty: Floats) -> None:
        self.penalty = penalty
        self._used = np.flatnonzero(np.isfinite(penalty))
        self._root = np.sqrt(penalty[self._used])
        self._left, self._length, self._axes = np.linalg.svd(x[:, self._used] / self._root, full_matrices=False)

    def strength(self, penalty: Floats) -> float | None:
        """How many times as strong another penalty (P,) is; None where its proportions are others."""
        if not np.array_equal(np.isfinite(penalty), np.isfinite(self.penalty)):
            return None
        times = penalty[self._used] / self.penalty[self._used]
        if not len(times):
            return 1.0
        return float(times[0]) if np.allclose(times, times[0], rtol=1e-12) else None

    def fit(self, loss: Loss, *, curvature: float, n_outputs: int = 1, strength: float = 1.0) -> Regression:
        """The regression of the least penalised loss, at a penalty so many times as strong.

        Parameters
        ----------
        curvature : of the loss by the shift of a subject, times N, roughly: the share with an event. It sets the scale
            of the first step alone

        Examples
        --------
        Least squares with an intercept; the stronger the penalty, the smaller the effect:

        >>> x, y = np.array([[-1.0], [0.0], [1.0]]), np.array([[1.0], [3.0], [5.0]])
        >>> def squares(shift):
        ...     return float(((shift - y) ** 2).mean()) / 2, (shift - y) / 3
        >>> axes = Axes(x, np.array([2 / 3]))
        >>> for strength in (1e-9, 1, 2):
        ...     found = axes.fit(squares, curvature=1.0, strength=strength)
        ...     print(round(float(found.effect[0, 0]), 3), found.intercept.round(3).tolist())
        2.0 [3.0]
        1.0 [3.0]
        0.667 [3.0]
        """
        n, length, root = len(self._left), self._length / strength**0.5, self._root * strength**0.5
        effect = np.zeros((len(self.penalty), n_outputs))
        scale = 1 / np.sqrt(curvature * length**2 / n + 1)
        weight = np.append(scale**2, 0.0)  # of the intercept, which is no effect, none
        turned = np.column_stack([self._left * (length * scale), np.full(n, 1 / np.sqrt(curvature))])

        def value_and_slope(flat: Floats) -> tuple[float, Floats]:
            free = flat.reshape(-1, n_outputs)
            mean, slope = loss(turned @ free)
            weighted = weight[:, None] * free
            return mean + float((weighted * free).sum()) / 2, (turned.T @ slope + weighted).ravel()

        options = {"maxiter": MAX_STEPS, "gtol": TOLERANCE, "ftol": 0.0}
        start = np.zeros(turned.shape[1] * n_outputs)
        found = minimize(value_and_slope, start, jac=True, method="L-BFGS-B", options=options).x.reshape(-1, n_outputs)
        effect[self._used] = (self._axes.T @ (found[:-1] * scale[:, None])) / root[:, None]
        return Regression(effect, found[-1] / np.sqrt(curvature))


def event_folds(is_event: Bools, subject: Ints | None, *, n_folds: int, seed: int) -> Ints:
    """(N,) the fold of each row: rows of a subject are in one, and events are spread over all.

    There are no more folds than rows with the event, or without it.

    Parameters
    ----------
    subject : (N,) whose row each is; None where each is of another

    Raises
    ------
    DataError
        If fewer than two of them have the event, or have it not.

    Examples
    --------
    >>> is_event = np.array([True, True, False, False, False])
    >>> np.bincount(event_folds(is_event, None, n_folds=5, seed=0)).tolist()
    [3, 2]
    """
    check_divisible(is_event)
    n_events = int(is_event.sum())
    splitter = StratifiedKFold if subject is None else StratifiedGroupKFold
    fold = np.zeros(len(is_event), dtype=np.int64)
    parts = splitter(min(n_folds, n_events, len(is_event) - n_events), shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(parts.split(np.zeros((len(fold), 1)), is_event, subject)):
        fold[held_out] = number
    return fold


def check_divisible(is_event: Bools) -> None:
    """Make sure that subjects can be divided into folds.

    Raises
    ------
    DataError
        If fewer than two of them have the event, or have it not.

    Examples
    --------
    >>> check_divisible(np.array([True, True, False, False]))
    >>> check_divisible(np.array([True, False, False, False]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ehrtrack.errors.DataError: 1 of 4 subjects to learn from have the event, and cross-validation needs ...
    """
    n_events = int(is_event.sum())
    if min(n_events, len(is_event) - n_events) < 2:
        raise DataError(
            f"{n_events} of {len(is_event)} subjects to learn from have the event, and cross-validation "
            "needs two with and two without; use a larger cohort"
        )
