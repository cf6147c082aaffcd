"""Observation periods of a record, as OMOP has them: the one that holds the index date, and when it ends."""

from __future__ import annotations

import polars as pl

PERIOD_START = "OBSERVATION_PERIOD//START"
PERIOD_END = "OBSERVATION_PERIOD//END"


def add_observation(subjects: pl.DataFrame, events: pl.LazyFrame) -> pl.DataFrame:
    """The subjects with `is_observed` and `observed_until`, by the period that holds their `index_date`.

    A period runs from a start to the next end; without one it is open. An end that is a date holds its whole day. What
    a record has outside the period, such as a second one after a gap, is no follow-up: nobody looked in between.

    Returns
    -------
    is_observed : null for subjects whose record has no periods; observed_until : null where the period is open, too

    Examples
    --------
    A period of observation from January to June holds the index date, and another subject has no periods:

    >>> from datetime import datetime
    >>> events = pl.LazyFrame(
    ...     [(1, datetime(2020, 1, 1), PERIOD_START), (1, datetime(2020, 6, 30, 12), PERIOD_END)],
    ...     schema=["subject_id", "time", "code"],
    ...     orient="row",
    ... )
    >>> subjects = pl.DataFrame({"subject_id": [1, 2], "index_date": [datetime(2020, 3, 1)] * 2})
    >>> add_observation(subjects, events).select("subject_id", "is_observed", "observed_until").rows()
    [(1, True, datetime.datetime(2020, 6, 30, 12, 0)), (2, None, None)]
    """
    times = (
        events.filter(pl.col("code").is_in([PERIOD_START, PERIOD_END]) & pl.col("time").is_not_null())
        .join(subjects.lazy().select("subject_id"), on="subject_id", how="semi")
        .select("subject_id", "time", "code")
        .collect(engine="streaming")
    )
    if times.is_empty():
        nothing = {"is_observed": pl.lit(None, pl.Boolean), "observed_until": pl.lit(None, pl.Datetime("us"))}
        return subjects.with_columns(**nothing)
    starts = times.filter(pl.col("code") == PERIOD_START).select("subject_id", start="time").sort("start")
    ends = times.filter(pl.col("code") == PERIOD_END).select("subject_id", end="time").sort("end")
    periods = starts.join_asof(
        ends, left_on="start", right_on="end", by="subject_id", strategy="forward", check_sortedness=False
    )
    asked = subjects.select("subject_id", "index_date").join(periods, on="subject_id")
    is_date = pl.col("end") == pl.col("end").dt.truncate("1d")
    last = pl.when(is_date).then(pl.col("end").dt.offset_by("1d")).otherwise("end")
    index = pl.col("index_date")
    holds = (pl.col("start") <= index) & ((index < last) | (index == pl.col("end")) | pl.col("end").is_null())
    held = (
        asked.with_columns(is_observed=holds)
        .group_by("subject_id", "index_date")
        .agg(
            is_observed=pl.col("is_observed").any(),
            # of periods that overlap the longest; an open one has no end
            is_open=(pl.col("is_observed") & pl.col("end").is_null()).any(),
            observed_until=pl.col("end").filter(pl.col("is_observed")).max(),
        )
        .select(
            "subject_id", "index_date", "is_observed", observed_until=pl.when(~pl.col("is_open")).then("observed_until")
        )
    )
    return subjects.join(held, on=["subject_id", "index_date"], how="left", maintain_order="left")
