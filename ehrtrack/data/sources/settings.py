"""The settings of all sources: how cells are read, the same in every column of each, and what some have beside that."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from datetime import date, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ehrtrack.section import Choice, Section

MISSING = ("NA", "N/A", "NULL", "null", r"\N", "nan", "NaN", "None", ".")
"""Words that stand for a value that is not there, beside the empty cell."""


class Reading(Section):
    r"""Settings that every source has; in the TOML of a source they stand at its top.

    Attributes
    ----------
    missing : words that mean "no value", in any column, identifiers and codes included. A code that is spelt like one,
        such as ``NA`` for sodium, needs a list without it.
    time_format : strptime format of the stamps that are text, or several of which the first that fits is taken, such as
        one of dates and one of dates with a clock; without it ISO 8601, with or without a zone.
    time_zone : the zone of stamps that name none, such as ``Europe/Berlin``. Every time becomes UTC.
    years : the first and the last year that a time may be in; what lies outside is unreadable. By default 1800 to next
        year. Records whose dates were shifted into the future, such as MIMIC's, need a wider range.
    decimal : the decimal mark of numbers that are text. With ``,`` a point parts thousands: ``1.234,5`` is 1234.5.
    max_result_levels : a code of which the results are at most so many different words, such as positive and negative,
        has them in its code: ``LAB//x//positive``. With 0 no code has; the words stay in `text_value` alone, which
        models do not read.
    results_in_codes : regular expressions of the codes that may have; without one, all.
    units : CSV file with the columns code (a regular expression, matched at the code's start), from, to, factor and
        offset: a result in the unit `from` becomes ``factor * result + offset`` in the unit `to`. Its path is relative
        to the TOML. Units that it does not name stay a part of the code where a code has several.
    max_unreadable_births, max_unreadable_deaths : the share of stated births, and of deaths, that may be unreadable;
        above it the import stops. Deaths that come before the birth count as unreadable.
    allow_dropped_tables : tables, by their names in the report, of which nothing need be left.

    Examples
    --------
    >>> Reading(time_zone="Europe/Berlin", decimal=",").missing[:2]
    ('NA', 'N/A')
    """

    missing: tuple[str, ...] = MISSING
    time_format: str | tuple[str, ...] | None = None
    time_zone: str = "UTC"
    years: tuple[int, int] = Field(default_factory=lambda: (1800, date.today().year + 1))
    decimal: Literal[".", ","] = "."
    max_result_levels: int = Field(default=20, ge=0)
    results_in_codes: tuple[str, ...] = ()
    units: Path | None = None
    max_unreadable_births: float = Field(default=0.05, ge=0, le=1)
    max_unreadable_deaths: float = Field(default=0.0, ge=0, le=1)
    allow_dropped_tables: tuple[str, ...] = ()

    def missing_numbers(self) -> list[str]:
        """The words for a missing value that are numbers, such as -1: they stand for it in columns of numbers too."""
        return [word for word in self.missing if re.fullmatch(r"[+-]?\d+(\.\d+)?", word)]

    def first_and_last_time(self) -> tuple[datetime, datetime]:
        """The earliest and the latest time that is plausible."""
        first, last = self.years
        return datetime(first, 1, 1), datetime(last, 12, 31, 23, 59, 59, 999_999)

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        if zone not in zoneinfo.available_timezones():
            raise ValueError(f"{zone!r} is no zone of the IANA database; needed: a name such as Europe/Berlin, or UTC")
        return zone

    @model_validator(mode="after")
    def _years_in_order(self) -> Reading:
        first, last = self.years
        if not 1 <= first <= last <= 9998:
            raise ValueError(f"years = {list(self.years)}; needed: the first and the last year, within 1 to 9998")
        return self


class MedsConfig(Reading, Choice):
    """Settings of a MEDS dataset: those of every source, and the codes of birth and death.

    Attributes
    ----------
    birth_codes, death_codes : codes that stand for birth and for death; MEDS's own by default.

    Examples
    --------
    A dataset with death codes of its own, ``death_codes = ["DEATH//HOSPITAL", "MEDS_DEATH"]``:

    >>> MedsConfig(death_codes=["DEATH//HOSPITAL", "MEDS_DEATH"]).birth_codes
    ('MEDS_BIRTH',)
    """

    name: Literal["meds"] = "meds"
    birth_codes: tuple[str, ...] = ("MEDS_BIRTH",)
    death_codes: tuple[str, ...] = ("MEDS_DEATH",)


class MimicIvConfig(Reading, Choice):
    """Settings of MIMIC-IV: those of every source, with years up to 2250, as its dates are shifted to 2100 to 2200.

    Examples
    --------
    >>> MimicIvConfig().years
    (1800, 2250)
    """

    name: Literal["mimic-iv"] = "mimic-iv"
    years: tuple[int, int] = Field(default=(1800, 2250))


class OmopConfig(Reading, Choice):
    """Settings of OMOP: those of every source, and the time at which diagnoses are known.

    Attributes
    ----------
    conditions_at : ``visit_end`` puts conditions that are dated within an inpatient visit at its end, ``start`` leaves
        them at their own start.

    Examples
    --------
    >>> OmopConfig(conditions_at="start", time_zone="Europe/Berlin").conditions_at
    'start'
    """

    name: Literal["omop"] = "omop"
    conditions_at: Literal["visit_end", "start"] = "visit_end"


class SyntheaConfig(Reading, Choice):
    """Settings of Synthea: those of every source. Devices may be dropped, as the exporter may write them without codes.

    Examples
    --------
    >>> SyntheaConfig().allow_dropped_tables
    ('devices',)
    """

    name: Literal["synthea"] = "synthea"
    allow_dropped_tables: tuple[str, ...] = ("devices",)


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
    """The events of a row: one of a fixed `code`, or one for each of the `columns`, or of the `measured` columns.

    Attributes
    ----------
    code : the code itself
    columns : columns whose values are codes
    measured : columns whose names are codes and whose cells are results
    prefix : what the codes of `columns` and `measured` begin with
    values : spelling of cells: a cell that is a key is read as its value; other cells stay as they are
    flag : the cell, such as ``1``, with which a column is an event named after the column
    where : only rows with these cells have the events
    time, value, unit, description : columns of the time (or an offset), of the number or text, of its unit, and of the
        description of the code

    Examples
    --------
    A fixed code with a number, one code for each diagnosis in a column, and one for each column of results:

    >>> Codes(code="WEIGHT", value="weight_kg", unit="kg").value
    'weight_kg'
    >>> Codes(columns=["icd_code"], prefix="ICD10//").columns
    ('icd_code',)
    >>> Codes(measured=["sodium", "potassium"], prefix="LAB//").measured
    ('sodium', 'potassium')
    """

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
    """Static facts, such as the sex: events without a time, whose code is the prefix and the value of a column.

    Attributes
    ----------
    columns : the columns whose cells are facts
    prefix : what the codes begin with
    values : spelling of cells: a cell that is a key is read as its value
    where : only rows with these cells have the facts

    Examples
    --------
    ``values`` spells the cells: a row with ``F`` has the code ``GENDER//female``.

    >>> sex = Static(columns=["sex"], prefix="GENDER//", values={"F": "female", "M": "male"})
    >>> sex.prefix + sex.values["F"]
    'GENDER//female'
    """

    columns: tuple[str, ...] = Field(min_length=1)
    prefix: str
    values: dict[str, str] = Field(default_factory=dict)
    where: dict[str, str] = Field(default_factory=dict)


class Join(Section):
    """Columns of another table, joined by a key that is unique in it.

    Attributes
    ----------
    files : the files of the other table
    on : the key's column in both tables, or its names in this and in the other one.

    Examples
    --------
    >>> Join(files="admissions*.csv", on="stay_id").keys
    ('stay_id', 'stay_id')
    >>> Join(files="labels.csv", on=["item", "item_id"]).keys
    ('item', 'item_id')
    """

    files: str
    on: str | tuple[str, str]

    @property
    def keys(self) -> tuple[str, str]:
        """The key's name in this table, and in the other one."""
        return (self.on, self.on) if isinstance(self.on, str) else self.on


class Table(Section):
    """A kind of table: its files, and the events, facts, birth and death of a row.

    Attributes
    ----------
    files : pattern of the files' names
    name : what the report calls the table; the pattern of its files by default
    join : other tables whose columns are joined to this one
    subject, visit : columns of the subject's and of the visit's identifier
    time : column of the time of a row's events, or an offset
    time_format : strptime format of the table's stamps, in the place of that of the source
    date : the date of all events, where there is no column of times
    codes : the events of a row
    static : the static facts of a row
    birth, death : columns of the time of birth and of death, or offsets
    roster : whether the table lists the subjects; rows of other subjects are then dropped everywhere

    Examples
    --------
    A table of diagnoses, a row for each:

    >>> codes = {"columns": ["icd"], "prefix": "ICD10//"}
    >>> table = Table(files="diagnoses*.csv", subject="patient", time="day", codes=[codes])
    >>> table.codes[0].columns
    ('icd',)
    """

    files: str = "*"
    name: str | None = None
    join: tuple[Join, ...] = ()
    subject: str
    visit: str | None = None
    time: Stamp | None = None
    time_format: str | tuple[str, ...] | None = None
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


class EventsCsvConfig(Reading, Choice):
    """Settings of tables of events in CSV files: those of every source, and the kinds of tables.

    Attributes
    ----------
    table : the kinds of tables

    Examples
    --------
    >>> source = EventsCsvConfig(table=[{"files": "patients.csv", "subject": "id", "birth": "born", "roster": True}])
    >>> source.table[0].birth
    'born'
    """

    name: Literal["events-csv"] = "events-csv"
    table: tuple[Table, ...] = Field(min_length=1)
