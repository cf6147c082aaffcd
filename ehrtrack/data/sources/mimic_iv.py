"""MIMIC-IV 0.4 to 3.x, full or demo: tables at the top level or in ``core/``, ``hosp/``, ``icu/``, CSV or Parquet.

- Birth is the first of January of ``anchor_year - anchor_age``: MIMIC-IV gives no nearer date (and the age
  of 91 to all who are over 89). Death is `deathtime` where a stay ended in it, else the date `dod`.
- Diagnoses and DRGs are coded when a stay is over, so their time is the discharge (or the death that ended
  the stay); at admission nobody knew them. ICD codes are ``ICD9CM//4139``, ``ICD10PCS//0SG10``: without dots.
- A stay makes ``HOSPITAL_ADMISSION//<type>``, ``INSURANCE//``, ``MARITAL_STATUS//`` and ``LANGUAGE//`` at
  admission and ``HOSPITAL_DISCHARGE//<location>`` at its end. Race is a static fact: that of the first stay.
- Procedures, HCPCS codes and the outpatient record (OMR) have dates only and lie at midnight of their day.
- An organism grown in a culture is an event when the result was stored, not when the specimen was taken.
- The visit is the hospital stay, `hadm_id`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ehrtrack.data.sources._reader import Reader, table_paths
from ehrtrack.data.sources._relation import Relation, Time, quote_name
from ehrtrack.data.sources.base import (
    NULL,
    Event,
    Source,
    SourceTable,
    birth,
    death,
    prefixed,
    require_table,
    when_present,
)
from ehrtrack.data.sources.settings import MimicIvConfig

Find = Callable[[str], Relation | None]
_SUBJECT, _STAY = "subject_id", "hadm_id"
_RACE = "admissions (race of the first stay)"


@dataclass(frozen=True)
class _Timed:
    """A table whose rows are events with a time of their own.

    Attributes
    ----------
    time : time columns, the best first.
    parts : columns whose values, joined by ``//``, follow the prefix in the code; blank ones are skipped.
    value : column that holds a number, or text that is not one.
    unit : column with the value's unit, which is the last part of the code.
    dictionary : table, key column and label column that describe the code.
    """

    table: str
    prefix: str
    time: tuple[str, ...]
    parts: tuple[str, ...]
    value: str | None = None
    text: str | None = None
    unit: str | None = None
    description: str | None = None
    dictionary: tuple[str, str, str] | None = None


_ITEMS = ("d_items", "itemid", "label")
_TIMED_TABLES = (
    _Timed("transfers", "TRANSFER", ("intime",), ("eventtype", "careunit")),
    _Timed("services", "SERVICE", ("transfertime",), ("curr_service",)),
    _Timed("icustays", "ICU_ADMISSION", ("intime",), ("first_careunit",)),
    _Timed("prescriptions", "DRUG", ("starttime",), ("drug",)),
    _Timed("hcpcsevents", "HCPCS", ("chartdate",), ("hcpcs_cd",), description="short_description"),
    _Timed("omr", "OMR", ("chartdate",), ("result_name",), value="result_value", text="result_value"),
    _Timed(
        "labevents",
        "LAB",
        ("charttime",),
        ("itemid",),
        value="valuenum",
        text="value",
        unit="valueuom",
        dictionary=("d_labitems", "itemid", "label"),
    ),
    _Timed(
        "chartevents",
        "CHART",
        ("charttime",),
        ("itemid",),
        value="valuenum",
        text="value",
        unit="valueuom",
        dictionary=_ITEMS,
    ),
    _Timed("outputevents", "OUTPUT", ("charttime",), ("itemid",), value="value", unit="valueuom", dictionary=_ITEMS),
    _Timed("inputevents", "INPUT", ("starttime",), ("itemid",), value="amount", unit="amountuom", dictionary=_ITEMS),
    _Timed("procedureevents", "ICU_PROCEDURE", ("starttime",), ("itemid",), dictionary=_ITEMS),
)


class MimicIv(Source):
    """MIMIC-IV, of its CSV files."""

    Config = MimicIvConfig
    config: MimicIvConfig

    def tables(self, reader: Reader, path: Path) -> list[SourceTable]:
        """Patients (the roster), stays, what is coded at discharge, and the timed tables."""
        folders = (path, path / "core", path / "hosp", path / "icu")  # core/ is of versions 0.4 and 1.0

        def find(name: str) -> Relation | None:
            return reader.find(folders, name)

        found = [file.name for folder in folders for file in table_paths(folder)]
        patients = require_table(find("patients"), "patients", found, path)
        admissions = require_table(find("admissions"), "admissions", found, path)
        admissions.require(_SUBJECT, _STAY, "admittime", "dischtime", "deathtime", "admission_type")
        return [
            _patients(patients),
            _race(reader, admissions),
            _admissions(admissions),
            *(_timed(reader, timed, find) for timed in _TIMED_TABLES),
            _microbiology(find("microbiologyevents")),
            _procedures(reader, find),
            _diagnoses(reader, admissions, find),
            _drgs(reader, admissions, find),
        ]


def _patients(relation: Relation) -> SourceTable:
    relation.require(_SUBJECT, "gender", "anchor_age", "anchor_year", "dod")
    year, age = relation.integer("anchor_year"), relation.integer("anchor_age")
    is_within = f"{year} BETWEEN 1 AND 9999 AND {age} BETWEEN 0 AND 200"
    first_of_january = f"CASE WHEN {is_within} THEN make_timestamp({year} - {age}, 1, 1, 0, 0, 0) END"
    born = Time(
        parsed=relation.utc(first_of_january),
        stated=f"({relation.text('anchor_year')} || coalesce(' - ' || {relation.text('anchor_age')}, ''))",
        column="anchor_year / anchor_age",
    )
    gender = Event(code=prefixed("GENDER//", relation.text("gender")), time=None)
    events = (birth(born), death(relation.time("dod")), gender)
    return SourceTable(name="patients", relation=relation, subject=_SUBJECT, events=events, is_roster=True)


def _race(reader: Reader, admissions: Relation) -> SourceTable:
    column = "race" if admissions.has("race") else "ethnicity"  # its name before version 2
    if not admissions.has(column):
        return SourceTable(name=_RACE, relation=None)
    race, start = admissions.text(column), admissions.time("admittime").parsed
    first = reader.relation(
        _RACE,
        f"(SELECT {_SUBJECT}, arg_min({race}, {start}) AS race FROM {admissions.sql} GROUP BY {_SUBJECT})",
    )
    event = Event(code=prefixed("RACE//", first.text("race")), time=None)
    return SourceTable(name=first.name, relation=first, subject=_SUBJECT, events=(event,))


def _admissions(relation: Relation) -> SourceTable:
    start = relation.time("admittime")
    end = _end_of_stay(relation)
    events = [
        death(relation.time("deathtime")),
        Event(code=prefixed("HOSPITAL_ADMISSION//", relation.text("admission_type")), time=start),
        Event(code=f"concat_ws('//', 'HOSPITAL_DISCHARGE', {relation.text('discharge_location')})", time=end),
    ]
    for column in ("insurance", "marital_status", "language"):
        events.append(Event(code=prefixed(f"{column.upper()}//", relation.text(column)), time=start))
    if relation.has("edregtime"):
        arrival = relation.time("edregtime")
        events.append(Event(code=when_present(arrival.stated, "'ED_REGISTRATION'"), time=arrival))
    return SourceTable(name="admissions", relation=relation, subject=_SUBJECT, events=tuple(events), visit=_STAY)


def _timed(reader: Reader, timed: _Timed, find: Find) -> SourceTable:
    relation = find(timed.table)
    if relation is None:
        return SourceTable(name=timed.table, relation=None)
    relation.require(_SUBJECT, *timed.time[-1:], timed.parts[0])
    description = relation.text(timed.description) if timed.description else NULL
    if timed.dictionary is not None:
        table, key, label = timed.dictionary
        relation, description = _described(reader, relation, find(table), (key,), label)
    parts = ", ".join(relation.text(part) for part in timed.parts)
    first = relation.text(timed.parts[0])
    number = relation.number(timed.value) if timed.value else NULL
    text = f"CASE WHEN {number} IS NULL THEN {relation.text(timed.text)} END" if timed.text else NULL
    event = Event(
        code=when_present(first, f"concat_ws('//', '{timed.prefix}', {parts})"),
        time=relation.time(*timed.time),
        numeric_value=number,
        text_value=text,
        description=description,
        result_column=timed.value,
        unit=relation.text(timed.unit) if timed.unit else NULL,
        has_unit_always=True,
    )
    return SourceTable(
        name=timed.table,
        relation=relation,
        subject=_SUBJECT,
        events=(event,),
        visit=_STAY if relation.has(_STAY) else None,
    )


def _microbiology(relation: Relation | None) -> SourceTable:
    name = "microbiologyevents"
    if relation is None:
        return SourceTable(name=name, relation=None)
    relation.require(_SUBJECT, "chartdate", "test_itemid", "org_itemid", "storedate")
    organism = relation.text("org_itemid")
    events = (
        Event(
            code=prefixed("MICROBIOLOGY_TEST//", relation.text("test_itemid")),
            time=relation.time("charttime", "chartdate"),
            description=relation.text("test_name"),
        ),
        Event(
            code=prefixed("MICROBIOLOGY_ORGANISM//", organism),
            time=relation.time("storetime", "storedate"),
            description=relation.text("org_name"),
        ),
    )
    return SourceTable(name=name, relation=relation, subject=_SUBJECT, events=events, visit=_STAY)


def _procedures(reader: Reader, find: Find) -> SourceTable:
    relation = find("procedures_icd")
    if relation is None:
        return SourceTable(name="procedures_icd", relation=None)
    relation.require(_SUBJECT, _STAY, "chartdate", "icd_code", "icd_version")
    relation, description = _described(
        reader, relation, find("d_icd_procedures"), ("icd_code", "icd_version"), "long_title"
    )
    event = Event(
        code=_icd(relation, {"9": "ICD9PROC//", "10": "ICD10PCS//"}),
        time=relation.time("chartdate"),
        description=description,
    )
    return SourceTable(name="procedures_icd", relation=relation, subject=_SUBJECT, events=(event,), visit=_STAY)


def _diagnoses(reader: Reader, admissions: Relation, find: Find) -> SourceTable:
    relation = find("diagnoses_icd")
    if relation is None:
        return SourceTable(name="diagnoses_icd", relation=None)
    relation.require(_SUBJECT, _STAY, "icd_code", "icd_version")
    relation, description = _described(
        reader, relation, find("d_icd_diagnoses"), ("icd_code", "icd_version"), "long_title"
    )
    relation = _with_end_of_stay(reader, relation, admissions)
    event = Event(
        code=_icd(relation, {"9": "ICD9CM//", "10": "ICD10CM//"}),
        time=relation.time("end_of_stay"),
        description=description,
    )
    return SourceTable(name="diagnoses_icd", relation=relation, subject=_SUBJECT, events=(event,), visit=_STAY)


def _drgs(reader: Reader, admissions: Relation, find: Find) -> SourceTable:
    relation = find("drgcodes")
    if relation is None:
        return SourceTable(name="drgcodes", relation=None)
    relation.require(_SUBJECT, _STAY, "drg_type", "drg_code")
    relation = _with_end_of_stay(reader, relation, admissions)
    event = Event(
        code=f"('DRG//' || {relation.text('drg_type')} || '//' || {relation.text('drg_code')})",
        time=relation.time("end_of_stay"),
        description=relation.text("description"),
    )
    return SourceTable(name="drgcodes", relation=relation, subject=_SUBJECT, events=(event,), visit=_STAY)


def _icd(relation: Relation, prefixes: dict[str, str]) -> str:
    """SQL of the ICD code without its dot, under the prefix of its version."""
    cases = " ".join(f"WHEN '{version}' THEN '{prefix}'" for version, prefix in prefixes.items())
    return f"(CASE {relation.text('icd_version')} {cases} END || upper(replace({relation.text('icd_code')}, '.', '')))"


def _end_of_stay(admissions: Relation) -> Time:
    """The discharge; for a stay that ended in death the death, which the paperwork follows by minutes."""
    discharge, died = admissions.time("dischtime"), admissions.time("deathtime")
    return Time(parsed=f"least({discharge.parsed}, {died.parsed})", stated=discharge.stated, column="dischtime")


def _with_end_of_stay(reader: Reader, relation: Relation, admissions: Relation) -> Relation:
    """The relation with the column `end_of_stay`, looked up by stay."""
    stays = (
        f"(SELECT {admissions.identifier(_STAY)} AS stay, "
        f"timezone('UTC', min({_end_of_stay(admissions).parsed})) AS end_of_stay FROM {admissions.sql} GROUP BY stay)"
    )
    return reader.relation(
        relation.name,
        f"(SELECT record.*, end_of_stay FROM {relation.sql} AS record "
        f"LEFT JOIN {stays} ON stay = {relation.identifier(_STAY)})",
    )


def _described(
    reader: Reader,
    relation: Relation,
    dictionary: Relation | None,
    keys: tuple[str, ...],
    label: str,
) -> tuple[Relation, str]:
    """The relation joined with a dictionary of its codes, and the SQL of the code's description."""
    if dictionary is None:
        return relation, NULL
    dictionary.require(*keys, label)
    # A dictionary may write its codes with or without the dot that the records have or lack.
    names = [f"dictionary_{key}" for key in keys]
    columns = ", ".join(
        f"replace({dictionary.text(key)}, '.', '') AS {name}" for key, name in zip(keys, names, strict=True)
    )
    match = " AND ".join(
        f"{name} = replace({relation.text(key)}, '.', '')" for key, name in zip(keys, names, strict=True)
    )
    labelled = (
        f"(SELECT {columns}, min({dictionary.text(label)}) AS dictionary_label FROM {dictionary.sql} "
        f"GROUP BY {', '.join(map(quote_name, names))})"
    )
    joined = reader.relation(relation.name, f"(SELECT * FROM {relation.sql} LEFT JOIN {labelled} ON {match})")
    return joined, "dictionary_label"
