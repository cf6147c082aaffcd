"""Horizons that subjects are followed to: beyond them nothing is seen, and a risk would be named for the wrong day."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.errors import DataError

SAME_DAYS = 1e-6
"""Differences of days that are rounding: a tenth of a second."""


def longest_horizon(follow_up_days: Floats, min_share: float) -> float:
    """The longest horizon to which at least one subject and `min_share` of them are followed.

    Where it is not the longest follow-up of all, it is cut to whole days.

    Examples
    --------
    >>> days = np.array([900.0] * 99 + [1093.3])
    >>> longest_horizon(days, 0.01), longest_horizon(days, 0.02)
    (1093.3, 900.0)
    """
    ordered = np.sort(follow_up_days)[::-1]
    longest = float(ordered[_n_needed(len(ordered), min_share) - 1])
    is_cut = longest < ordered[0]
    return float(math.floor(longest)) if is_cut and longest >= 1 else longest


def check_horizon(training: pl.DataFrame, horizon_days: float, min_share: float) -> None:
    """Refuse a horizon to which fewer than `min_share` of the training subjects are followed; with 0, none.

    Followed to it are those who were seen without the outcome up to that day, also if they had it on that day.

    Raises
    ------
    DataError
        With the longest horizon that would do.

    Examples
    --------
    >>> training = pl.DataFrame({"follow_up_days": [100.0] * 98 + [400.0] * 2})
    >>> check_horizon(training, 365, 0.01)
    >>> check_horizon(training, 365, 0.05)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ehrtrack.errors.DataError: cohort.horizon_days is 365, and fewer than 5.0% of the 100 ...
    """
    days = training["follow_up_days"].to_numpy()
    n_followed = int((days >= horizon_days - SAME_DAYS).sum())
    if min_share and len(days) and n_followed < _n_needed(len(days), min_share):
        few = f"fewer than {min_share:.1%}" if n_followed else "none"
        raise DataError(
            f"cohort.horizon_days is {horizon_days:g}, and {few} of the {len(days)} training subjects are followed to "
            f"it: nothing would tell of risks up to then. At least {min_share:.1%} have to be "
            "(cohort.min_followed_share): the longest horizon that would do is "
            f"{longest_horizon(days, min_share):g} days"
        )


def _n_needed(n_subjects: int, min_share: float) -> int:
    return max(1, math.ceil(min_share * n_subjects - 1e-9))  # 7 % of 100 are 7.000000000000001
