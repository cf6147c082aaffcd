"""The settings of the source `events-csv`: which files, and what a row of them says."""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ehrtrack.data.sources.settings import Reading
from ehrtrack.section import Section

FILE_NAME = "file_name"
"""A column that every table has: the name of its row's file, without ending."""


class Offset(Section):
    """A time that is stated as so many minutes, hours or days from an anchor.

    Attributes
    ----------
    offset : the column of the offset, or several that are added up; ``-`` before a name subtracts it.
    unit : of the offsets; ``hh:mm`` reads ``36:15`` as 36 hours and a quarter.
    anchor : what the offset counts from: a column with a time, or a date for all rows.
    values : spell offsets; others stay as they are.

    Examples
    --------
    >>> Offset(offset="labresultoffset", unit="minutes", anchor="2014-01-01").offset
    ('labresultoffset',)
    """

    offset: tuple[str, ...] = Field(min_length=1)
    unit: Literal["seconds", "minutes", "hours", "days", "years", "hh:mm"]
    anchor: str
    values: dict[str, str] = Field(default_factory=dict)

    @field_validator("offset", mode="before")
    @classmethod
    def _one_or_several(cls, offset: object) -> object:
        return (offset,) if isinstance(offset, str) else offset


Stamp = str | Offset
"""A column that holds a time, or an offset from one."""


class Codes(Section):
    """Events that a row makes: of a fixed `code`, of the values (or flags) in `columns`, or the cells of `measured`."""

    code: str | None = None
    columns: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    prefix: str = ""
    values: dict[str, str] = Field(default_factory=dict)
    flag: str | None = None
    where: dict[str, str] = Field(default_factory=dict)
    time: Stamp | None = None
    value: str | None = None
    unit: str | None = None
    description: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Codes:
        if (self.code is not None) + bool(self.columns) + bool(self.measured) != 1:
            raise ValueError(
                "give one of code (a fixed code), columns (whose values are codes) and measured (whose names are codes "
                "and whose cells are results)"
            )
        if self.measured and (self.value or self.unit or self.flag):
            raise ValueError("measured columns hold their results themselves: leave out value, unit and flag")
        return self


class Static(Section):
    """Facts without a time, such as sex: prefix + the value of each column."""

    columns: tuple[str, ...] = Field(min_length=1)
    prefix: str
    values: dict[str, str] = Field(default_factory=dict)
    where: dict[str, str] = Field(default_factory=dict)


class Join(Section):
    """Columns of another table, found by a key that it has once.

    Attributes
    ----------
    on : the key's column in both tables, or its names in this and in the other one.
    """

    files: str
    on: str | tuple[str, str]

    @property
    def keys(self) -> tuple[str, str]:
        """The key's name in this table, and in the other one."""
        return (self.on, self.on) if isinstance(self.on, str) else self.on


class Table(Section):
    """One kind of table: which files, and what a row of them says."""

    files: str = "*"
    name: str | None = None
    join: tuple[Join, ...] = ()
    subject: str
    visit: str | None = None
    time: Stamp | None = None
    time_format: str | None = None
    date: dt.date | None = None
    codes: tuple[Codes, ...] = ()
    static: tuple[Static, ...] = ()
    birth: Stamp | None = None
    death: Stamp | None = None
    roster: bool = False

    @model_validator(mode="after")
    def _has_events_with_times(self) -> Table:
        if not (self.codes or self.static or self.birth or self.death):
            raise ValueError(f"table of files {self.files!r} names no codes, static, birth or death")
        if any(codes.time is None for codes in self.codes) and (self.time is None) == (self.date is None):
            raise ValueError(f"table of files {self.files!r} needs time (a column) or date (fixed), and not both")
        return self


class Config(Reading):
    """The tables of the source, and how their cells are read."""

    table: tuple[Table, ...] = Field(min_length=1)
