"""Which candidates of an import are events: none before birth or after death, one birth and one death at most.

The rules are in `ehrtrack.data.importing`. Candidates have the columns of a run and `table_index`; `subject` is
a row of the shard's subjects, and `code` a number among which birth has the first and death the last.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ehrtrack.data.import_report import DROP_REASONS

BIRTH_CODE = 0
_DAY = pl.duration(days=1)


def reason_number(reason: str) -> pl.Expr:
    """The reason as its place in `DROP_REASONS`."""
    return pl.lit(DROP_REASONS.index(reason), pl.UInt8)


def judge_candidates(
    candidates: pl.DataFrame, *, n_subjects: int, death_code: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The candidates that are kept, births and deaths at their final times; and `table_index`, `reason` of the others.

    Only what lies outside the days between birth and death can be dropped or move a birth or death: the rest, most
    of all, is not looked at further.
    """
    is_life = candidates["code"].is_in([BIRTH_CODE, death_code])
    lives = _stated_lives(candidates.filter(is_life), n_subjects, death_code)
    subject, time = candidates["subject"], candidates["time"]
    first_whole_day = lives.select(pl.col("birth_day") + _DAY).to_series()
    is_at_end = (time < first_whole_day.gather(subject)) | (time >= lives["death_day"].gather(subject))
    is_at_end = is_at_end.fill_null(False) | is_life
    ends = candidates.with_row_index("row").filter(is_at_end)
    ends = ends.join(_enclosing_lives(ends, lives, death_code), on="subject", how="left")
    ends = ends.with_columns(reason=_reason(death_code))
    is_birth, is_death = pl.col("code") == BIRTH_CODE, pl.col("code") == death_code
    lived = ends.filter(pl.col("reason").is_null() & (is_birth | is_death)).select(
        "row", time=pl.when(is_birth).then("birth").otherwise("death")
    )
    # Rows stay where they are: what is in order needs no sorting afterwards.
    columns = [candidates["time"].clone().scatter(lived["row"], lived["time"])]
    # A birth or death says nothing else than its time.
    values = [name for name in candidates.columns if name not in ("subject", "time", "code", "table_index")]
    columns += [candidates[name].clone().scatter(lived["row"], None) for name in values]
    events = candidates.with_columns(columns)
    dropped = ends.filter(pl.col("reason").is_not_null())
    if dropped.height:
        is_kept = np.ones(events.height, bool)
        is_kept[dropped["row"].to_numpy()] = False
        events = events.filter(pl.Series(is_kept))
    return events, dropped.select("table_index", "reason")


def _stated_lives(facts: pl.DataFrame, n_subjects: int, death_code: int) -> pl.DataFrame:
    """By subject, a row each: `birth`, `death` as stated, and their days."""
    facts = facts.select("subject", "time", "code").drop_nulls("time")
    day = pl.col("time").dt.truncate("1d")
    births = facts.filter(pl.col("code") == BIRTH_CODE).group_by("subject").agg(birth=pl.col("time").min())
    deaths = (
        facts.filter(pl.col("code") == death_code)
        .join(births, on="subject", how="left")
        .filter(pl.col("birth").is_null() | (pl.col("time") >= pl.col("birth").dt.truncate("1d")))
        .group_by("subject")
        .agg(death=pl.col("time").filter(day == day.min()).max())
    )
    return (
        pl.DataFrame({"subject": pl.Series(range(n_subjects), dtype=pl.UInt32)})
        .join(births, on="subject", how="left", maintain_order="left")
        .join(deaths, on="subject", how="left", maintain_order="left")
        .with_columns(birth_day=pl.col("birth").dt.truncate("1d"), death_day=pl.col("death").dt.truncate("1d"))
    )


def _enclosing_lives(ends: pl.DataFrame, lives: pl.DataFrame, death_code: int) -> pl.DataFrame:
    """The lives with birth and death moved within their day to enclose that day's events."""
    others = ends.filter(~pl.col("code").is_in([BIRTH_CODE, death_code])).select("subject", "time")
    of_day = others.join(lives, on="subject").with_columns(day=pl.col("time").dt.truncate("1d"))
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


def _reason(death_code: int) -> pl.Expr:
    """Why a candidate, joined with its subject's life, is dropped; null if it is not."""
    is_birth, is_death = pl.col("code") == BIRTH_CODE, pl.col("code") == death_code
    time, birth_day, death_day = pl.col("time"), pl.col("birth_day"), pl.col("death_day")
    return (
        pl.when(is_birth & (time >= birth_day + _DAY))
        .then(reason_number("conflicting birth or death"))
        .when(time < birth_day)
        .then(reason_number("before birth"))
        .when(is_death & (time >= death_day + _DAY))
        .then(reason_number("conflicting birth or death"))
        .when(~is_death & (time > pl.col("death")))
        .then(reason_number("after death"))
    )
