"""The wall clock of the source, by which a time is a date alone."""

from __future__ import annotations

import polars as pl

from ehrtrack.data.visits import MICROSECONDS_PER_DAY


def is_midnight(time: pl.Expr, time_zone: str) -> pl.Expr:
    """Whether a time in UTC is midnight in a zone: it then stands for a date without a clock.

    >>> from datetime import datetime
    >>> frame = pl.DataFrame({"time": [datetime(2020, 6, 1, 22), datetime(2020, 6, 1)]})
    >>> frame.select(is_midnight(pl.col("time"), "Europe/Berlin"))["time"].to_list()
    [True, False]
    """
    if time_zone != "UTC":
        time = time.dt.replace_time_zone("UTC").dt.convert_time_zone(time_zone).dt.replace_time_zone(None)
    return time.dt.cast_time_unit("us").to_physical() % MICROSECONDS_PER_DAY == 0
