"""An OMOP common data model, v5.3 to v6: a folder of CSV or Parquet tables, or a DuckDB or SQLite file.

Table and column names may have any case, and file names a number before them (``2b_concept.csv.gz``) or after them
(``measurement_3.csv``). The table `person` is required, every other is used where there is one.

Codes, in this order:

1. ``VOCABULARY//CONCEPT_CODE`` of the standard concept, where the concept table has it: ``SNOMED//74474003``;
2. the same of the source concept, where the standard concept is 0 or missing ("no matching concept");
3. ``TABLE//<concept_id>`` for a concept that the concept table lacks: ``CONDITION//196523``;
4. ``TABLE_SOURCE//<source value>``.

A visit makes its concept's code at its start: ``Visit//IP``, ``Visit//OP``, ``Visit//ER``. An observation
period makes ``OBSERVATION_PERIOD//START`` and ``OBSERVATION_PERIOD//END``: follow-up ends at the latter.
Where a table has a date and a datetime, the datetime is used unless it is empty, and else the date with the clock of
`measurement_time`, where there is one. A birth known by its year alone is put at the first of January, one known by
year and month at the first of the month.

A result that is a concept (`value_as_concept_id`) or text goes to `text_value`, with its qualifier behind it. Numbers
of a concept that has several units carry theirs in the code: ``LOINC//2345-7//mg/dL``.

A condition of an inpatient visit is known when the visit ends (`conditions_at`): most are billing diagnoses, coded at
discharge and stamped with the day of admission.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ehrtrack.data.sources._reader import TABLE_SUFFIXES, DatabaseFile, Reader, table_paths
from ehrtrack.data.sources._relation import Relation, Time, quote_name
from ehrtrack.data.sources.base import (
    NULL,
    Event,
    Note,
    Source,
    SourceTable,
    birth,
    death,
    prefixed,
    require_table,
)
from ehrtrack.data.sources.settings import OmopConfig
from ehrtrack.errors import DataError

# Concepts that every model shares and that a partial concept table may lack.
_SHARED_CONCEPTS = (
    (9201, "Visit//IP", "Inpatient Visit"),
    (9202, "Visit//OP", "Outpatient Visit"),
    (9203, "Visit//ER", "Emergency Room Visit"),
    (262, "Visit//ERIP", "Emergency Room and Inpatient Visit"),
)


@dataclass(frozen=True)
class _Clinical:
    """A clinical table: the word its columns and codes begin with, and its start columns, the best first."""

    table: str
    word: str
    start: tuple[str | tuple[str, str], ...]


_CLINICAL_TABLES = (
    _Clinical("visit_occurrence", "visit", ("visit_start_datetime", "visit_start_date")),
    _Clinical("condition_occurrence", "condition", ("condition_start_datetime", "condition_start_date")),
    _Clinical("drug_exposure", "drug", ("drug_exposure_start_datetime", "drug_exposure_start_date")),
    _Clinical("procedure_occurrence", "procedure", ("procedure_datetime", "procedure_date")),
    _Clinical("device_exposure", "device", ("device_exposure_start_datetime", "device_exposure_start_date")),
    _Clinical("measurement", "measurement", ("measurement_datetime", ("measurement_date", "measurement_time"))),
    _Clinical("observation", "observation", ("observation_datetime", "observation_date")),
)
_INPATIENT_VISITS = (9201, 262, 8717)  # inpatient, emergency room and inpatient, inpatient hospital


class Omop(Source):
    """An OMOP common data model."""

    Config = OmopConfig
    config: OmopConfig

    def tables(self, reader: Reader, path: Path) -> list[SourceTable]:
        """Person (the roster), observation periods, clinical tables and deaths."""
        database = None if path.is_dir() else _open(reader, path)

        def find(name: str) -> Relation | None:
            if database is None:
                return reader.find((path,), name, pattern=rf"(\d\w*_)?{name}")
            relation = database.find(name)
            return None if relation is None else _with_header_from_first_row(reader, relation)

        found = [file.name for file in table_paths(path)] if database is None else database.tables
        person = require_table(find("person"), "person", found, path)
        _load_concepts(reader, find("concept"))
        visits = find("visit_occurrence")
        at_visit_end = visits if self.config.conditions_at == "visit_end" else None
        return [
            _person(reader, person),
            _observation_period(find("observation_period")),
            *(
                _clinical(
                    reader, clinical, find(clinical.table), at_visit_end if clinical.word == "condition" else None
                )
                for clinical in _CLINICAL_TABLES
            ),
            _death(find("death"), person),
        ]


def _open(reader: Reader, path: Path) -> DatabaseFile:
    if path.name.lower().endswith(TABLE_SUFFIXES):
        raise DataError(
            f"{path} is one table; needed: the folder of all tables, or a DuckDB or SQLite file that holds them"
        )
    return DatabaseFile(reader, path)


def _with_header_from_first_row(reader: Reader, relation: Relation) -> Relation:
    """Columns named after the first row where a header was loaded as data, as in column0, column1, ...

    The row itself stays, to be counted and dropped as a header row.
    """
    if not all(column.startswith("column") and column[6:].isdigit() for column in relation.types):
        return relation
    rows = reader.connection.execute(f"SELECT * FROM {relation.sql} LIMIT 1").fetchall()
    row = rows[0] if rows else None
    if row is None or not all(isinstance(cell, str) and cell.replace("_", "").isalnum() for cell in row):
        return relation
    names = ", ".join(
        f"{quote_name(column)} AS {quote_name(cell.lower())}" for column, cell in zip(relation.types, row, strict=True)
    )
    return reader.relation(relation.name, f"(SELECT {names} FROM {relation.sql})")


def _load_concepts(reader: Reader, concept: Relation | None) -> None:
    """The table `omop_concept` (concept_id, concept_label, concept_text), one row a concept."""
    connection = reader.connection
    connection.execute("CREATE TABLE omop_concept (concept_id BIGINT, concept_label VARCHAR, concept_text VARCHAR)")
    if concept is not None:
        concept.require("concept_id", "concept_name", "vocabulary_id", "concept_code")
        connection.execute(
            f"""INSERT INTO omop_concept
            SELECT {concept.integer("concept_id")} AS id,
                   min({concept.text("vocabulary_id")} || '//' || {concept.text("concept_code")}),
                   min({concept.text("concept_name")})
            FROM {concept.sql} WHERE id <> 0 GROUP BY id"""
        )
    connection.executemany(
        "INSERT INTO omop_concept SELECT $1, $2, $3 WHERE $1 NOT IN (SELECT concept_id FROM omop_concept)",
        [list(row) for row in _SHARED_CONCEPTS],
    )


def _person(reader: Reader, relation: Relation) -> SourceTable:
    relation.require("person_id", "gender_concept_id", "year_of_birth")
    gender = (
        f"CASE {relation.integer('gender_concept_id')} WHEN 8507 THEN 'M' WHEN 8532 THEN 'F' "
        f"ELSE coalesce({relation.text('gender_source_value')}, 'unknown') END"
    )
    facts = [Event(code=prefixed("GENDER//", gender), time=None)]
    for word in ("race", "ethnicity"):
        concept = f"nullif({relation.integer(f'{word}_concept_id')}, 0)"
        value = f"coalesce({relation.text(f'{word}_source_value')}, CAST({concept} AS VARCHAR))"
        facts.append(Event(code=prefixed(f"{word.upper()}//", value), time=None))
    events = [birth(_birth_time(relation)), *facts]
    if relation.has("death_datetime"):  # of OMOP v6, which has no table of deaths
        events.append(death(relation.time("death_datetime")))
    return SourceTable(name="person", relation=relation, subject="person_id", events=tuple(events), is_roster=True)


def _birth_time(relation: Relation) -> Time:
    year, month, day = (relation.integer(f"{unit}_of_birth") for unit in ("year", "month", "day"))
    date = f"format('{{:04d}}-{{:02d}}-{{:02d}}', {year}, coalesce({month}, 1), coalesce({day}, 1))"
    built = relation.utc(f"TRY_CAST({date} AS TIMESTAMP)")
    if not relation.has("birth_datetime"):
        return Time(parsed=built, stated=relation.text("year_of_birth"), column="year_of_birth")
    stated = relation.time("birth_datetime")
    return Time(
        parsed=f"CASE WHEN {stated.stated} IS NOT NULL THEN {stated.parsed} ELSE {built} END",
        stated=f"coalesce({stated.stated}, {relation.text('year_of_birth')})",
        column="birth_datetime / year_of_birth",
    )


def _observation_period(relation: Relation | None) -> SourceTable:
    name = "observation_period"
    if relation is None:
        return SourceTable(name=name, relation=None)
    columns = ("observation_period_start_date", "observation_period_end_date")
    relation.require("person_id", *columns)
    start, end = (relation.time(column) for column in columns)
    is_open = f"coalesce({end.parsed} > CAST(now() AS TIMESTAMP), false)"  # 2099-12-31 and 9999-12-31 mean "not yet"
    events = (
        Event(code="'OBSERVATION_PERIOD//START'", time=start),
        Event(code=f"CASE WHEN NOT {is_open} THEN 'OBSERVATION_PERIOD//END' END", time=end),
    )
    open_periods = Note(is_open, "{n} periods end after today and are left open: follow-up goes to the last event")
    return SourceTable(name=name, relation=relation, subject="person_id", events=events, notes=(open_periods,))


def _death(relation: Relation | None, person: Relation) -> SourceTable:
    if relation is None:
        return SourceTable(name="death", relation=None)
    relation.require("person_id")
    time = relation.time("death_datetime", "death_date")
    return SourceTable(name="death", relation=relation, subject="person_id", events=(death(time),))


def _clinical(
    reader: Reader, clinical: _Clinical, relation: Relation | None, at_visit_end: Relation | None
) -> SourceTable:
    if relation is None:
        return SourceTable(name=clinical.table, relation=None)
    word = clinical.word
    relation.require("person_id", f"{word}_concept_id")
    joined = _with_concepts(reader, relation, word)
    number, text = _results(joined)
    code = _code(joined, word)
    unit = f"coalesce(unit_label, {joined.text('unit_source_value')})" if joined.has("unit_label") else NULL
    time = joined.time(*clinical.start)
    notes: tuple[Note, ...] = ()
    if at_visit_end is not None and joined.has("visit_occurrence_id"):
        joined = _with_visit_end(reader, joined, at_visit_end)
        time, notes = _moved_to_visit_end(joined, time)
    event = Event(
        code=code,
        time=time,
        numeric_value=number,
        text_value=text,
        description="event_text",
        result_column="value_as_number",
        unit=unit,
    )
    return SourceTable(
        name=clinical.table,
        relation=joined,
        subject="person_id",
        events=(event,),
        visit="visit_occurrence_id" if joined.has("visit_occurrence_id") else None,
        notes=notes,
    )


def _with_concepts(reader: Reader, relation: Relation, word: str) -> Relation:
    """The table with the label and text of its rows' concepts, and those of their results, qualifiers and units."""
    of_event = (_id(relation, f"{word}_concept_id"), _id(relation, f"{word}_source_concept_id"))
    joins = [
        f"LEFT JOIN omop_concept AS standard ON standard.concept_id = {of_event[0]}",
        f"LEFT JOIN omop_concept AS source ON {of_event[0]} IS NULL AND source.concept_id = {of_event[1]}",
    ]
    columns = [
        "coalesce(standard.concept_label, source.concept_label) AS event_label",
        "coalesce(standard.concept_text, source.concept_text) AS event_text",
    ]
    for column, alias, found in (
        ("value_as_concept_id", "result_text", "concept_text"),
        ("qualifier_concept_id", "qualifier_text", "concept_text"),
        ("unit_concept_id", "unit_label", "split_part(concept_label, '//', 2)"),
    ):
        if relation.has(column):
            concept = _id(relation, column)
            joins.append(f"LEFT JOIN omop_concept AS {alias}_of ON {alias}_of.concept_id = {concept}")
            label = found.replace("concept_", f"{alias}_of.concept_")
            columns.append(f"coalesce({label}, CAST({concept} AS VARCHAR)) AS {alias}")
        elif alias == "unit_label" and relation.has("unit_source_value"):
            columns.append("NULL AS unit_label")
    query = f"(SELECT record.*, {', '.join(columns)} FROM {relation.sql} AS record {' '.join(joins)})"
    return reader.relation(relation.name, query)


