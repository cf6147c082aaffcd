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
    values = {"1" = "M", "2" = "F"}    # spell values; others stay as they are, and "" leaves one out

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

    [[table]]                          # times as minutes from an admission, which another file tells
    files = "lab.csv.gz"
    join = [{ files = "patient.csv.gz", on = "stay_id" }]   # its columns stand beside those of lab.csv.gz
    subject = "patient_id"
    time = { offset = "result_offset", unit = "minutes", anchor = "admitted_at" }   # a column, or a date for all
    [[table.codes]]
    columns = ["labname"]
    value = "labresult"

    [[table]]                          # a wide table of measurements, one file a subject: p000001.psv
    files = "p*.psv"
    subject = "file_name"              # of each row's file, without ending
    time = { offset = "ICULOS", unit = "hours", anchor = "2000-01-01" }
    [[table.codes]]
    measured = ["HR", "Temp", "*BP"]   # each cell makes the code prefix + column; an empty one makes nothing
    prefix = "VITAL//"
    [[table.codes]]
    code = "SEPSIS"
    where = { SepsisLabel = "1" }      # rows of which this holds

Names of columns may have any case. A row without any code counts as one event without a code. A fixed code with a
`value` makes no event where the value is empty.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from ehrtrack.data.sources._messages import told_columns
from ehrtrack.data.sources._reader import Reader, table_paths
from ehrtrack.data.sources._relation import Relation, Time, quote_name, quote_text
from ehrtrack.data.sources.base import NULL, Event, Source, SourceTable, birth, death, when_present
from ehrtrack.data.sources.settings import FILE_NAME, Codes, EventsCsvConfig, Join, Offset, Stamp, Table
from ehrtrack.errors import DataError

_MICROSECONDS = {"seconds": 10**6, "minutes": 60 * 10**6, "hours": 3600 * 10**6, "days": 86_400 * 10**6}
_MICROSECONDS["years"] = 31_557_600 * 10**6  # of 365.25 days: an age in years has no day of birth
_LONGEST_OFFSET = 10_000 * _MICROSECONDS["years"]
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2})?)?")


class EventsCsv(Source):
    """Any tables, whose columns the settings describe."""

    Config = EventsCsvConfig
    config: EventsCsvConfig

    def tables(self, reader: Reader, path: Path) -> list[SourceTable]:
        """One table for each ``[[table]]``."""
        return [_source_table(reader, path, table) for table in self.config.table]


def _source_table(reader: Reader, path: Path, table: Table) -> SourceTable:
    name = table.name or table.files
    relation = reader.files(_matching_files(path, table.files), name, file_name=FILE_NAME)
    for join in table.join:
        relation = _joined(reader, path, relation, join)
    relation.require(table.subject, *([table.visit] if table.visit else []))
    events: list[Event] = []
    if table.birth:
        events.append(birth(_stamp(relation, table, table.birth)))
    if table.death:
        events.append(death(_stamp(relation, table, table.death)))
    for static in table.static:
        for column in _expand(relation, static.columns):
            code = f"({quote_text(static.prefix)} || {_spelt(relation, column, static.values)})"
            events.append(Event(code=_where(relation, static.where, code), time=None))
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


def _joined(reader: Reader, path: Path, relation: Relation, join: Join) -> Relation:
    """The table with the columns of another one that it does not have itself."""
    here, there = join.keys
    other = reader.files(_matching_files(path, join.files), join.files).require(there)
    relation.require(here)
    ((n_keys, n_rows),) = reader.connection.execute(
        f"SELECT count(DISTINCT {other.identifier(there)}), count({other.identifier(there)}) FROM {other.sql}"
    ).fetchall()
    if n_keys < n_rows:
        raise DataError(
            f"{join.files} has {n_rows:,} rows with a {there} and {n_keys:,} different ones; rows of {relation.name} "
            "would be doubled: join on a column that is there once"
        )
    added = ", ".join(quote_name(column) for column in other.types if not relation.has(column))
    query = (
        f"(SELECT * EXCLUDE (key_here, key_there) FROM (SELECT *, {relation.identifier(here)} AS key_here FROM "
        f"{relation.sql}) LEFT JOIN (SELECT {added or 'NULL AS nothing'}, {other.identifier(there)} AS key_there FROM "
        f"{other.sql}) ON key_here = key_there)"
    )
    return reader.relation(relation.name, query)


def _expand(relation: Relation, columns: tuple[str, ...]) -> list[str]:
    """The columns that the names and patterns stand for, each checked to be there."""
    expanded: list[str] = []
    for column in columns:
        matches = fnmatch.filter(relation.types, column.lower()) if "*" in column else [column]
        if not matches:
            raise DataError(
                f"table {relation.name}: no column matches {column!r}; found: {told_columns(relation.types)}"
            )
        relation.require(*matches)
        expanded.extend(matches)
    return expanded


