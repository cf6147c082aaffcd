"""Synthea's CSV export: the Java exporter's columns from 2017 on, and those of its Python relatives.

Codes are ``SYSTEM//CODE``: SNOMED-CT, RxNorm, CVX or LOINC, by the SYSTEM column where there is one and by
table where there is none. An encounter makes ``ENCOUNTER//<class>`` (``ENCOUNTER//inpatient``), its type and
its reason, all at its start. Conditions, medications and care plans
are events at their start; their ends are not used. Before 2018 encounters had no class; before version 3 the columns of
times had other names. Numbers of a code that has several UNITS carry theirs in the code.
Static facts are GENDER//, RACE// and ETHNICITY//. Stamps with a zone (``...Z``) become UTC without a zone.
"""

from __future__ import annotations

from pathlib import Path

from ehrtrack.data.sources._reader import Reader, table_paths
from ehrtrack.data.sources._relation import Relation, quote_text
from ehrtrack.data.sources.base import (
    Event,
    Source,
    SourceTable,
    birth,
    death,
    prefixed,
    require_table,
)
from ehrtrack.data.sources.settings import SyntheaConfig

_SYSTEM_NAMES = {
    "http://snomed.info/sct": "SNOMED-CT",
    "http://loinc.org": "LOINC",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RxNorm",
    "http://hl7.org/fhir/sid/cvx": "CVX",
}
# Table, its code column, the code system where the table does not name one.
_CODED_TABLES = (
    ("conditions", "code", "SNOMED-CT"),
    ("medications", "code", "RxNorm"),
    ("procedures", "code", "SNOMED-CT"),
    ("immunizations", "code", "CVX"),
    ("allergies", "code", "SNOMED-CT"),
    ("careplans", "code", "SNOMED-CT"),
    ("devices", "code", "SNOMED-CT"),
    ("supplies", "code", "SNOMED-CT"),
    ("imaging_studies", "procedure_code", "SNOMED-CT"),
)
_CODED_LATER = ("imaging_studies",)
"""Tables that had no code in earlier versions of Synthea."""


class Synthea(Source):
    """Synthea's CSV export."""

    Config = SyntheaConfig
    config: SyntheaConfig

    def tables(self, reader: Reader, path: Path) -> list[SourceTable]:
        """Patients (the roster), encounters, the coded tables and observations."""
        folders = (path, path / "csv")

        def find(name: str) -> Relation | None:
            return reader.find(folders, name)

        found = [file.name for folder in folders for file in table_paths(folder)]
        patients = require_table(find("patients"), "patients", found, path)
        return [
            _patients(patients),
            _encounters(find("encounters")),
            *(_coded(reader, name, find(name), code=code, system=system) for name, code, system in _CODED_TABLES),
            _observations(find("observations")),
        ]


def _patients(relation: Relation) -> SourceTable:
    relation.require("Id", "BIRTHDATE", "DEATHDATE")
    facts = tuple(
        Event(code=prefixed(f"{column}//", relation.text(column)), time=None)
        for column in ("GENDER", "RACE", "ETHNICITY")
    )
    events = (birth(relation.time("BIRTHDATE")), death(relation.time("DEATHDATE")), *facts)
    return SourceTable(name="patients", relation=relation, subject="Id", events=events, is_roster=True)


def _encounters(relation: Relation | None) -> SourceTable:
    if relation is None:
        return SourceTable(name="encounters", relation=None)
    relation.require("Id", "PATIENT")
    start = relation.time(relation.first_of("START", "DATE"))
    system = _system(relation, "SNOMED-CT")
    events = (
        Event(code=prefixed("ENCOUNTER//", f"lower({relation.text('ENCOUNTERCLASS')})"), time=start),
        Event(
            code=f"({system} || '//' || {relation.text('CODE')})",
            time=start,
            description=relation.text("DESCRIPTION"),
        ),
        Event(
            code=prefixed("SNOMED-CT//", relation.text("REASONCODE")),
            time=start,
            description=relation.text("REASONDESCRIPTION"),
        ),
    )
    return SourceTable(name="encounters", relation=relation, subject="PATIENT", events=events, visit="Id")


def _coded(reader: Reader, name: str, relation: Relation | None, *, code: str, system: str) -> SourceTable:
    if relation is None:
        return SourceTable(name=name, relation=None)
    relation.require("PATIENT")
    time = relation.first_of("START", "DATE")
    if name in _CODED_LATER and not relation.has(code):
        why = f"{reader.n_rows(relation):,} rows without a column {code.upper()}"
        return SourceTable(name=name, relation=None, left_out=why)
    relation.require(code)
    event = Event(
        code=f"({_system(relation, system)} || '//' || {relation.text(code)})",
        time=relation.time(time),
        description=relation.text("DESCRIPTION"),
    )
    return SourceTable(name=name, relation=relation, subject="PATIENT", events=(event,), visit="ENCOUNTER")


def _observations(relation: Relation | None) -> SourceTable:
    if relation is None:
        return SourceTable(name="observations", relation=None)
    relation.require("DATE", "PATIENT", "CODE", "VALUE")
    number = relation.number("VALUE")
    event = Event(
        code=f"({_system(relation, 'LOINC')} || '//' || {relation.text('CODE')})",
        time=relation.time("DATE"),
        numeric_value=number,
        text_value=f"CASE WHEN {number} IS NULL THEN {relation.text('VALUE')} END",
        result_column="VALUE",
        unit=relation.text("UNITS"),
        description=relation.text("DESCRIPTION"),
    )
    return SourceTable(name="observations", relation=relation, subject="PATIENT", events=(event,), visit="ENCOUNTER")


def _system(relation: Relation, default: str) -> str:
    """SQL of the code system's short name."""
    stated = relation.text("SYSTEM")
    cases = " ".join(f"WHEN {quote_text(address)} THEN {quote_text(name)}" for address, name in _SYSTEM_NAMES.items())
    return f"coalesce(CASE {stated} {cases} ELSE {stated} END, {quote_text(default)})"
