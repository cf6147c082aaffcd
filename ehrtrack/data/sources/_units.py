"""Units of results: converted by a table that the user gives, and else a part of the code; so scales do not mix."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ehrtrack.data.settings import check_patterns
from ehrtrack.data.sources._reader import Reader
from ehrtrack.data.sources._relation import Relation, quote_name, quote_text
from ehrtrack.data.sources.base import NULL, Event, Note, SourceTable
from ehrtrack.errors import ConfigError, EhrtrackError

COLUMNS = ("code", "from", "to", "factor")


@dataclass(frozen=True)
class Conversion:
    """A line of the table of units: ``value in to = factor * value in from + offset``.

    Attributes
    ----------
    pattern : regular expression that is matched at the start of the code, without its unit.
    from_unit : the unit as the source spells it; empty for results that are stated without one.
    """

    pattern: str
    from_unit: str
    to_unit: str
    factor: float
    offset: float

    @property
    def words(self) -> str:
        """The line of the report, with ``{n}`` where the number of results goes."""
        text = f"results of {self.pattern} are converted from {self.from_unit or 'no unit'} to {self.to_unit}"
        return "{n} " + _literal(text)


def read_conversions(path: Path) -> tuple[Conversion, ...]:
    """The conversions in a CSV file with the columns code, from, to, factor and, if wanted, offset.

    Raises
    ------
    ConfigError
        If the file or one of its lines cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ConfigError(
                    f"{path} has no column {', '.join(missing)}; needed: {', '.join(COLUMNS)} and, if wanted, offset"
                )
            return tuple(_conversion(row, f"{path}, line {reader.line_num}") for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"the table of units {path} cannot be read: {error}") from error


def _conversion(row: Mapping[str, str | None], where: str) -> Conversion:
    cells = {name: (value or "").strip() for name, value in row.items() if isinstance(value, str | None)}
    if not cells["code"] or not cells["to"]:
        raise ConfigError(f"{where}: code is {cells['code']!r} and to is {cells['to']!r}; both are needed")
    try:
        factor, offset = float(cells["factor"]), float(cells.get("offset") or 0)
        check_patterns((cells["code"],))
    except (ValueError, EhrtrackError) as error:
        raise ConfigError(f"{where}: {error}; factor and offset are numbers such as 0.0555") from error
    if not 0 < abs(factor) < float("inf") or not abs(offset) < float("inf"):
        raise ConfigError(f"{where}: factor is {factor:g} and offset {offset:g}; a factor is finite, and not 0")
    return Conversion(cells["code"], cells["from"], cells["to"], factor, offset)


def with_units(reader: Reader, table: SourceTable, conversions: Sequence[Conversion]) -> SourceTable:
    """The table with its results converted, and with units in the codes of those that need them.

    This is where units of all sources are read. A source says which unit a result has, or nothing where the unit is the
    last part of the code already; that is looked for if there are conversions.
    """
    chosen = [
        place
        for place, event in enumerate(table.events)
        if event.numeric_value != NULL and (event.unit != NULL or conversions)
    ]
    if not chosen:
        return table
    assert table.relation is not None
    events = list(table.events)
    for place in chosen:
        events[place] = _with_unit_apart(events[place], conversions)
    relation, notes = table.relation, table.notes
    if conversions:
        relation = _with_conversions(reader, relation, {place: events[place] for place in chosen}, conversions)
        notes += tuple(_notes([(_row(place), events[place].numeric_value) for place in chosen], conversions))
        for place in chosen:
            events[place] = _converted(events[place], _row(place), conversions)
    for place in chosen:
        events[place] = _with_unit_in_code(reader, relation, events[place])
    return replace(table, relation=relation, events=tuple(events), notes=notes)


def _with_unit_apart(event: Event, conversions: Sequence[Conversion]) -> Event:
    """The event with its unit apart from the code, where the source has it there."""
    if event.unit != NULL:
        return event
    known = sorted({unit for one in conversions for unit in (one.from_unit, one.to_unit) if unit})
    ending = quote_text(f"//({'|'.join(map(re.escape, known))})$")
    return replace(
        event,
        code=f"regexp_replace({event.code}, {ending}, '')",
        unit=f"nullif(regexp_extract({event.code}, {ending}, 1), '')",
        has_unit_always=True,
    )


def _row(place: int) -> str:
    """The column that says which conversion an event's result needs."""
    return quote_name(f"conversion {place}")


def _with_conversions(
    reader: Reader, relation: Relation, events: Mapping[int, Event], conversions: Sequence[Conversion]
) -> Relation:
    """The relation with a column for each event: the number of the first conversion that is for its code and unit."""

    def cases(event: Event) -> Iterator[str]:
        for number, one in enumerate(conversions):
            is_unit = f"{event.unit} = {quote_text(one.from_unit)}" if one.from_unit else f"{event.unit} IS NULL"
            is_code = f"regexp_matches({event.code}, {quote_text(f'^(?:{one.pattern})')})"
            yield f"WHEN {is_unit} AND {is_code} THEN {number}"

    columns = ", ".join(f"CASE {' '.join(cases(event))} END AS {_row(place)}" for place, event in events.items())
    return reader.relation(relation.name, f"(SELECT *, {columns} FROM {relation.sql})")


def _notes(rows: Sequence[tuple[str, str]], conversions: Sequence[Conversion]) -> Iterator[Note]:
    for number, one in enumerate(conversions):
        are_meant = (f"({row} = {number} AND {value} IS NOT NULL)" for row, value in rows)
        yield Note(" + ".join(f"coalesce(CAST({is_meant} AS INTEGER), 0)" for is_meant in are_meant), one.words)


def _converted(event: Event, row: str, conversions: Sequence[Conversion]) -> Event:
    values, units = (
        " ".join(f"WHEN {number} THEN {new}" for number, new in enumerate(news))
        for news in (
            [f"CAST({event.numeric_value} AS DOUBLE) * {one.factor!r} + {one.offset!r}" for one in conversions],
            [quote_text(one.to_unit) for one in conversions],
        )
    )
    unit = f"CASE {row} {units} ELSE {event.unit} END"
    # A code may have its unit at its end and a column of units beside it.
    has_own = f"{row} IS NOT NULL AND ends_with({event.code}, '//' || {event.unit})"
    renamed = f"left({event.code}, length({event.code}) - length({event.unit})) || {unit}"
    return replace(
        event,
        code=event.code if event.has_unit_always else f"CASE WHEN {has_own} THEN {renamed} ELSE {event.code} END",
        numeric_value=f"CASE {row} {values} ELSE {event.numeric_value} END",
        unit=unit,
    )


def _with_unit_in_code(reader: Reader, relation: Relation, event: Event) -> Event:
    """``//unit`` behind the code: always, or for the numbers of a code that has several units in the table.

    The table is read once for the latter: 90 mg/dL and 5 mmol/L must not become one scale.
    """
    suffix = f"coalesce('//' || {event.unit}, '')"
    if not event.has_unit_always:
        has_number = f"{event.numeric_value} IS NOT NULL"
        several = reader.scratch_table(
            f"SELECT {event.code} AS code FROM {relation.sql} WHERE {has_number} "
            f"GROUP BY ALL HAVING count(DISTINCT {event.unit}) > 1",
            of=relation.name,
        )
        suffix = f"CASE WHEN {has_number} AND {event.code} IN (SELECT code FROM {several}) THEN {suffix} ELSE '' END"
    return replace(event, code=f"({event.code} || {suffix})")


def _literal(text: str) -> str:
    """A text that `str.format` leaves as it is."""
    return text.replace("{", "{{").replace("}", "}}")
