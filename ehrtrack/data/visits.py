"""From a subject's history up to a cutoff to visit tokens: the tokeniser, and the guard against leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrtrack.arrays import Bools, Float32s, Floats, Int32s, Ints
from ehrtrack.data.events import BIRTH, DEATH, starts_with_any
from ehrtrack.data.histories import NO_TIME, Histories, distinct, histories_of, run_starts, subject_numbers, times_us
from ehrtrack.data.settings import VisitConfig, VisitUnit
from ehrtrack.data.vocabulary import UNK, Vocabulary, slot_names, slots

DAYS_PER_YEAR = 365.25
MAX_AGE_YEARS = 120
"""The highest age that a model reads; who is older at an index date is taken for an error in the data."""
UNKNOWN_AGE = MAX_AGE_YEARS + 1
"""Stands for the age in whole years of a subject whose birth is not known, in batches and as a row of embeddings."""
MICROSECONDS_PER_DAY = 86_400_000_000
NO_DELAYS: Mapping[str, float] = {}
"""Every event is known at its time."""
MICROSECONDS = {"day": MICROSECONDS_PER_DAY, "hour": MICROSECONDS_PER_DAY // 24}


@dataclass(frozen=True)
class VisitTokens:
    """The visit tokens of S subjects, T in all, subject after subject.

    Within a subject they are sorted by visit, then token; a token appears once a visit.
    """

    subject_ids: Ints  # (S,) rising
    n_tokens: Ints  # (S,)
    birth_us: Ints  # (S,) NO_TIME where none is known
    last_visit_us: Ints  # (S,) start of the last visit; NO_TIME without a visit
    token: Int32s  # (T,)
    age_years: Float32s  # (T,) age at the visit, NaN where the birth is not known; 0 for static facts
    visit: Int32s  # (T,) 0 = static facts, then 1.. in time order
    gap_days: Float32s  # (T,) since the visit before; 0 for the first and for static facts


def is_known(events: Histories, cutoffs: pl.DataFrame, delay_hours: Mapping[str, float] = NO_DELAYS) -> Bools:
    """(E,) which events are known at their subject's cutoff: static facts, and those from birth to death up to it.

    Birth and death themselves are read from what is known, so that nothing after the cutoff has a say.

    Parameters
    ----------
    cutoffs : columns subject_id, cutoff (datetime[us]), a subject once; of those that are not in it nothing is known
    delay_hours : how long after its time an event is known, by patterns of codes (`data.delay_hours`)
    """
    row, is_wanted = subject_numbers(events.subjects, cutoffs["subject_id"].to_numpy())
    cutoff_us = np.full(len(row), NO_TIME)
    cutoff_us[is_wanted] = times_us(cutoffs["cutoff"])[row[is_wanted]]
    birth = events.earliest(BIRTH, cutoff_us)
    first = np.where(birth == np.iinfo(np.int64).max, NO_TIME, birth)  # without a birth, whatever came before
    last = np.minimum(events.earliest(DEATH, cutoff_us), cutoff_us)
    in_life = (events.time_us >= events.spread(first)) & (events.time_us <= events.spread(last))
    if delay_hours:
        in_life &= events.time_us + _delays_us(events.codes, delay_hours)[events.code] <= events.spread(cutoff_us)
    known: Bools = (in_life | (events.time_us == NO_TIME)) & events.spread(is_wanted)
    return known


def _delays_us(codes: Sequence[str], delay_hours: Mapping[str, float]) -> Ints:
    """(C,) how long after its time an event of each code is known: the longest delay of the patterns that match.

    Birth and death have none: they are no input, and say to whom an age can be given.
    """
    table = pl.DataFrame({"code": list(codes)}, schema={"code": pl.String})
    delays = [pl.when(starts_with_any((pattern,))).then(hours) for pattern, hours in delay_hours.items()]
    is_delayed = ~pl.col("code").is_in([BIRTH, DEATH])
    hours = table.select(
        pl.when(is_delayed).then(pl.max_horizontal(pl.lit(0.0), *delays)).otherwise(0.0).alias("hours")
    )
    delays_us: Ints = np.round(hours["hours"].to_numpy() * MICROSECONDS["hour"]).astype(np.int64)
    return delays_us


def known_events(
    events: pl.LazyFrame, cutoffs: pl.DataFrame, delay_hours: Mapping[str, float] = NO_DELAYS
) -> pl.LazyFrame:
    """The events of a frame that `is_known` lets through, sorted by subject and time; for a look at them."""
    ordered = events.drop_nulls("code").sort("subject_id", "time", nulls_last=False, maintain_order=True).collect()
    return ordered.filter(is_known(histories_of(ordered), cutoffs, delay_hours)).lazy()


def days_between(start: str, end: str) -> pl.Expr:
    """Days from one datetime column to another, with their fraction."""
    return (pl.col(end) - pl.col(start)).dt.total_microseconds() / MICROSECONDS_PER_DAY


def days_after(start: str, days: float) -> pl.Expr:
    """The moment so many days, with their fraction, after a datetime column."""
    return pl.col(start) + pl.duration(microseconds=round(days * MICROSECONDS_PER_DAY))


def visit_key(unit: VisitUnit) -> pl.Expr:
    """What the events of one visit of a subject have in common; null for static facts."""
    if unit != "encounter":
        return pl.col("time").dt.truncate({"day": "1d", "hour": "1h"}[unit])
    day = pl.col("time").dt.strftime("%Y-%m-%d")
    return pl.when(pl.col("time").is_not_null()).then(pl.coalesce("visit_id", day))


def visit_tokens(
    events: Histories,
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary,
    config: VisitConfig,
    delay_hours: Mapping[str, float] = NO_DELAYS,
) -> VisitTokens:
    """The tokens of the visits, up to its cutoff, of each subject that is both in the events and in the cutoffs.

    A visit begins at its first event that becomes a token, and visits are ordered by their beginning. Within a
    visit a token appears once, and tokens are ordered by index. Static facts are visit 0, with age and gap 0.

    Parameters
    ----------
    cutoffs : columns subject_id, cutoff (datetime[us])
    delay_hours : as of `is_known`
    """
    row, is_there = subject_numbers(events.subjects, cutoffs["subject_id"].to_numpy())
    known = is_known(events, cutoffs, delay_hours)
    until = np.full(len(row), NO_TIME)
    until[is_there] = times_us(cutoffs["cutoff"])[row[is_there]]
    birth = events.earliest(BIRTH, until, among=known)[is_there]
    birth[birth == np.iinfo(np.int64).max] = NO_TIME

    slot, is_token = slots(events, vocabulary.value_edges, vocabulary.exclude)
    is_token &= known
    subject = events.spread(np.cumsum(is_there) - 1)[is_token]  # (E,) of the events that become tokens
    visit, start, of_subject = _visits(events, is_token, subject, config)  # (E,) rising with subject and time; (X,)
    _, names = slot_names(events.codes, vocabulary.value_edges, vocabulary.groups)
    index_of_slot = np.array([vocabulary.known.get(name, UNK) for name in names], dtype=np.int64)
    pair, _ = distinct(visit * len(vocabulary) + index_of_slot[slot[is_token]], len(start) * len(vocabulary))
    visit, token = np.divmod(pair, len(vocabulary))
    n_tokens = np.bincount(visit, minlength=len(start))  # (X,)
    number, age_years, gap_days = _describe_visits(start, of_subject, birth)
    return VisitTokens(
        subject_ids=events.subjects[is_there],
        n_tokens=np.bincount(of_subject, n_tokens, minlength=len(birth)).astype(np.int64),
        birth_us=birth,
        last_visit_us=_last(start, of_subject, len(birth)),
        token=token.astype(np.int32),
        age_years=np.repeat(age_years, n_tokens),
        visit=np.repeat(number, n_tokens),
        gap_days=np.repeat(gap_days, n_tokens),
    )


def _visits(events: Histories, is_token: Bools, subject: Ints, config: VisitConfig) -> tuple[Ints, Ints, Ints]:
    """The visits of the E events that become tokens, static facts of a subject being one.

    Returns
    -------
    (E,) number of each event's visit among all X visits; (X,) their starts; (X,) their subjects
    """
    if config.unit == "encounter":
        return _encounters(events, is_token, subject)
    time_us = events.time_us[is_token]
    period = time_us // MICROSECONDS[config.unit]  # that of `NO_TIME` is no other's
    is_first = np.ones(len(period), dtype=bool)
    is_first[1:] = (subject[1:] != subject[:-1]) | (period[1:] != period[:-1])
    first = np.flatnonzero(is_first)
    visit = np.repeat(np.arange(len(first)), np.diff(first, append=len(period)))
    return visit, time_us[first], subject[first]


def _encounters(events: Histories, is_token: Bools, subject: Ints) -> tuple[Ints, Ints, Ints]:
    """As `_visits`: encounters can overlap, and those that begin together are ordered by their name."""
    assert events.visit_id is not None
    time_us, visit_id = events.time_us[is_token], events.visit_id.filter(is_token)
    time = pl.Series(time_us).cast(pl.Datetime("us"))
    frame = pl.DataFrame({"subject": subject, "time": time, "visit_id": visit_id}).with_columns(
        time=pl.when(pl.Series(time_us != NO_TIME)).then("time")
    )
    frame = frame.with_columns(key=visit_key("encounter"))
    visits = (
        frame.group_by("subject", "key")
        .agg(start=pl.col("time").min())
        .sort("subject", "start", "key", nulls_last=False)
        .with_row_index("visit")
    )
    numbered = frame.join(visits, on=["subject", "key"], how="left", nulls_equal=True, maintain_order="left")
    return numbered["visit"].cast(pl.Int64).to_numpy(), times_us(visits["start"]), visits["subject"].to_numpy()


def _describe_visits(start_us: Ints, subject: Ints, birth_us: Ints) -> tuple[Int32s, Float32s, Float32s]:
    """(X,) each: number within the subject, age at the visit, and gap since the one before."""
    is_static = start_us == NO_TIME
    n_timed = np.cumsum(~is_static)
    first_of_subject = run_starts(subject)
    before = (n_timed - ~is_static)[first_of_subject]
    visit = n_timed - np.repeat(before, np.diff(first_of_subject, append=len(subject)))
    gap_us = np.zeros(len(start_us), dtype=np.int64)
    has_previous = (subject[1:] == subject[:-1]) & ~is_static[:-1]
    gap_us[1:] = np.where(has_previous, start_us[1:] - start_us[:-1], 0)
    age_years = np.where(is_static, 0, years_since(birth_us[subject], start_us))
    return (
        visit.astype(np.int32),
        age_years.astype(np.float32),
        (gap_us / MICROSECONDS_PER_DAY).astype(np.float32),
    )


def years_since(birth_us: Ints, time_us: Ints) -> Floats:
    """Ages in years; NaN where the birth is not known (`NO_TIME`)."""
    is_known = birth_us != NO_TIME
    age_us = np.where(is_known, time_us - np.where(is_known, birth_us, 0), np.nan)
    years: Floats = age_us / MICROSECONDS_PER_DAY / DAYS_PER_YEAR
    return years


def _last(start_us: Ints, subject: Ints, n_subjects: int) -> Ints:
    last = np.full(n_subjects, NO_TIME)
    last[subject] = start_us  # visits are in time order, so the last one stays
    return last
