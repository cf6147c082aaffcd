"""What a source says of its tables: which rows there are and which events each row makes.

A source is a module of `ehrtrack.data.sources` with a `Config` and a function
``tables(connection, path, config) -> list[SourceTable]``. It only describes; `ehrtrack.data.importing` reads,
checks, counts and writes, the same way for every source.
"""

from __future__ import annotations

from dataclasses import dataclass

from ehrtrack.data.sources._relation import Relation, Time, quote_text
from ehrtrack.errors import DataError

NULL = "NULL"


@dataclass(frozen=True)
class Event:
    """One event that each row of a table makes; all but `time` are SQL expressions over the row.

    A row with several events skips those whose code is NULL, unless that leaves it none. An event without
    `time` is a static fact, such as sex. `may_lack_time` lets the rows without a time be static facts.
    """

    code: str
    time: Time | None
    numeric_value: str = NULL
    text_value: str = NULL
    description: str = NULL
    may_lack_time: bool = False


@dataclass(frozen=True)
class SourceTable:
    """A table of the source. `relation` is None when the source does not have it; the report then says so.

    Attributes
    ----------
    subject : name of the column with the subject's identifier.
    visit : name of the column with the visit's identifier, or None.
    is_roster : whether the table lists the subjects; rows of other subjects are then dropped everywhere.
    code_descriptions : query of `code` and `description`, for descriptions that are kept apart from the events.
    """

    name: str
    relation: Relation | None
    subject: str = ""
    events: tuple[Event, ...] = ()
    visit: str | None = None
    is_roster: bool = False
    code_descriptions: str | None = None


def require_table(relation: Relation | None, name: str, found: list[str], where: object) -> Relation:
    """The relation, or a DataError that lists the tables that are there."""
    if relation is None:
        raise DataError(f"table {name} not found in {where}; found: {', '.join(found) or 'no table'}")
    return relation


def when_present(value: str, code: str) -> str:
    """SQL of `code` where `value` is not NULL, and NULL where it is."""
    return f"CASE WHEN {value} IS NOT NULL THEN {code} END"


def prefixed(prefix: str, value: str) -> str:
    """SQL of the code ``prefix`` + value; NULL where the value is.

    >>> prefixed("GENDER//", '"sex"')
    '(\\'GENDER//\\' || "sex")'
    """
    return f"({quote_text(prefix)} || {value})"


def birth(time: Time) -> Event:
    """The subject's birth, where it is stated."""
    return Event(code=when_present(time.stated, "'MEDS_BIRTH'"), time=time)


def death(time: Time) -> Event:
    """The subject's death, where it is stated."""
    return Event(code=when_present(time.stated, "'MEDS_DEATH'"), time=time)