def _id(relation: Relation, column: str) -> str:
    """SQL of a concept's id; NULL where it is 0, "no matching concept"."""
    return f"nullif({relation.integer(column)}, 0)"


def _code(joined: Relation, word: str) -> str:
    concept_id = _id(joined, f"{word}_concept_id")
    return (
        f"coalesce(event_label, {prefixed(f'{word.upper()}//', f'CAST({concept_id} AS VARCHAR)')}, "
        f"{prefixed(f'{word.upper()}_SOURCE//', joined.text(f'{word}_source_value'))})"
    )


def _results(joined: Relation) -> tuple[str, str]:
    """SQL of the number and, where there is none, of the text that a row states as its result."""
    number = joined.number("value_as_number")
    columns = [column for column in ("value_as_string", "value_source_value") if joined.has(column)]
    has_result = joined.has("value_as_number") or joined.has("result_text") or "value_as_string" in columns
    if not has_result:
        return number, NULL
    stated = ", ".join(["result_text"] * joined.has("result_text") + [joined.text(column) for column in columns])
    if not stated:
        return number, NULL
    text = f"coalesce({stated})"
    if joined.has("qualifier_text"):
        text = f"nullif(concat_ws(', ', {text}, qualifier_text), '')"
    return number, f"CASE WHEN {number} IS NULL THEN {text} END"