def _events(relation: Relation, table: Table, codes: Codes) -> list[Event]:
    time = _time(relation, table, codes)
    named = [column for column in (codes.value, codes.unit, codes.description) if column is not None]
    relation.require(*named, *codes.where)
    return [
        Event(
            code=_where(relation, codes.where, code),
            time=time,
            numeric_value=relation.number(value) if value else NULL,
            text_value=f"CASE WHEN {relation.number(value)} IS NULL THEN {relation.text(value)} END" if value else NULL,
            description=relation.text(codes.description) if codes.description else NULL,
            result_column=value,
            unit=relation.text(codes.unit) if codes.unit else NULL,
            has_unit_always=bool(codes.columns) and codes.flag is None,
        )
        for code, value in _codes_and_values(relation, codes)
    ]


def _codes_and_values(relation: Relation, codes: Codes) -> list[tuple[str, str | None]]:
    """SQL of each event's code, and the column of its result."""
    if codes.code is not None:
        code = quote_text(codes.code)
        return [(when_present(relation.text(codes.value), code) if codes.value else code, codes.value)]
    if codes.measured:
        return [
            (when_present(relation.text(column), quote_text(codes.prefix + column)), column)
            for column in _expand(relation, codes.measured)
        ]
    if codes.flag is not None:
        return [
            (
                f"CASE WHEN {relation.text(column)} = {quote_text(codes.flag)} "
                f"THEN {quote_text(codes.prefix + column.upper())} END",
                codes.value,
            )
            for column in _expand(relation, codes.columns)
        ]
    return [
        (f"({quote_text(codes.prefix)} || {_spelt(relation, column, codes.values)})", codes.value)
        for column in _expand(relation, codes.columns)
    ]


def _where(relation: Relation, conditions: dict[str, str], code: str) -> str:
    """SQL of the code in the rows of which the conditions hold."""
    if not conditions:
        return code
    holds = " AND ".join(f"{relation.text(column)} = {quote_text(word)}" for column, word in conditions.items())
    return f"CASE WHEN {holds} THEN {code} END"


def _time(relation: Relation, table: Table, codes: Codes) -> Time:
    stamp = codes.time or table.time
    if stamp is not None:
        return _stamp(relation, table, stamp)
    return _fixed(relation, str(table.date), column="date")


def _stamp(relation: Relation, table: Table, stamp: Stamp) -> Time:
    if isinstance(stamp, str):
        return relation.time(stamp, format=table.time_format)
    return _from_anchor(relation, table, stamp)


def _from_anchor(relation: Relation, table: Table, stamp: Offset) -> Time:
    """The anchor's time and the offsets, in UTC; what has no number in an offset is unreadable."""
    if _DATE.fullmatch(stamp.anchor):
        anchor = _fixed(relation, stamp.anchor, column=stamp.anchor)
    else:
        anchor = relation.time(stamp.anchor, format=table.time_format)
    names = [name.removeprefix("-") for name in stamp.offset]
    relation.require(*names)
    texts = [_spelt(relation, name, stamp.values) for name in names]
    signs = ["-" if name.startswith("-") else "+" for name in stamp.offset]
    amounts = [_amount(relation.with_point(text), stamp.unit) for text in texts]
    amount = " ".join(f"{sign} {amount}" for sign, amount in zip(signs, amounts, strict=True))
    # Neither an anchor nor an offset beyond the calendar may end the import: such a time is unreadable.
    is_within = f"year({anchor.parsed}) BETWEEN 1 AND 9999 AND abs({amount}) < {_LONGEST_OFFSET}"
    stated = " || ' ' || ".join(texts)
    return Time(
        parsed=f"CASE WHEN {is_within} THEN {anchor.parsed} + to_microseconds(CAST(round({amount}) AS BIGINT)) END",
        stated=f"CASE WHEN {anchor.stated} IS NOT NULL THEN {stated} END",
        column=" and ".join([*names, anchor.column]),
    )


def _amount(text: str, unit: str) -> str:
    """SQL of an offset in microseconds."""
    if unit == "hh:mm":
        hours, minutes = (
            f"TRY_CAST(regexp_extract({text}, '^(\\d+):([0-5]\\d)$', {place}) AS DOUBLE)" for place in (1, 2)
        )
        return f"({hours} * {_MICROSECONDS['hours']} + {minutes} * {_MICROSECONDS['minutes']})"
    return f"TRY_CAST({text} AS DOUBLE) * {_MICROSECONDS[unit]}"


def _fixed(relation: Relation, date: str, *, column: str) -> Time:
    stamp = relation.utc(f"CAST({quote_text(date)} AS TIMESTAMP)")
    return Time(parsed=stamp, stated=quote_text(date), column=column)


def _spelt(relation: Relation, column: str, values: dict[str, str]) -> str:
    """SQL of the column's value, with those of `values` spelt out, and NULL where they are spelt as nothing."""
    text = relation.text(column)
    if not values:
        return text
    cases = " ".join(
        f"WHEN {quote_text(key)} THEN {quote_text(word) if word else NULL}" for key, word in values.items()
    )
    return f"CASE {text} {cases} ELSE {text} END"
