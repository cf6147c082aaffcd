"""Outcomes and follow-up: what came first after the index date, the outcome or an end of follow-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time

import numpy as np
import polars as pl

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.data.events import starts_with_any
from ehrtrack.data.settings import OutcomeConfig
from ehrtrack.data.visits import days_after, days_between


@dataclass(frozen=True)
class Outcomes:
    """Time-to-event labels of the rows of a store, row for row.

    Attributes
    ----------
    follow_up_days : (N,) float64, days from the index date to the outcome or to censoring
    is_event : (N,) bool, whether the follow-up ended with the outcome
    cause : (N,) int64, which of several causes ended it, from 1, and 0 for the censored; None where there is one
    subject : (N,) int64, whose row each is, where subjects have several; None where each is of another

    Examples
    --------
    >>> import numpy as np
    >>> outcomes = Outcomes(np.array([30.0, 90.0]), np.array([True, False]))
    >>> outcomes[np.array([0])].is_event.tolist()
    [True]
    """

    follow_up_days: Floats
    is_event: Bools
    cause: Ints | None = None
    subject: Ints | None = None

    def __getitem__(self, rows: Ints) -> Outcomes:
        cause, subject = (None if values is None else values[rows] for values in (self.cause, self.subject))
        return Outcomes(self.follow_up_days[rows], self.is_event[rows], cause, subject)

    @property
    def n_subjects(self) -> int:
        """How many different subjects the rows are of."""
        return len(self.is_event) if self.subject is None else len(np.unique(self.subject))

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """The labels of several batches, one after the other; cause and subject where all of them have it."""
        of_all = {name: [getattr(part, name) for part in parts] for name in ("cause", "subject")}
        return cls(
            np.concatenate([part.follow_up_days for part in parts]),
            np.concatenate([part.is_event for part in parts]),
            **{
                name: None if any(part is None for part in found) else np.concatenate(found)
                for name, found in of_all.items()
            },
        )


def add_outcome(subjects: pl.DataFrame, events: pl.LazyFrame, outcome: OutcomeConfig) -> pl.DataFrame:
    """The subjects with `outcome_time`, the first strictly after `index_date`, and `has_prior_outcome`.

    Examples
    --------
    The first myocardial infarction after the index date; the one before it is a prior outcome:

    >>> subjects = pl.DataFrame({"subject_id": [1, 2], "index_date": [datetime(2020, 1, 1)] * 2})
    >>> times = [datetime(2019, 5, 1), datetime(2020, 3, 1), datetime(2020, 4, 1)]
    >>> codes = ["ICD10//I21.0", "ICD10//I21.9", "ICD10//J18"]
    >>> events = pl.LazyFrame({"subject_id": [1, 1, 2], "time": times, "code": codes})
    >>> found = add_outcome(subjects, events, OutcomeConfig(codes=["ICD10//I21"]))
    >>> found.select("subject_id", pl.col("outcome_time").dt.date().cast(str), "has_prior_outcome").rows()
    [(1, '2020-03-01', True), (2, None, False)]
    """
    if outcome.death:
        return subjects.with_columns(outcome_time=pl.col("death"), has_prior_outcome=pl.lit(False))
    time, index = pl.col("time"), pl.col("index_date")
    outcomes = (
        events.filter(time.is_not_null() & starts_with_any(outcome.codes))
        .join(subjects.lazy().select("subject_id", "index_date"), on="subject_id")
        .group_by("subject_id", "index_date")
        .agg(outcome_time=time.filter(time > index).min(), has_prior_outcome=(time <= index).any())
        .collect(engine="streaming")
    )
    return subjects.join(outcomes, on=["subject_id", "index_date"], how="left", maintain_order="left").with_columns(
        pl.col("has_prior_outcome").fill_null(False)
    )


def add_follow_up(subjects: pl.DataFrame, *, horizon_days: float, end_of_study: date | None) -> pl.DataFrame:
    """The subjects with `follow_up_days` and `is_event`.

    Follow-up runs from the index date to the earliest of the outcome, death, the last event of the record, the end of
    the observation period, the start of `end_of_study`, and the horizon. It is an event when the outcome came at or
    before the rest.

    Examples
    --------
    One subject has the outcome after 10 days. The other's record ends after 20, before the horizon of 30:

    >>> subjects = pl.DataFrame(
    ...     {
    ...         "index_date": [datetime(2020, 1, 1)] * 2,
    ...         "outcome_time": [datetime(2020, 1, 11), None],
    ...         "last_time": [datetime(2020, 2, 1), datetime(2020, 1, 21)],
    ...     }
    ... ).with_columns(death=pl.lit(None, pl.Datetime("us")), observed_until=pl.lit(None, pl.Datetime("us")))
    >>> followed = add_follow_up(subjects, horizon_days=30, end_of_study=None)
    >>> followed.select("follow_up_days", "is_event").rows()
    [(10.0, True), (20.0, False)]
    """
    horizon = days_after("index_date", horizon_days)
    censored = pl.min_horizontal("death", "last_time", "observed_until", midnight(end_of_study), horizon)
    is_event = (pl.col("outcome_time") <= censored).fill_null(False)
    end = pl.when(is_event).then("outcome_time").otherwise(censored)
    return subjects.with_columns(is_event=is_event, end=end).with_columns(
        follow_up_days=days_between("index_date", "end")
    )


def clip_follow_up(subjects: pl.DataFrame, most_days: float | pl.Expr) -> pl.DataFrame:
    """The subjects with those followed for longer than so many days, such as the horizon, censored there.

    Examples
    --------
    >>> followed = pl.DataFrame({"follow_up_days": [10.0, 40.0], "is_event": [True, True]})
    >>> clip_follow_up(followed, 30).rows()
    [(10.0, True), (30.0, False)]
    """
    is_longer = pl.col("follow_up_days") > most_days
    if "cause" in subjects.columns:
        subjects = subjects.with_columns(cause=pl.when(is_longer).then(0).otherwise("cause"))
    return subjects.with_columns(
        follow_up_days=pl.when(is_longer).then(most_days).otherwise("follow_up_days"),
        is_event=pl.col("is_event") & ~is_longer,
    )


def midnight(day: date | None) -> pl.Expr:
    """The start of a day as a datetime; null for no day.

    Examples
    --------
    >>> pl.select(midnight(date(2020, 1, 1))).item()
    datetime.datetime(2020, 1, 1, 0, 0)
    """
    moment = None if day is None else datetime.combine(day, time())
    return pl.lit(moment, dtype=pl.Datetime("us"))
