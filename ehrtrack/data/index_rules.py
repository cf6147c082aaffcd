"""Index rules: the date from which a subject is followed, and up to which its history is known."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from ehrtrack.data.events import BIRTH, starts_with_any
from ehrtrack.data.settings import AgeIndex, DateIndex, FirstCodeIndex, Index, VisitIndex
from ehrtrack.data.visits import visit_key
from ehrtrack.data.vocabulary import NEVER_TOKENS
from ehrtrack.errors import DataError
from ehrtrack.section import Section


def index_dates(events: pl.LazyFrame, spans: pl.DataFrame, index: Index) -> pl.DataFrame:
    """The index date of each subject that has one.

    Parameters
    ----------
    spans : the subjects' `life_spans`

    Returns
    -------
    subject_id, index_date datetime[us]

    Raises
    ------
    DataError
        If the rule is an age, and a subject has no birth.

    Examples
    --------
    The first diagnosis of diabetes, and the 65th birthday:

    >>> from datetime import datetime
    >>> events = pl.LazyFrame(
    ...     {
    ...         "subject_id": [1, 1, 1],
    ...         "time": [datetime(1950, 6, 1), datetime(2015, 3, 2), datetime(2017, 1, 1)],
    ...         "code": ["MEDS_BIRTH", "ICD10//E11.9", "ICD10//E11.2"],
    ...     }
    ... )
    >>> spans = pl.DataFrame({"subject_id": [1], "birth": [datetime(1950, 6, 1)]})
    >>> index_dates(events, spans, FirstCodeIndex(rule="first_code", codes=["ICD10//E11"])).rows()
    [(1, datetime.datetime(2015, 3, 2, 0, 0))]
    >>> index_dates(events, spans, AgeIndex(rule="age", years=65)).rows()
    [(1, datetime.datetime(2015, 6, 1, 0, 0))]
    """
    dates: pl.DataFrame = _RULES[type(index)](events, spans, index)
    return dates.select("subject_id", pl.col("index_date").cast(pl.Datetime("us")))


def birthday(years: int) -> pl.Expr:
    """00:00 of the day on which the subject turns `years`, from a column `birth`.

    Examples
    --------
    >>> from datetime import datetime
    >>> born = pl.DataFrame({"birth": [datetime(1960, 2, 29, 8)]})
    >>> born.select(turns_18=birthday(18), turns_20=birthday(20)).rows()
    [(datetime.datetime(1978, 2, 28, 0, 0), datetime.datetime(1980, 2, 29, 0, 0))]
    """
    return pl.col("birth").dt.truncate("1d").dt.offset_by(f"{years}y")


def check_births(subjects: pl.DataFrame, needed_by: str) -> None:
    """Raises DataError if a subject has no birth, from a column `birth`.

    Examples
    --------
    >>> from datetime import datetime
    >>> check_births(pl.DataFrame({"subject_id": [1], "birth": [datetime(1950, 6, 1)]}), "cohort.min_age_years")
    """
    subjects = subjects.unique("subject_id")
    missing = subjects.filter(pl.col("birth").is_null()).sort("subject_id")
    if not missing.is_empty():
        raise DataError(
            f"{missing.height} of {subjects.height} subjects have no {BIRTH} event (first: subject "
            f"{missing['subject_id'][0]}), and {needed_by} needs their ages; "
            f'add {BIRTH} events to the dataset, leave these subjects out (data.births = "left_out"), or leave '
            f"{needed_by} out"
        )


def _first_code(events: pl.LazyFrame, _spans: pl.DataFrame, index: FirstCodeIndex) -> pl.DataFrame:
    matching = events.filter(pl.col("time").is_not_null() & starts_with_any(index.codes))
    return matching.group_by("subject_id").agg(index_date=pl.col("time").min()).collect(engine="streaming")


def _age(_events: pl.LazyFrame, spans: pl.DataFrame, index: AgeIndex) -> pl.DataFrame:
    check_births(spans, "cohort.index.rule = 'age'")
    return spans.with_columns(index_date=birthday(index.years))


def _date(_events: pl.LazyFrame, spans: pl.DataFrame, index: DateIndex) -> pl.DataFrame:
    return spans.with_columns(index_date=pl.lit(index.date))


def _visit(events: pl.LazyFrame, _spans: pl.DataFrame, index: VisitIndex) -> pl.DataFrame:
    visits = (
        events.filter(pl.col("time").is_not_null() & ~starts_with_any(NEVER_TOKENS))
        .group_by("subject_id", key=visit_key(index.unit))
        .agg(start=pl.col("time").min(), index_date=pl.col("time").max())
        .collect(engine="streaming")
    )
    number = pl.col("key").cum_count().over("subject_id")
    return visits.sort("subject_id", "start", "key").filter(number == index.number)


_RULES: dict[type[Section], Callable[..., pl.DataFrame]] = {
    FirstCodeIndex: _first_code,
    AgeIndex: _age,
    DateIndex: _date,
    VisitIndex: _visit,
}
