"""Which candidates of an import are events: none before birth or after death, one birth and one death at most.

The rules are in `ehrtrack.data.importing`. Candidates have the columns of a run and `table_index`; `subject` is
a row of the shard's subjects, and `code` a number among which birth has the first and death the last. What is
judged at all, which is little, gets its times as timestamps, null for static facts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl

from ehrtrack.arrays import Bools, Ints
from ehrtrack.data.histories import NO_TIME
from ehrtrack.data.importing.report import DROP_REASONS

_Times = TypeVar("_Times", pl.Series, pl.Expr)

BIRTH_CODE = 0
SEX_PREFIXES = ("GENDER//", "SEX//")
"""Of these facts a subject has one."""


@dataclass(frozen=True)
class Calendar:
    """Days of a time zone, whose beginnings are given in UTC.

    >>> from datetime import datetime
    >>> Calendar("Asia/Shanghai").day(pl.Series([datetime(2010, 1, 2, 17)]).dt.cast_time_unit("us"))[0]
    datetime.datetime(2010, 1, 2, 16, 0)
    """

    time_zone: str = "UTC"

    def day(self, time: _Times) -> _Times:
        """The beginning of the day that a time is on."""
        return self._locally(time, lambda local: local.dt.truncate("1d"))

    def next_day(self, day: _Times) -> _Times:
        """The beginning of the day after."""
        return self._locally(day, lambda local: local.dt.offset_by("1d"))

    def _locally(self, time: _Times, change: Callable[[_Times], _Times]) -> _Times:
        if self.time_zone == "UTC":
            return change(time)
        local = time.dt.replace_time_zone("UTC").dt.convert_time_zone(self.time_zone)
        return change(local).dt.convert_time_zone("UTC").dt.replace_time_zone(None)


def reason_number(reason: str) -> pl.Expr:
    """The reason as its place in `DROP_REASONS`."""
    return pl.lit(DROP_REASONS.index(reason), pl.UInt8)


def judge_candidates(
    candidates: pl.DataFrame, *, n_subjects: int, death_code: int, calendar: Calendar, sex_codes: Ints
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The candidates that are kept, births and deaths at their final times; and the others with their `reason`.

    Only what lies outside the days between birth and death can be dropped or move a birth or death: the rest, most
    of all, is not looked at further.
    """
    subject, time, code = (candidates[name].to_numpy() for name in ("subject", "time", "code"))
    is_life = (code == BIRTH_CODE) | (code == death_code)
    lives = _stated_lives(_rows(candidates, is_life), n_subjects, death_code, calendar)
    first_whole_day = calendar.next_day(lives["birth_day"]).to_physical().fill_null(NO_TIME)
    death_day = lives["death_day"].to_physical().fill_null(np.iinfo(np.int64).max)
    is_at_end = (time < first_whole_day.to_numpy()[subject]) & (time != NO_TIME)
    is_at_end |= (time >= death_day.to_numpy()[subject]) | is_life
    ends = _rows(candidates, is_at_end)
    ends = ends.join(_enclosing_lives(ends, lives, death_code, calendar), on="subject", how="left")
    ends = ends.with_columns(reason=_reason(death_code, calendar))
    is_birth, is_death = pl.col("code") == BIRTH_CODE, pl.col("code") == death_code
    lived = ends.filter(pl.col("reason").is_null() & (is_birth | is_death)).select(
        "row", time=pl.when(is_birth).then("birth").otherwise("death").to_physical()
    )
    # Rows stay where they are: what is in order needs no sorting afterwards.
    columns = [candidates["time"].clone().scatter(lived["row"], lived["time"])]
    # A birth or death says nothing else than its time.
    for name, nothing in (("numeric_value", float("nan")), ("text_value", None), ("visit_id", None)):
        if name in candidates:
            columns.append(candidates[name].clone().scatter(lived["row"], nothing))
    events = candidates.with_columns(columns)
    dropped = pl.concat(
        [
            ends.filter(pl.col("reason").is_not_null()).select("row", "table_index", "subject", "code", "reason"),
            _other_sexes(_rows(candidates, np.isin(code, sex_codes))),
        ]
    )
    if dropped.height:
        is_kept = np.ones(events.height, bool)
        is_kept[dropped["row"].to_numpy()] = False
        events = events.filter(pl.Series(is_kept))
    return events, dropped.drop("row")


