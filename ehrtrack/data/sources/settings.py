"""How cells are read, the same in every column of every source: missing values, times, numbers."""

from __future__ import annotations

import re
import zoneinfo
from datetime import date, datetime
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ehrtrack.section import Section

MISSING = ("NA", "N/A", "NULL", "null", r"\N", "nan", "NaN", "None", ".")
"""Words that stand for a value that is not there, beside the empty cell."""


class Reading(Section):
    r"""Settings that every source has; in the TOML of a source they stand at its top.

    Attributes
    ----------
    missing : words that mean "no value", in any column, identifiers and codes included. A code that is spelt like one,
        such as ``NA`` for sodium, needs a list without it.
    time_format : strptime format of the stamps that are text; without it ISO 8601, with or without a zone.
    time_zone : the zone of stamps that name none, such as ``Europe/Berlin``. Every time becomes UTC.
    years : the first and the last year that a time may be in; what lies outside is unreadable. By default 1800 to next
        year. Records whose dates were shifted into the future, such as MIMIC's, need a wider range.
    decimal : the decimal mark of numbers that are text. With ``,`` a point parts thousands: ``1.234,5`` is 1234.5.
    max_result_levels : a code of which the results are at most so many different words, such as positive and negative,
        has them in its code: ``LAB//x//positive``. With 0 no code has; the words stay in `text_value` alone, which
        models do not read.
    results_in_codes : regular expressions of the codes that may have; without one, all.
    max_unreadable_births, max_unreadable_deaths : the share of stated births, and of deaths, that may be unreadable;
        above it the import stops. Deaths that come before the birth count as unreadable.
    allow_dropped_tables : tables, by their names in the report, of which nothing need be left.

    Examples
    --------
    >>> Reading(time_zone="Europe/Berlin", decimal=",").missing[:2]
    ('NA', 'N/A')
    """

    missing: tuple[str, ...] = MISSING
    time_format: str | None = None
    time_zone: str = "UTC"
    years: tuple[int, int] = Field(default_factory=lambda: (1800, date.today().year + 1))
    decimal: Literal[".", ","] = "."
    max_result_levels: int = Field(default=20, ge=0)
    results_in_codes: tuple[str, ...] = ()
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
