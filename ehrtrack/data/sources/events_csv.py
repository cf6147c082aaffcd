"""Any table or tables of events, long or wide, whose columns a small TOML file names.

`path` is a file or a folder. Each ``[[table]]`` takes the files that match a glob (below `path`), and says
how a row becomes events. A long table has one code column, a wide one several; ``*`` in a column name matches
many::

    [[table]]                          # a wide table: claims with ten diagnoses
    name = "inpatient claims"
    files = "*Inpatient_Claims*"
    subject = "DESYNPUF_ID"
    visit = "CLM_ID"
    time = "CLM_ADMSN_DT"
    time_format = "%Y%m%d"             # strptime; without it ISO 8601

    [[table.codes]]
    code = "ADMISSION//inpatient"      # a fixed code, for every row
    [[table.codes]]
    columns = ["ICD9_DGNS_CD_*"]       # each value makes the code prefix + value
    prefix = "ICD9CM//"
    time = "NCH_BENE_DSCHRG_DT"        # instead of the table's time: diagnoses are known at discharge

    [[table]]                          # a table of subjects, with facts that have no time
    files = "*Beneficiary_Summary*"
    subject = "DESYNPUF_ID"
    roster = true                      # subjects that are in no such table are dropped
    birth = "BENE_BIRTH_DT"
    death = "BENE_DEATH_DT"
    time_format = "%Y%m%d"
    [[table.static]]
    columns = ["BENE_SEX_IDENT_CD"]
    prefix = "GENDER//"
    values = {"1" = "M", "2" = "F"}    # spell values; others stay as they are

    [[table]]                          # yearly flags: a column that is "1" is an event named after the column
    files = "*2008_Beneficiary_Summary*"
    subject = "DESYNPUF_ID"
    date = "2008-12-31"                # a fixed time for the table
    [[table.codes]]
    columns = ["SP_*"]
    prefix = "CHRONIC//"
    flag = "1"

    [[table]]                          # a long table of measurements
    files = "labs.csv.gz"
    subject = "patient"
    time = "taken"
    [[table.codes]]
    columns = ["test"]
    prefix = "LAB//"
    value = "result"                   # a number; text that is none goes to text_value
    unit = "unit"                      # appended to the code: LAB//sodium//mmol/L
    description = "test_name"

Names of columns may have any case. A row without any code counts as one event without a code.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
from pathlib import Path

from pydantic import Field, model_validator

from ehrtrack.data.sources._reader import Reader, table_paths
from ehrtrack.data.sources._reading import Reading
from ehrtrack.data.sources._relation import Relation, Time, quote_text
from ehrtrack.data.sources._table import NULL, Event, SourceTable, birth, death, when_present
from ehrtrack.errors import DataError
from ehrtrack.section import Section


class Codes(Section):
    """Events that a row makes: of a fixed `code`, or of the values (or flags) in `columns`."""

    code: str | None = None
    columns: tuple[str, ...] = ()
    prefix: str = ""
    values: dict[str, str] = Field(default_factory=dict)
    flag: str | None = None
    time: str | None = None
    value: str | None = None
    unit: str | None = None
    description: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Codes:
        if (self.code is None) == (not self.columns):
            raise ValueError("give either code (a fixed code) or columns (whose values are codes)")
        return self


class Static(Section):
    """Facts without a time, such as sex: prefix + the value of each column."""

    columns: tuple[str, ...] = Field(min_length=1)
    prefix: str
    values: dict[str, str] = Field(default_factory=dict)


class Table(Section):
    """One kind of table: which files, and what a row of them says."""

    files: str = "*"
    name: str | None = None
    subject: str
    visit: str | None = None
    time: str | None = None
    time_format: str | None = None
    date: dt.date | None = None
    codes: tuple[Codes, ...] = ()
    static: tuple[Static, ...] = ()
    birth: str | None = None
    death: str | None = None
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


def tables(reader: Reader, path: Path, config: Config) -> list[SourceTable]:
    """One table for each ``[[table]]``."""
    return [_source_table(reader, path, table) for table in config.table]


def _source_table(reader: Reader, path: Path, table: Table) -> SourceTable:
    name = table.name or table.files
    relation = reader.files(_matching_files(path, table.files), name).require(table.subject)
    if table.visit:
        relation.require(table.visit)
    events: list[Event] = []
    if table.birth:
        events.append(birth(relation.time(table.birth, format=table.time_format)))
    if table.death:
        events.append(death(relation.time(table.death, format=table.time_format)))
    for static in table.static:
        for column in _expand(relation, static.columns):
            code = f"({quote_text(static.prefix)} || {_spelt(relation, column, static.values)})"
            events.append(Event(code=code, time=None))
    for codes in table.codes:
        events.extend(_events(relation, table, codes))
    return SourceTable(
        name=name,
        relation=relation,
        subject=table.subject,
        events=tuple(events),
        visit=table.visit,
        is_roster=table.roster,
    )


def _matching_files(path: Path, pattern: str) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob(pattern) if file.is_file())
    if not files:
        found = ", ".join(file.name for file in table_paths(path)) or "no table"
        raise DataError(f"no file in {path} matches {pattern!r}; found: {found}; correct files in the TOML")
    return files


def _expand(relation: Relation, columns: tuple[str, ...]) -> list[str]:
    """The columns that the names and patterns stand for, each checked to be there."""
    expanded: list[str] = []
    for column in columns:
        matches = fnmatch.filter(relation.types, column.lower()) if "*" in column else [column]
        if not matches:
            raise DataError(f"table {relation.name}: no column matches {column!r}; found: {', '.join(relation.types)}")
        relation.require(*matches)
        expanded.extend(matches)
    return expanded


def _events(relation: Relation, table: Table, codes: Codes) -> list[Event]:
    time = _time(relation, table, codes)
    named = [column for column in (codes.value, codes.unit, codes.description) if column is not None]
    relation.require(*named)
    number = relation.number(codes.value) if codes.value else NULL
    text = f"CASE WHEN {number} IS NULL THEN {relation.text(codes.value)} END" if codes.value else NULL
    unit = f", {relation.text(codes.unit)}" if codes.unit else ""
    description = relation.text(codes.description) if codes.description else NULL
    if codes.code is not None:
        sql = [quote_text(codes.code)]
    elif codes.flag is not None:
        sql = [
            f"CASE WHEN {relation.text(column)} = {quote_text(codes.flag)} "
            f"THEN {quote_text(codes.prefix + column.upper())} END"
            for column in _expand(relation, codes.columns)
        ]
    else:
        sql = [
            when_present(
                relation.text(column),
                f"concat_ws('//', {quote_text(codes.prefix)} || {_spelt(relation, column, codes.values)}{unit})",
            )
            for column in _expand(relation, codes.columns)
        ]
    comma = relation.decimal_commas(codes.value) if codes.value else NULL
    return [
        Event(
            code=code,
            time=time,
            numeric_value=number,
            text_value=text,
            description=description,
            decimal_comma=comma,
        )
        for code in sql
    ]


def _time(relation: Relation, table: Table, codes: Codes) -> Time:
    column = codes.time or table.time
    if column is not None:
        return relation.time(column, format=table.time_format)
    stamp = f"CAST({quote_text(str(table.date))} AS TIMESTAMP)"
    return Time(parsed=relation.utc(stamp), stated=quote_text(str(table.date)), column="date")


def _spelt(relation: Relation, column: str, values: dict[str, str]) -> str:
    """SQL of the column's value, with those of `values` spelt out."""
    text = relation.text(column)
    if not values:
        return text
    cases = " ".join(f"WHEN {quote_text(key)} THEN {quote_text(word)}" for key, word in values.items())
    return f"CASE {text} {cases} ELSE {text} END"