def _with_visit_end(reader: Reader, relation: Relation, visits: Relation) -> Relation:
    """The conditions with the start and end of their visit, where it is an inpatient one."""
    inpatient = ", ".join(map(str, _INPATIENT_VISITS))
    visits.require("visit_occurrence_id", "visit_concept_id")
    start = visits.time("visit_start_datetime", "visit_start_date").parsed
    end = visits.time("visit_end_datetime", "visit_end_date").parsed
    stays = (
        f"(SELECT {visits.identifier('visit_occurrence_id')} AS stay, timezone('UTC', min({start})) AS stay_start, "
        f"timezone('UTC', max({end})) AS stay_end FROM {visits.sql} "
        f"WHERE {visits.integer('visit_concept_id')} IN ({inpatient}) GROUP BY stay)"
    )
    visit = relation.identifier("visit_occurrence_id")
    found = f"{relation.sql} AS record LEFT JOIN {stays} ON stay = {visit}"
    return reader.relation(relation.name, f"(SELECT record.*, stay, stay_start, stay_end FROM {found})")


def _moved_to_visit_end(joined: Relation, time: Time) -> tuple[Time, tuple[Note, ...]]:
    """The visit's end for what is dated from the day it began on, and before its end."""
    start, end = joined.time("stay_start").parsed, joined.time("stay_end").parsed
    is_within = f"coalesce({time.parsed} >= date_trunc('day', {start}) AND {time.parsed} < {end}, false)"
    moved = Time(f"CASE WHEN {is_within} THEN {end} ELSE {time.parsed} END", time.stated, time.column)
    words = '{n} conditions of inpatient visits are put at the visit\'s end (conditions_at = "visit_end")'
    no_end = "{n} conditions of inpatient visits stay at their start, as the visit's end is missing or unreadable"
    return moved, (Note(is_within, words), Note(f"stay IS NOT NULL AND {end} IS NULL", no_end))
