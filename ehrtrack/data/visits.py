"""From a subject's history up to a cutoff to visit tokens: the tokeniser, and the guard against leakage."""

from __future__ import annotations

from typing import Literal

import polars as pl

from ehrtrack.data.events import BIRTH, life_spans
from ehrtrack.data.vocabulary import Vocabulary, index_tokens
from ehrtrack.errors import DataError
from ehrtrack.section import Section

DAYS_PER_YEAR = 365.25
MICROSECONDS_PER_DAY = 86_400_000_000


class VisitConfig(Section):
    """What makes events one visit: the source's encounter (else the day), the calendar day, or the hour."""

    unit: Literal["encounter", "day", "hour"] = "day"


def known_events(events: pl.LazyFrame, cutoffs: pl.DataFrame) -> pl.LazyFrame:
    """What is known of each subject at its cutoff: static facts, and events from birth to death up to it.

    Birth and death themselves are read from what is known, so that nothing after the cutoff has a say.

    Parameters
    ----------
    cutoffs : columns subject_id, cutoff (datetime[us]); subjects that are not in it are left out
    """
    until_cutoff = (
        events.join(cutoffs.lazy().select("subject_id", "cutoff"), on="subject_id")
        .filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("cutoff")))
        .drop("cutoff")
    )
    span = life_spans(until_cutoff).select("subject_id", "birth", "death")
    time, is_static = pl.col("time"), pl.col("time").is_null()
    in_life = (time >= pl.col("birth")).fill_null(True) & (time <= pl.col("death")).fill_null(True)
    return until_cutoff.join(span, on="subject_id").filter(is_static | in_life).drop("birth", "death")


def days_between(start: str, end: str) -> pl.Expr:
    """Days from one datetime column to another, with their fraction."""
    return (pl.col(end) - pl.col(start)).dt.total_microseconds() / MICROSECONDS_PER_DAY


def visit_key(unit: Literal["encounter", "day", "hour"]) -> pl.Expr:
    """What the events of one visit of a subject have in common; null for static facts."""
    day = pl.col("time").dt.strftime("%Y-%m-%d")
    if unit == "encounter":
        return pl.when(pl.col("time").is_not_null()).then(pl.coalesce("visit_id", day))
    return day if unit == "day" else pl.col("time").dt.strftime("%Y-%m-%d %H")


def visit_tokens(
    events: pl.LazyFrame, cutoff: pl.DataFrame, vocabulary: Vocabulary, config: VisitConfig
) -> pl.DataFrame:
    """The tokens of each subject's visits up to its cutoff.

    A visit begins at its first event, and visits are ordered by their beginning. Within a visit a token
    appears once, and tokens are ordered by index. Static facts are visit 0, with age and gap 0.

    Parameters
    ----------
    events : all events, or any part of them that holds the subjects of `cutoff`
    cutoff : columns subject_id, cutoff (datetime[us])

    Returns
    -------
    subject_id i64, visit i32, visit_start datetime[us], token i32, age_years f32, gap_days f32;
    sorted by subject_id, visit, token

    Raises
    ------
    DataError
        If a subject has no birth at or before its cutoff.
    """
    known = known_events(events, cutoff)
    births = known.filter(pl.col("code") == BIRTH).group_by("subject_id").agg(birth=pl.col("time").min())
    born = births.collect(engine="streaming")
    _check_births(cutoff, born)
    tokens = (
        index_tokens(known, vocabulary)
        .with_columns(key=visit_key(config.unit))
        .group_by("subject_id", "key", "token")
        .agg(time=pl.col("time").min())
        .collect(engine="streaming")
    )
    visits = _number_visits(tokens, born)
    return (
        tokens.drop("time")
        .join(visits, on=["subject_id", "key"], how="left", nulls_equal=True)
        .select("subject_id", "visit", "visit_start", "token", "age_years", "gap_days")
        .sort("subject_id", "visit", "token")
    )


def _number_visits(tokens: pl.DataFrame, births: pl.DataFrame) -> pl.DataFrame:
    """One row a visit (subject_id, key): its number, start, the age at it and the gap before it."""
    visits = (
        tokens.group_by("subject_id", "key")
        .agg(visit_start=pl.col("time").min())
        .sort("subject_id", "visit_start", "key", nulls_last=False)
        .join(births, on="subject_id", how="left", maintain_order="left")
    )
    is_timed = pl.col("visit_start").is_not_null()
    previous = pl.col("visit_start").shift(1).over("subject_id")
    return visits.with_columns(previous_start=previous).select(
        "subject_id",
        "key",
        "visit_start",
        visit=is_timed.cum_sum().over("subject_id").cast(pl.Int32),
        age_years=(days_between("birth", "visit_start") / DAYS_PER_YEAR).fill_null(0.0).cast(pl.Float32),
        gap_days=days_between("previous_start", "visit_start").fill_null(0.0).cast(pl.Float32),
    )


def _check_births(cutoff: pl.DataFrame, births: pl.DataFrame) -> None:
    missing = cutoff.join(births, on="subject_id", how="anti").sort("subject_id")
    if not missing.is_empty():
        raise DataError(
            f"{missing.height} of {cutoff.height} subjects have no {BIRTH} event at or before their cutoff "
            f"(first: subject {missing['subject_id'][0]}), and tokens carry ages; "
            f"add {BIRTH} events to the dataset, or leave these subjects out"
        )
