"""An OMOP common data model: a folder of CSV, gzipped CSV or Parquet, or a DuckDB file (opened read-only).

Table and column names may have any case, and file names a number before them (``2b_concept.csv.gz``). The
table `person` is required, every other is used where there is one.

Codes, in this order:

1. ``VOCABULARY//CONCEPT_CODE`` of the standard concept, where the concept table has it: ``SNOMED//74474003``;
2. the same of the source concept, where the standard concept is 0 or missing ("no matching concept");
3. ``TABLE//<concept_id>`` for a concept that the concept table lacks: ``CONDITION//196523``;
4. ``TABLE_SOURCE//<source value>``.

A visit makes its concept's code at its start: ``Visit//IP``, ``Visit//OP``, ``Visit//ER``. An observation
period makes ``OBSERVATION_PERIOD//START`` and ``OBSERVATION_PERIOD//END``: follow-up ends at the latter.
Where a table has a date and a datetime, the datetime is used unless it is empty. A birth known by its year
alone is put at the first of January, one known by year and month at the first of the month.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb

from ehrtrack.data.sources._relation import (
    Relation,
    Time,
    describe,
    find_relation,
    first_line,
    quote_name,
    quote_text,
    table_paths,
)
from ehrtrack.data.sources._table import (
    NULL,
    Event,
    SourceTable,
    birth,
    death,
    prefixed,
    require_table,
)
from ehrtrack.errors import DataError
from ehrtrack.section import Section

_DATABASE = "omop_source"
_DATABASE_SUFFIXES = (".duckdb", ".db", ".ddb")
# Concepts that every model shares and that a partial concept table may lack.
_SHARED_CONCEPTS = (
    (9201, "Visit//IP", "Inpatient Visit"),
    (9202, "Visit//OP", "Outpatient Visit"),
    (9203, "Visit//ER", "Emergency Room Visit"),
    (262, "Visit//ERIP", "Emergency Room and Inpatient Visit"),
)


class Config(Section):
    """Nothing to set."""


@dataclass(frozen=True)
class _Clinical:
    """A clinical table: the word its columns and codes begin with, and its start columns, datetime first."""

    table: str
    word: str
    start: tuple[str, ...]


_CLINICAL_TABLES = (
    _Clinical("visit_occurrence", "visit", ("visit_start_datetime", "visit_start_date")),
    _Clinical("condition_occurrence", "condition", ("condition_start_datetime", "condition_start_date")),
    _Clinical("drug_exposure", "drug", ("drug_exposure_start_datetime", "drug_exposure_start_date")),
    _Clinical("procedure_occurrence", "procedure", ("procedure_datetime", "procedure_date")),
    _Clinical("device_exposure", "device", ("device_exposure_start_datetime", "device_exposure_start_date")),
    _Clinical("measurement", "measurement", ("measurement_datetime", "measurement_date")),
    _Clinical("observation", "observation", ("observation_datetime", "observation_date")),
)


def tables(connection: duckdb.DuckDBPyConnection, path: Path, config: Config) -> list[SourceTable]:
    """Person (the roster), observation periods, clinical tables and deaths."""
    if path.is_file():
        _attach(connection, path)

    def find(name: str) -> Relation | None:
        if path.is_dir():
            return find_relation(connection, (path,), name, pattern=rf"(\d\w*_)?{name}")
        return _find_in_database(connection, name)

    found = [file.name for file in table_paths(path)] if path.is_dir() else _database_tables(connection)
    person = require_table(find("person"), "person", found, path)
    _load_concepts(connection, find("concept"))
    return [
        _person(person),
        _observation_period(find("observation_period")),
        *(_clinical(connection, clinical, find(clinical.table)) for clinical in _CLINICAL_TABLES),
        _death(find("death")),
    ]


def _attach(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    if path.suffix.lower() not in _DATABASE_SUFFIXES:
        raise DataError(
            f"{path} is one file; needed: a folder of CSV or Parquet tables, or a DuckDB file "
            f"({', '.join(_DATABASE_SUFFIXES)})"
        )
    try:
        connection.execute(f"ATTACH {quote_text(str(path))} AS {_DATABASE} (READ_ONLY)")
    except duckdb.Error as error:
        raise DataError(f"{path} cannot be opened as a DuckDB file: {first_line(error)}") from error


def _database_tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    query = "SELECT table_name FROM information_schema.tables WHERE table_catalog = ? ORDER BY 1"
    return [str(row[0]) for row in connection.execute(query, [_DATABASE]).fetchall()]


def _find_in_database(connection: duckdb.DuckDBPyConnection, name: str) -> Relation | None:
    query = (
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_catalog = ? AND lower(table_name) = ? ORDER BY 1"
    )
    rows = connection.execute(query, [_DATABASE, name]).fetchall()
    if len(rows) > 1:
        schemas = ", ".join(str(schema) for schema, _ in rows)
        raise DataError(f"table {name} is in several schemas ({schemas}); keep one of them in the file")
    if not rows:
        return None
    schema, table = rows[0]
    relation = describe(connection, name, f"{_DATABASE}.{quote_name(schema)}.{quote_name(table)}")
    return _with_header_from_first_row(connection, relation)


def _with_header_from_first_row(connection: duckdb.DuckDBPyConnection, relation: Relation) -> Relation:
    """Columns named after the first row where a header was loaded as data, as in column0, column1, ...

    The row itself stays, to be counted and dropped as a header row.
    """
    if not all(column.startswith("column") and column[6:].isdigit() for column in relation.types):
        return relation
    row = connection.execute(f"SELECT * FROM {relation.sql} LIMIT 1").fetchone()
    if row is None or not all(isinstance(cell, str) and cell.replace("_", "").isalnum() for cell in row):
        return relation
    names = ", ".join(
        f"{quote_name(column)} AS {quote_name(cell.lower())}" for column, cell in zip(relation.types, row, strict=True)
    )
    return describe(connection, relation.name, f"(SELECT {names} FROM {relation.sql})")


def _load_concepts(connection: duckdb.DuckDBPyConnection, concept: Relation | None) -> None:
    """The table `omop_concept` (concept_id, concept_label, concept_text), one row a concept."""
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


def _person(relation: Relation) -> SourceTable:
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
    events = (birth(_birth_time(relation)), *facts)
    return SourceTable(name="person", relation=relation, subject="person_id", events=events, is_roster=True)


def _birth_time(relation: Relation) -> Time:
    year, month, day = (relation.integer(f"{unit}_of_birth") for unit in ("year", "month", "day"))
    built = (
        f"TRY_CAST(format('{{:04d}}-{{:02d}}-{{:02d}}', {year}, coalesce({month}, 1), coalesce({day}, 1)) AS TIMESTAMP)"
    )
    if not relation.has("birth_datetime"):
        return Time(parsed=built, stated=relation.text("year_of_birth"), column="year_of_birth")
    stated = relation.time("birth_datetime")
    return Time(
        parsed=f"coalesce({stated.parsed}, {built})",
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
    events = (
        Event(code="'OBSERVATION_PERIOD//START'", time=start),
        Event(code="'OBSERVATION_PERIOD//END'", time=end),
    )
    return SourceTable(name=name, relation=relation, subject="person_id", events=events)


def _death(relation: Relation | None) -> SourceTable:
    if relation is None:
        return SourceTable(name="death", relation=None)
    relation.require("person_id", "death_date")
    time = relation.time("death_datetime", "death_date")
    return SourceTable(name="death", relation=relation, subject="person_id", events=(death(time),))


def _clinical(connection: duckdb.DuckDBPyConnection, clinical: _Clinical, relation: Relation | None) -> SourceTable:
    if relation is None:
        return SourceTable(name=clinical.table, relation=None)
    word = clinical.word
    relation.require("person_id", f"{word}_concept_id", clinical.start[-1])
    concept_id = f"nullif({relation.integer(f'{word}_concept_id')}, 0)"
    source_id = f"nullif({relation.integer(f'{word}_source_concept_id')}, 0)"
    joined = describe(
        connection,
        clinical.table,
        f"""(SELECT record.*, coalesce(standard.concept_label, source.concept_label) AS event_label,
                coalesce(standard.concept_text, source.concept_text) AS event_text
            FROM {relation.sql} AS record
            LEFT JOIN omop_concept AS standard ON standard.concept_id = {concept_id}
            LEFT JOIN omop_concept AS source ON {concept_id} IS NULL AND source.concept_id = {source_id})""",
    )
    code = (
        f"coalesce(event_label, {prefixed(f'{word.upper()}//', f'CAST({concept_id} AS VARCHAR)')}, "
        f"{prefixed(f'{word.upper()}_SOURCE//', joined.text(f'{word}_source_value'))})"
    )
    number = joined.number("value_as_number")
    has_value = joined.has("value_as_number")
    text = f"coalesce({joined.text('value_as_string')}, {joined.text('value_source_value')})"
    event = Event(
        code=code,
        time=joined.time(*clinical.start),
        numeric_value=number,
        text_value=f"CASE WHEN {number} IS NULL THEN {text} END" if has_value else NULL,
        description="event_text",
    )
    return SourceTable(
        name=clinical.table,
        relation=joined,
        subject="person_id",
        events=(event,),
        visit="visit_occurrence_id" if joined.has("visit_occurrence_id") else None,
    )
