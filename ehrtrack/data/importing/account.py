"""What is found out about a table while it is read: its times, births and deaths, results, and notes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from ehrtrack.data.clocks import is_midnight
from ehrtrack.data.importing.report import Results
from ehrtrack.data.importing.rows import EventColumns
from ehrtrack.data.sources._messages import masked
from ehrtrack.data.sources.base import SourceTable
from ehrtrack.data.sources.settings import Reading
from ehrtrack.errors import DataError

_LIVES = {0: "births", 1: "deaths"}
"""The numbers of their codes."""
_MOST_COMMAS = 0.1


@dataclass
class _Times:
    """How many times of a column, or births, or deaths, could be read; and one that could not."""

    n_read: int = 0
    n_unreadable: int = 0
    example: str = ""

    def add(self, n_read: int, unreadable: pl.Series) -> None:
        stated = unreadable.drop_nulls()
        self.n_read += n_read
        self.n_unreadable += len(stated)
        examples = [text for text in (self.example, str(stated.min()) if len(stated) else "") if text]
        self.example = min(examples, default="")


@dataclass
class _Commas:
    """How many results of a column are stated, and how many of these have a decimal comma."""

    n_stated: int = 0
    n_commas: int = 0


@dataclass
class TableAccount:
    """What is counted of a table while its rows are read.

    Attributes
    ----------
    n_results : by kind of result, events that may have one.
    n_notes : by note of the table, rows that it is about.
    n_of_unit : by number of the code and unit, results that are numbers.
    """

    table: SourceTable
    reading: Reading
    n_rows: int = 0
    n_numeric: int = 0
    n_text: int = 0
    n_empty: int = 0
    n_timed: int = 0
    n_without_clock: int = 0
    n_notes: list[int] = field(init=False)
    n_of_unit: dict[tuple[int, str], int] = field(default_factory=dict)
    _commas: dict[str, _Commas] = field(default_factory=dict)
    _columns: dict[str, _Times] = field(default_factory=dict)
    _lives: dict[tuple[str, int], _Times] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.n_notes = [0] * len(self.table.notes)  # a table may have a header and no row

    def count_rows(self, rows: pl.DataFrame) -> None:
        """Count the rows of a batch, and those that the table's notes are about."""
        self.n_rows += rows.height
        found = [int(rows[f"note{place}"].sum()) for place in range(len(self.table.notes))]
        self.n_notes = [before + now for before, now in zip(self.n_notes, found, strict=True)]

    def count_event(self, frame: pl.DataFrame, event: EventColumns) -> None:
        """Count the times and the results of an event's candidates, whose codes are numbers."""
        if frame["is_header"].any():
            frame = frame.filter(~pl.col("is_header"))
        if event.time_column is not None:
            self._count_times(frame, event.time_column)
        if event.has_result:
            numeric, text = (frame[name] if name in frame.columns else None for name in ("numeric_value", "text_value"))
            n_numeric = 0 if numeric is None else frame.height - numeric.null_count()
            n_text = 0 if text is None else frame.height - text.null_count()
            self.n_numeric, self.n_text = self.n_numeric + n_numeric, self.n_text + n_text
            self.n_empty += max(0, frame.height - n_numeric - n_text)
            if event.unit is not None and numeric is not None:
                self._count_units(frame)
            if event.decimal_comma is not None and event.result_column is not None:
                commas = self._commas.setdefault(event.result_column, _Commas())
                commas.n_stated += n_numeric + n_text
                commas.n_commas += int(frame["decimal_comma"].sum())

    def _count_units(self, frame: pl.DataFrame) -> None:
        stated = frame.filter(pl.col("numeric_value").is_not_null()).select("code", "unit").drop_nulls()
        for code, unit, n in stated.group_by("code", "unit").len().iter_rows():
            self.n_of_unit[code, unit] = self.n_of_unit.get((code, unit), 0) + n

    def _count_times(self, frame: pl.DataFrame, column: str) -> None:
        read, unreadable = frame["time"], frame["unreadable"]
        n_read = frame.height - read.null_count()
        self._columns.setdefault(column, _Times()).add(n_read, unreadable)
        for life in _LIVES:
            is_it = frame["code"] == life
            if is_it.any():
                part = frame.filter(is_it)
                n_life = part.height - part["time"].null_count()
                lost = part.filter(pl.col("time").is_null())["unreadable"].fill_null("")  # a time that is not stated
                self._lives.setdefault((column, life), _Times()).add(n_life, lost)
        self.n_timed += n_read
        is_date = is_midnight(pl.col("time"), self.reading.time_zone)
        self.n_without_clock += int(frame.select(is_date.sum()).item())

    def check(self) -> None:
        """Refuse a table of which too much cannot be read.

        Raises
        ------
        DataError
            If more than half of the times of a column, more births or deaths than the settings allow, or more than a
            tenth of the results cannot be read.
        """
        first, last = self.reading.years
        need = (
            f"needed: ISO 8601 such as 2008-06-30 or 2008-06-30T14:05:00Z, within {first} to {last}; or say "
            f"time_format, or years = [{first}, {last}], in the source's TOML (--config)"
        )
        for (column, life), times in sorted(self._lives.items()):
            allowed = getattr(self.reading, f"max_unreadable_{_LIVES[life]}")
            if times.n_unreadable > allowed * (times.n_read + times.n_unreadable):
                raise DataError(
                    f"table {self.table.name}, column {column}: {_of(times)} {_LIVES[life]} are unreadable (for "
                    f"example {masked(times.example)!r}, its digits and letters masked), and "
                    f"max_unreadable_{_LIVES[life]} is {allowed:g}; {need}"
                )
        for column, times in sorted(self._columns.items()):
            if times.n_unreadable > times.n_read:
                raise DataError(
                    f"table {self.table.name}, column {column}: {_of(times)} times are unreadable (for example "
                    f"{masked(times.example)!r}, its digits and letters masked); {need}"
                )
        for column, results in sorted(self._commas.items()):
            if results.n_commas > _MOST_COMMAS * results.n_stated:
                raise DataError(
                    f"table {self.table.name}, column {column}: {results.n_commas:,} of {results.n_stated:,} results "
                    'have a comma, as in 4,5, and are no numbers; say decimal = "," in the source\'s TOML (--config) '
                    "where the comma is the decimal mark"
                )

    def life_columns(self, life: int) -> list[str]:
        """Where the table states births (0) or deaths (1), such as ``patients.dod``."""
        return [f"{self.table.name}.{column}" for column, of in sorted(self._lives) if of == life]

    def results(self) -> Results:
        """How many events have a number, a text, or neither; and how many times have no clock."""
        return Results(
            n_numeric=self.n_numeric,
            n_text=self.n_text,
            n_empty=self.n_empty,
            n_timed=self.n_timed,
            n_without_clock=self.n_without_clock,
        )

    def notes(self, codes: pl.Series) -> tuple[str, ...]:
        """What the report says of the table beside its counts.

        Parameters
        ----------
        codes : the texts of all codes, by their numbers.
        """
        lines = [note.text(n) for note, n in zip(self.table.notes, self.n_notes, strict=True) if n]
        for (column, life), times in sorted(self._lives.items()):
            if times.n_unreadable:
                example = masked(times.example)
                lines.append(f"{_of(times)} {_LIVES[life]} in {column} are unreadable (for example {example!r})")
        n_commas = sum(results.n_commas for results in self._commas.values())
        if n_commas:
            lines.append(f"{n_commas:,} results have a comma and are kept as text, not as numbers")
        return (*lines, *self._mixed_units(codes))

    def _mixed_units(self, codes: pl.Series) -> Iterator[str]:
        """A line on the codes that have several units, which is why these are a part of the codes."""
        units: dict[str, dict[str, int]] = defaultdict(dict)
        for (number, unit), n in self.n_of_unit.items():
            code = str(codes[number]).removesuffix(f"//{unit}")
            units[code][unit] = units[code].get(unit, 0) + n
        mixed = {code: found for code, found in units.items() if len(found) > 1}
        if mixed:
            code, found = max(mixed.items(), key=lambda item: (sum(item[1].values()), item[0]))
            shares = ", ".join(
                f"{n:,} in {unit}" for unit, n in sorted(found.items(), key=lambda item: (-item[1], item[0]))
            )
            n_results = sum(n for found in mixed.values() for n in found.values())
            yield (
                f"{n_results:,} results are of {len(mixed):,} codes with several units, which stay a part of the code, "
                f"such as {code} ({shares}); units = FILE in the source's TOML (--config) converts them"
            )


def _of(times: _Times) -> str:
    return f"{times.n_unreadable:,} of {times.n_read + times.n_unreadable:,}"
