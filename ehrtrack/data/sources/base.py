"""What a source says of its tables: which rows there are and which events each row makes.

A source only describes; `ehrtrack.data.importing` reads, checks, counts and writes, the same way for every source.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ehrtrack.data.sources._reader import Reader
from ehrtrack.data.sources._relation import Relation, Time, quote_text
from ehrtrack.data.sources.settings import Reading
from ehrtrack.errors import DataError

NULL = "NULL"


@dataclass(frozen=True)
class Event:
    """One event that each row of a table makes; all but `time` are SQL expressions over the row.

    A row with several events skips those whose code is NULL, unless that leaves it none. An event without
    `time` is a static fact, such as sex. `may_lack_time` lets the rows without a time be static facts. `result_column`
    is the name of the column that `numeric_value` is read from; its decimal commas are counted. `unit` is that of the
    number; it becomes the last part of the code where the code has several in the table, or of every event with
    `has_unit_always`.

    Examples
    --------
    A laboratory result, of which code, time and number are SQL over the columns of a row:

    >>> Event(code='"item"', time=None, numeric_value='"value"').text_value
    'NULL'
    """

    code: str
    time: Time | None
    numeric_value: str = NULL
    text_value: str = NULL
    description: str = NULL
    may_lack_time: bool = False
    result_column: str | None = None
    unit: str = NULL
    has_unit_always: bool = False


@dataclass(frozen=True)
class Note:
    """A line of the import report about some rows of a table, with their number.

    >>> Note("false", "{n} periods end after today").text(3)
    '3 periods end after today'

    Attributes
    ----------
    rows : SQL of whether a row is meant, or how often.
    words : the line, with ``{n}`` where the number goes; said only where it is above 0.
    """

    rows: str
    words: str

    def text(self, n: int) -> str:
        """The line for a number of rows."""
        return self.words.format(n=f"{n:,}")


@dataclass(frozen=True)
class SourceTable:
    """A table of the source. `relation` is None when the source does not have it; the report then says so.

    Attributes
    ----------
    subject : name of the column with the subject's identifier.
    visit : name of the column with the visit's identifier, or None.
    is_roster : whether the table lists the subjects; rows of other subjects are then dropped everywhere.
    code_metadata : query of `code`, `description` and `parent_codes`, where these are kept apart from the events.
    splits : query of `source_id` and `split`, where the source says which subjects to train on.
    notes : what the report says of rows of the table.
    left_out : why a table that is there is not read, where that is so.

    Examples
    --------
    >>> SourceTable("devices", None, left_out="no codes").events
    ()
    """

    name: str
    relation: Relation | None
    subject: str = ""
    events: tuple[Event, ...] = ()
    visit: str | None = None
    is_roster: bool = False
    code_metadata: str | None = None
    splits: str | None = None
    notes: tuple[Note, ...] = ()
    left_out: str | None = None


class Source(ABC):
    """A format of records, such as OMOP or MIMIC-IV.

    A subclass declares the class of its settings as ``Config``: a `Reading` with a name, and with settings of its own
    if it has any.

    Parameters
    ----------
    config : the settings of the source, of the class ``Config``

    Examples
    --------
    >>> class Nothing(Source):
    ...     Config = Reading
    ...     def tables(self, reader, path):
    ...         return [SourceTable("patients", None)]
    >>> Nothing(Reading()).tables(None, Path("."))[0].relation is None
    True
    """

    Config: ClassVar[type[Reading]]

    def __init__(self, config: Reading) -> None:
        self.config = config

    @abstractmethod
    def tables(self, reader: Reader, path: Path) -> list[SourceTable]:
        """The tables of the source at `path`; those that it does not have are among them, without a relation.

        Raises
        ------
        DataError
            If a table or a column is missing without which the records mean nothing.
        """


def require_table(relation: Relation | None, name: str, found: list[str], where: object) -> Relation:
    """The relation, or a DataError that lists the tables that are there.

    Examples
    --------
    >>> require_table(None, "patients", ["admissions"], "folder mimic")
    Traceback (most recent call last):
        ...
    ehrtrack.errors.DataError: table patients not found in folder mimic; found: admissions
    """
    if relation is None:
        raise DataError(f"table {name} not found in {where}; found: {', '.join(found) or 'no table'}")
    return relation


def when_present(value: str, code: str) -> str:
    """SQL of `code` where `value` is not NULL, and NULL where it is.

    Examples
    --------
    >>> print(when_present('"dod"', "'MEDS_DEATH'"))
    CASE WHEN "dod" IS NOT NULL THEN 'MEDS_DEATH' END
    """
    return f"CASE WHEN {value} IS NOT NULL THEN {code} END"


def prefixed(prefix: str, value: str) -> str:
    """SQL of the code ``prefix`` + value; NULL where the value is.

    >>> prefixed("GENDER//", '"sex"')
    '(\\'GENDER//\\' || "sex")'
    """
    return f"({quote_text(prefix)} || {value})"


def birth(time: Time) -> Event:
    """The subject's birth, where it is stated.

    Examples
    --------
    >>> print(birth(Time("CAST(born AS TIMESTAMP)", "born", column="born")).code)
    CASE WHEN born IS NOT NULL THEN 'MEDS_BIRTH' END
    """
    return Event(code=when_present(time.stated, "'MEDS_BIRTH'"), time=time)


def death(time: Time) -> Event:
    """The subject's death, where it is stated.

    Examples
    --------
    >>> print(death(Time("CAST(died AS TIMESTAMP)", "died", column="died")).code)
    CASE WHEN died IS NOT NULL THEN 'MEDS_DEATH' END
    """
    return Event(code=when_present(time.stated, "'MEDS_DEATH'"), time=time)