def n_lost_deaths(events: pl.DataFrame, dropped: pl.DataFrame, death_code: int) -> int:
    """How many subjects stated a death and have none left: they would be taken for living."""
    stated = dropped.filter(pl.col("code") == death_code)["subject"].unique()
    left = events.filter(pl.col("code") == death_code)["subject"]
    return int((~stated.is_in(left.implode())).sum())


def _other_sexes(facts: pl.DataFrame) -> pl.DataFrame:
    """Of the sexes stated of a subject those that differ from the first one."""
    first = facts.group_by("subject", maintain_order=True).agg(first=pl.col("code").first())
    others = facts.join(first, on="subject", how="left").filter(pl.col("code") != pl.col("first"))
    return others.select("row", "table_index", "subject", "code", reason=reason_number("conflicting sex"))


def _rows(candidates: pl.DataFrame, mask: Bools) -> pl.DataFrame:
    """The candidates for which the mask is true, with their `row` and their times as timestamps."""
    row = pl.Series("row", np.flatnonzero(mask).astype(np.uint32))
    rows = candidates[row].with_columns(row)
    return rows.with_columns(time=timestamps(rows["time"]))


def timestamps(time_us: pl.Series) -> pl.Series:
    """Times of a run as timestamps, null for static facts."""
    return time_us.set(time_us == NO_TIME, None).cast(pl.Datetime("us"))


def _stated_lives(facts: pl.DataFrame, n_subjects: int, death_code: int, calendar: Calendar) -> pl.DataFrame:
    """By subject, a row each: `birth`, `death` as stated, and their days."""
    facts = facts.select("subject", "time", "code").drop_nulls("time")
    day = calendar.day(pl.col("time"))
    births = facts.filter(pl.col("code") == BIRTH_CODE).group_by("subject").agg(birth=pl.col("time").min())
    deaths = (
        facts.filter(pl.col("code") == death_code)
        .join(births, on="subject", how="left")
        .filter(pl.col("birth").is_null() | (pl.col("time") >= calendar.day(pl.col("birth"))))
        .group_by("subject")
        .agg(death=pl.col("time").filter(day == day.min()).max())
    )
    return (
        pl.DataFrame({"subject": pl.Series(range(n_subjects), dtype=pl.UInt32)})
        .join(births, on="subject", how="left", maintain_order="left")
        .join(deaths, on="subject", how="left", maintain_order="left")
        .with_columns(birth_day=calendar.day(pl.col("birth")), death_day=calendar.day(pl.col("death")))
    )


def _enclosing_lives(ends: pl.DataFrame, lives: pl.DataFrame, death_code: int, calendar: Calendar) -> pl.DataFrame:
    """The lives with birth and death moved within their day to enclose that day's events."""
    others = ends.filter(~pl.col("code").is_in([BIRTH_CODE, death_code])).select("subject", "time")
    of_day = others.join(lives, on="subject").with_columns(day=calendar.day(pl.col("time")))
    edges = of_day.group_by("subject").agg(
        first_of_birthday=pl.col("time").filter(pl.col("day") == pl.col("birth_day")).min(),
        last_of_death_day=pl.col("time").filter(pl.col("day") == pl.col("death_day")).max(),
    )
    is_date_alone = pl.col("death") == pl.col("death_day")
    return lives.join(edges, on="subject", how="left").select(
        "subject",
        "birth_day",
        "death_day",
        birth=pl.min_horizontal("birth", "first_of_birthday"),
        death=pl.when(is_date_alone).then(pl.max_horizontal("death", "last_of_death_day")).otherwise("death"),
    )


def _reason(death_code: int, calendar: Calendar) -> pl.Expr:
    """Why a candidate, joined with its subject's life, is dropped; null if it is not."""
    is_birth, is_death = pl.col("code") == BIRTH_CODE, pl.col("code") == death_code
    time, birth_day, death_day = pl.col("time"), pl.col("birth_day"), pl.col("death_day")
    return (
        pl.when(is_birth & (time >= calendar.next_day(birth_day)))
        .then(reason_number("conflicting birth or death"))
        .when(time < birth_day)
        .then(reason_number("before birth"))
        .when(is_death & (time >= calendar.next_day(death_day)))
        .then(reason_number("conflicting birth or death"))
        .when(~is_death & (time > pl.col("death")))
        .then(reason_number("after death"))
    )
