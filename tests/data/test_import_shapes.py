"""Sources in the shapes that they are met in: versions, files in parts and packed, results, units, double persons."""

from __future__ import annotations

import bz2
import sqlite3
import zipfile
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from ehrtrack.data.events import open_dataset
from ehrtrack.data.importing import import_dataset
from ehrtrack.data.importing.report import ImportReport
from ehrtrack.errors import DataError

PERSON = "person_id,gender_concept_id,year_of_birth\n1,8507,1950\n2,8532,1960\n"
CONDITIONS = "person_id,condition_concept_id,condition_start_date\n1,7,2010-01-02\n"
MEASURED = "person_id,measurement_concept_id,measurement_date,value_as_number\n1,5,2010-01-02,1.5\n"


def read(source: str, path: Path, settings: str = "") -> tuple[ImportReport, pl.DataFrame]:
    toml = path.parent / "source.toml"
    toml.write_text(settings)
    out = path.parent / f"{path.name}-out"
    report = import_dataset(source, path, out, config=toml, progress=lambda line: None)
    return report, open_dataset(out).scan().collect()


def files(folder: Path, **tables: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def of_code(events: pl.DataFrame, code: str) -> list[datetime]:
    return events.filter(pl.col("code") == code)["time"].to_list()


# Files


def test_tables_are_read_from_every_packing(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", person=PERSON)
    (raw / "condition_occurrence.csv.bz2").write_bytes(bz2.compress(CONDITIONS.encode()))
    with zipfile.ZipFile(raw / "measurement.csv.zip", "w") as archive:
        archive.writestr("measurement.csv", MEASURED)
    with pa.CompressedOutputStream(str(raw / "drug_exposure.csv.zst"), "zstd") as file:
        file.write(b"person_id,drug_concept_id,drug_exposure_start_date\n2,8,2010-01-03\n")
    report, events = read("omop", raw)
    assert {table.name: table.n_kept for table in report.tables} == {
        "person": 4,
        "condition_occurrence": 1,
        "drug_exposure": 1,
        "measurement": 1,
    }
    assert events.filter(pl.col("code") == "MEASUREMENT//5")["numeric_value"].to_list() == [1.5]
    assert not report.unread


def test_a_damaged_packing_is_named(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", person=PERSON)
    (raw / "measurement.csv.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=r"measurement\.csv\.zip cannot be"):
        read("omop", raw)


@pytest.mark.parametrize(
    "names",
    [
        ("measurement_1.csv", "measurement_2.csv"),
        ("measurement-00000-of-00002.csv", "measurement-00001-of-00002.csv"),
        ("measurement000000000000.csv", "measurement000000000001.csv"),
        ("measurement/part-0.csv", "measurement/part-1.csv"),
        ("measurement/year=2010/part-0.csv", "measurement/year=2011/part-0.csv"),
    ],
)
def test_a_table_in_parts_is_read_whole(names: tuple[str, str], tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", person=PERSON)
    for number, name in enumerate(names):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_text(MEASURED.replace("2010", str(2010 + number)))
    report, events = read("omop", raw)
    assert of_code(events, "MEASUREMENT//5") == [datetime(2010, 1, 2), datetime(2011, 1, 2)]
    assert not report.unread


def test_a_table_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", person=PERSON, measurement=MEASURED)
    (raw / "measurement.txt").write_text(MEASURED)
    with pytest.raises(DataError, match=r"measurement is in .* more than once: measurement\.csv, measurement\.txt"):
        read("omop", raw)


def test_tables_that_the_source_does_not_know_are_named(tmp_path: Path) -> None:
    names = ("condition_era", "drug_era", "episode", "specimen", "visit_detail")
    raw = files(tmp_path / "raw", person=PERSON, **dict.fromkeys(names, "a\n1\n"))
    report, _ = read("omop", raw)
    assert report.unread == tuple(f"{name}.csv" for name in names)
    assert "Not read: condition_era.csv, drug_era.csv" in report.to_text()


def test_an_sqlite_file_is_read_like_the_folder_of_its_tables(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", person=PERSON, condition_occurrence=CONDITIONS)
    database = tmp_path / "cdm.db"
    with sqlite3.connect(database) as connection:
        for path in sorted(raw.iterdir()):
            frame = pl.read_csv(path)
            connection.execute(f"CREATE TABLE {path.stem.upper()} ({', '.join(frame.columns)})")
            marks = ", ".join("?" * frame.width)
            connection.executemany(f"INSERT INTO {path.stem} VALUES ({marks})", frame.rows())
        connection.execute("CREATE TABLE drug_era (a)")
    report, events = read("omop", database)
    assert events.equals(read("omop", raw)[1])
    assert report.unread == ("drug_era",)


def test_a_file_that_is_no_database_is_refused_without_asking_the_network(tmp_path: Path) -> None:
    path = tmp_path / "cdm.db"
    path.write_text("no database")
    with pytest.raises(DataError, match="cannot be opened as a DuckDB or SQLite file"):
        read("omop", path)


def test_texts_that_r_put_in_quotation_marks_are_read_without_them(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", person=PERSON, condition_occurrence=CONDITIONS)
    concepts = 'concept_id\tconcept_name\tvocabulary_id\tconcept_code\n7\t"Pain"\t"SNOMED"\t"22253000"\n'
    (raw / "concept.tsv").write_text(concepts + '8\tthe "hard" way\tSNOMED\t1\n')
    _, events = read("omop", raw)
    assert of_code(events, "SNOMED//22253000") == [datetime(2010, 1, 2)]


# OMOP


def test_the_death_of_omop_6_is_in_person(tmp_path: Path) -> None:
    raw = files(
        tmp_path / "raw",
        person="person_id,gender_concept_id,year_of_birth,death_datetime\n"
        "1,8507,1950,2010-05-06 07:08:00\n2,8532,1960,",
        visit_occurrence="person_id,visit_concept_id,visit_start_date\n1,9202,2011-01-01\n2,9202,2011-01-01\n",
    )
    report, events = read("omop", raw)
    assert of_code(events, "MEDS_DEATH") == [datetime(2010, 5, 6, 7, 8)]
    assert report.dropped() == {"after death": 1}


def test_the_clock_of_a_measurement_may_stand_beside_its_date(tmp_path: Path) -> None:
    head = "person_id,measurement_concept_id,measurement_date,measurement_time\n"
    rows = "1,5,2010-01-02,14:05:00\n1,6,2010-01-02,\n1,7,2010-01-02,1900-01-01 09:30:00\n"
    _, events = read("omop", files(tmp_path / "raw", person=PERSON, measurement=head + rows))
    times = [of_code(events, f"MEASUREMENT//{n}")[0] for n in (5, 6, 7)]
    assert times == [datetime(2010, 1, 2, 14, 5), datetime(2010, 1, 2), datetime(2010, 1, 2, 9, 30)]


def test_a_clock_beside_its_date_may_have_a_zone_and_is_never_guessed(tmp_path: Path) -> None:
    head = "person_id,measurement_concept_id,measurement_date,measurement_time\n"
    good = "1,5,2010-01-02,14:00:00+02:00\n1,6,2010-01-02 00:00:00,09:30:15.123\n1,7,2010-01-02,23:00-05:00\n"
    odd = "1,8,2010-01-02,02:30 PM\n1,8,2010-01-02,25:61\n1,8,2010-01-023,10:00\n"
    report, events = read("omop", files(tmp_path / "raw", person=PERSON, measurement=head + good + odd))
    assert of_code(events, "MEASUREMENT//5") == [datetime(2010, 1, 2, 12)]
    assert of_code(events, "MEASUREMENT//6") == [datetime(2010, 1, 2, 9, 30, 15, 123000)]
    assert of_code(events, "MEASUREMENT//7") == [datetime(2010, 1, 3, 4)]
    assert report.dropped() == {"unreadable time": 3}


def test_a_date_and_the_clock_beside_it_follow_the_stated_formats(tmp_path: Path) -> None:
    head = "person_id,measurement_concept_id,measurement_date,measurement_time\n"
    measured = head + "1,5,02/01/2010,14:05:00\n1,6,02/01/2010,\n"
    conditions = CONDITIONS.replace("2010-01-02", "02/01/2010 09:30") + "2,8,03/01/2010\n"
    raw = files(tmp_path / "raw", person=PERSON, measurement=measured, condition_occurrence=conditions)
    _, events = read("omop", raw, 'time_format = ["%d/%m/%Y", "%d/%m/%Y %H:%M"]')
    times = [of_code(events, f"MEASUREMENT//{n}")[0] for n in (5, 6)]
    assert times == [datetime(2010, 1, 2, 14, 5), datetime(2010, 1, 2)]
    assert of_code(events, "CONDITION//7") == [datetime(2010, 1, 2, 9, 30)]
    assert of_code(events, "CONDITION//8") == [datetime(2010, 1, 3)]


def test_identifiers_of_concepts_are_whole_numbers_or_nothing(tmp_path: Path) -> None:
    rows = "1,7.0,2010-01-02\n1,7.6,2010-01-02\n1,1e+05,2010-01-02\n1,9223372036854775808,2010-01-02\n"
    raw = files(tmp_path / "raw", person=PERSON, condition_occurrence=CONDITIONS.split("\n")[0] + "\n" + rows)
    report, events = read("omop", raw)
    found = events.filter(pl.col("code").str.starts_with("CONDITION"))["code"].to_list()
    assert found == ["CONDITION//100000", "CONDITION//7"]
    assert report.dropped() == {"no code": 2}


def test_results_that_are_concepts_and_units_of_one_code_are_kept_apart(tmp_path: Path) -> None:
    raw = files(
        tmp_path / "raw",
        person=PERSON,
        concept="concept_id,concept_name,vocabulary_id,concept_code\n100,Virus,LOINC,94500-6\n11,Positive,LOINC,LA1\n"
        "200,Glucose,LOINC,2345-7\n840,mg per dL,UCUM,mg/dL\n753,mmol per L,UCUM,mmol/L\n300,Sodium,LOINC,2951-2\n",
        measurement="person_id,measurement_concept_id,measurement_date,value_as_number,value_as_concept_id,"
        "unit_concept_id\n1,100,2020-01-01,,11,\n1,100,2020-01-01,,12,\n1,200,2020-01-01,90,,840\n"
        "2,200,2020-01-01,5,,753\n1,300,2020-01-01,140,,753\n",
        observation="person_id,observation_concept_id,observation_date,value_as_concept_id,qualifier_concept_id\n"
        "1,100,2020-02-01,11,840\n",
    )
    report, events = read("omop", raw)
    results = events.filter(pl.col("time") > datetime(2000, 1, 1)).sort("time", "code", "text_value")
    assert results.select("code", "numeric_value", "text_value").rows() == [
        ("LOINC//2345-7//mg/dL", 90.0, None),
        ("LOINC//2345-7//mmol/L", 5.0, None),
        ("LOINC//2951-2", 140.0, None),  # one unit: the code stays as it is
        ("LOINC//94500-6//12", None, "12"),  # the concept table does not have it
        ("LOINC//94500-6//Positive", None, "Positive"),
        ("LOINC//94500-6//Positive, mg per dL", None, "Positive, mg per dL"),
    ]
    assert not report.dropped()


VISITS = (
    "visit_occurrence_id,person_id,visit_concept_id,visit_start_datetime,visit_start_date,visit_end_datetime,"
    "visit_end_date\n10,1,9201,2010-05-01 10:00:00,2010-05-01,2010-05-06 07:08:00,2010-05-06\n"
    "11,1,9202,2010-07-01 10:00:00,2010-07-01,2010-07-01 11:00:00,2010-07-01\n"
)
AT_VISITS = (
    "person_id,condition_concept_id,condition_start_date,visit_occurrence_id\n1,5,2010-05-01,10\n"
    "1,6,2009-01-01,10\n1,7,2010-07-01,11\n"  # known before; of an outpatient visit
)


def test_diagnoses_of_an_inpatient_visit_are_known_when_it_ends(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", person=PERSON, visit_occurrence=VISITS, condition_occurrence=AT_VISITS)
    report, events = read("omop", raw)
    times = [of_code(events, f"CONDITION//{n}")[0] for n in (5, 6, 7)]
    assert times == [datetime(2010, 5, 6, 7, 8), datetime(2009, 1, 1), datetime(2010, 7, 1)]
    assert "1 conditions of inpatient visits are put at the visit's end" in report.to_text()


def test_diagnoses_may_stay_at_their_own_start(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", person=PERSON, visit_occurrence=VISITS, condition_occurrence=AT_VISITS)
    _, events = read("omop", raw, 'conditions_at = "start"')
    assert of_code(events, "CONDITION//5") == [datetime(2010, 5, 1)]


def test_diagnoses_of_an_inpatient_visit_without_a_readable_end_are_told(tmp_path: Path) -> None:
    visits = VISITS.replace("2010-05-06 07:08:00,2010-05-06", "06.05.2010,")
    raw = files(tmp_path / "raw", person=PERSON, visit_occurrence=visits, condition_occurrence=AT_VISITS)
    report, events = read("omop", raw)
    assert of_code(events, "CONDITION//5") == [datetime(2010, 5, 1)]
    assert "2 conditions of inpatient visits stay at their start, as the visit's end is missing" in report.to_text()


def test_observation_that_ends_in_the_future_is_open_and_said_to_be(tmp_path: Path) -> None:
    head = "person_id,observation_period_start_date,observation_period_end_date\n"
    raw = files(
        tmp_path / "raw",
        person=PERSON,
        condition_occurrence=CONDITIONS,
        observation_period=head + "1,2005-01-01,9999-12-31\n2,1990-01-01,2099-12-31\n2,1980-01-01,1985-01-01\n",
    )
    report, events = read("omop", raw)
    assert of_code(events, "OBSERVATION_PERIOD//END") == [datetime(1985, 1, 1)]
    assert "2 periods end after today" in report.to_text()
    assert report.last_time == datetime(2010, 1, 2)


# One subject, two of what there is one of


@pytest.mark.parametrize("source", ["omop", "synthea", "meds"])
def test_of_two_sexes_the_first_is_kept_and_the_other_counted(source: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    if source == "omop":
        files(raw, person=PERSON + "2,8507,1960\n", condition_occurrence=CONDITIONS)
        sexes = {"GENDER//M", "GENDER//F"}
    elif source == "synthea":
        files(raw, patients="Id,BIRTHDATE,DEATHDATE,GENDER\n1,1950-01-01,,M\n2,1960-01-01,,F\n2,1960-01-01,,M\n")
        sexes = {"GENDER//M", "GENDER//F"}
    else:
        times = [None, datetime(2010, 1, 1), None, None]
        codes = ["SEX//M", "A", "SEX//F", "SEX//M"]
        frame = pl.DataFrame({"subject_id": [1, 1, 2, 2], "time": times, "code": codes})
        frame.write_parquet(raw / "0.parquet", mkdir=True)
        sexes = {"SEX//M", "SEX//F"}
    report, events = read(source, raw)
    found = events.filter(pl.col("code").is_in(sexes)).sort("subject_id")
    assert [code[-1] for code in found["code"]] == ["M", "F"]
    assert report.dropped()["conflicting sex"] == 1


def test_omop_measurements_may_have_units_and_no_column_of_numbers(tmp_path: Path) -> None:
    raw = files(
        tmp_path / "raw",
        person="person_id,gender_concept_id,year_of_birth\n1,8507,1950\n",
        measurement="person_id,measurement_concept_id,measurement_date,value_as_concept_id,unit_concept_id\n"
        "1,100,2010-05-02,11,840\n1,101,2010-05-03,,\n",
    )
    report, _ = read("omop", raw)
    (measurements,) = [table for table in report.tables if table.name == "measurement"]
    results = measurements.results
    assert (results.n_numeric, results.n_text, results.n_empty) == (0, 1, 1)


@pytest.mark.parametrize(
    ("table", "header"),
    [
        ("condition_occurrence", "person_id,condition_concept_id,condition_start_date,visit_occurrence_id"),
        ("observation_period", "person_id,observation_period_start_date,observation_period_end_date"),
        ("measurement", "person_id,measurement_concept_id,measurement_date,value_as_number,unit_concept_id"),
        ("death", "person_id,death_date"),
    ],
)
def test_an_omop_table_may_be_a_header_alone(table: str, header: str, tmp_path: Path) -> None:
    raw = files(
        tmp_path / "raw",
        person="person_id,gender_concept_id,year_of_birth\n1,8507,1950\n",
        visit_occurrence="visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_end_date\n"
        "7,1,9201,2010-05-01,2010-05-06\n",
        **{table: f"{header}\n"},
    )
    report, _ = read("omop", raw)
    assert [of.n_rows for of in report.tables if of.name == table] == [0]


# Synthea


def test_synthea_of_2017_has_encounters_without_class_and_start(tmp_path: Path) -> None:
    raw = files(
        tmp_path / "raw",
        patients="ID,BIRTHDATE,DEATHDATE,GENDER,RACE,ETHNICITY\na,1950-02-03,,F,white,irish\n",
        encounters="ID,DATE,PATIENT,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION\ne1,2010-01-02,a,185347001,Visit,,\n",
    )
    _, events = read("synthea", raw)
    assert of_code(events, "SNOMED-CT//185347001") == [datetime(2010, 1, 2)]


def test_synthea_before_3_dates_procedures_and_codes_no_imaging(tmp_path: Path) -> None:
    raw = files(
        tmp_path / "raw",
        patients="Id,BIRTHDATE,DEATHDATE,GENDER\na,1950-02-03,,F\n",
        procedures="DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n2010-01-02T05:00:00Z,a,e1,430193006,Review\n",
        imaging_studies="Id,DATE,PATIENT,ENCOUNTER,BODYSITE_CODE\ni1,2010-01-02T05:00:00Z,a,e1,40983000\n",
        observations="DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,VALUE,UNITS\n2010-01-02,a,,2339-0,Glucose,90,mg/dL\n"
        "2010-01-03,a,,2339-0,Glucose,5,mmol/L\n2010-01-03,a,,8302-2,Height,170,cm\n",
    )
    report, events = read("synthea", raw)
    assert of_code(events, "SNOMED-CT//430193006") == [datetime(2010, 1, 2, 5)]
    assert report.unread == ("imaging_studies (1 rows without a column PROCEDURE_CODE)",)
    units = events.filter(pl.col("numeric_value").is_not_null())["code"].sort().to_list()
    assert units == ["LOINC//2339-0//mg/dL", "LOINC//2339-0//mmol/L", "LOINC//8302-2"]


def test_synthea_without_the_codes_of_a_table_that_always_had_them_is_refused(tmp_path: Path) -> None:
    raw = files(
        tmp_path / "raw",
        patients="Id,BIRTHDATE,DEATHDATE,GENDER\na,1950-02-03,,F\n",
        procedures="DATE,PATIENT,ENCOUNTER,CODE_x,DESCRIPTION\n2010-01-02T05:00:00Z,a,e1,430193006,Review\n",
    )
    with pytest.raises(DataError, match="table procedures: column code not found"):
        read("synthea", raw)


# MIMIC-IV


def test_mimic_iv_names_the_table_that_a_dropped_one_was_made_of(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    files(
        raw / "hosp",
        patients="subject_id,gender,anchor_age,anchor_year,dod\n1,F,60,2150,\n",
        admissions="subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,race\n"
        "1,11,,2150-01-05 12:00:00,,URGENT,WHITE\n",
    )
    with pytest.raises(DataError, match=r"nothing is left of admissions \(race of the first stay\)"):
        read("mimic-iv", raw)


def test_mimic_iv_before_2_keeps_patients_in_core_and_race_as_ethnicity(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    files(
        raw / "core",
        patients="subject_id,gender,anchor_age,anchor_year,dod\n1,F,60,2150,\n",
        admissions="subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,ethnicity\n"
        "1,11,2150-01-01 10:00:00,2150-01-05 12:00:00,,URGENT,WHITE\n",
    )
    head = "subject_id,hadm_id,itemid,charttime,valuenum,valueuom\n"
    files(raw / "hosp", labevents=head + "1,11,50809,2150-01-02 10:00:00,285,mg/dL\n")
    _, events = read("mimic-iv", raw)
    assert of_code(events, "MEDS_BIRTH") == [datetime(2090, 1, 1)]
    assert of_code(events, "LAB//50809//mg/dL") == [datetime(2150, 1, 2, 10)]
    assert of_code(events, "RACE//WHITE") == [None]


def test_a_year_of_birth_of_mimic_that_no_calendar_has_is_counted(tmp_path: Path) -> None:
    head = "subject_id,gender,anchor_age,anchor_year,dod\n1,F,60,2150,\n"
    odd = "2,F,-9223372036854775808,9223372036854775807,\n3,F,,2150,\n4,M,-900,2150,\n5,M,40.5,2150,\n"
    stays = "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type\n1,11,2150-01-01,2150-01-05,,URGENT\n"
    raw = files(tmp_path / "raw", patients=head + odd.replace("2150", "2151"), admissions=stays)
    with pytest.raises(DataError, match=r"column anchor_year / anchor_age: 4 of 5 times are unreadable"):
        read("mimic-iv", raw, "max_unreadable_births = 1")
    more = "".join(f"{n},F,60,2150,\n" for n in range(6, 12))
    report, events = read("mimic-iv", files(raw, patients=head + odd + more), "max_unreadable_births = 1")
    assert report.dropped() == {"unreadable time": 4}
    assert set(of_code(events, "MEDS_BIRTH")) == {datetime(2090, 1, 1)}


# MEDS


def meds(folder: Path, codes: list[str]) -> Path:
    times = [datetime(1950 + 20 * place, 1, 1) for place in range(len(codes))]
    frame = pl.DataFrame({"subject_id": [7] * len(codes), "time": times, "code": codes})
    frame.write_parquet(folder / "data" / "0.parquet", mkdir=True)
    (folder / "metadata").mkdir()
    return folder


def test_birth_and_death_may_have_other_codes(tmp_path: Path) -> None:
    settings = 'birth_codes = ["DOB"]\ndeath_codes = ["DOD", "EXPIRED"]'
    report, events = read("meds", meds(tmp_path / "raw", ["DOB", "A", "EXPIRED"]), settings)
    assert (report.n_births, report.n_deaths) == (1, 1)
    assert events["code"].to_list() == ["MEDS_BIRTH", "A", "MEDS_DEATH"]


def test_a_dataset_that_spells_birth_otherwise_is_told_how_to_say_so(tmp_path: Path) -> None:
    report, _ = read("meds", meds(tmp_path / "raw", ["DOB", "A", "DOD"]))
    assert "Subjects without a birth: 1 of 1" in report.to_text()
    assert "codes DOB, DOD may be births or deaths: say birth_codes, death_codes" in report.to_text()


def test_parents_of_codes_and_the_split_of_subjects_are_kept(tmp_path: Path) -> None:
    raw = meds(tmp_path / "raw", ["MEDS_BIRTH", "A"])
    codes = pl.DataFrame({"code": ["A"], "description": ["Alpha"], "parent_codes": [["X//1", "X//2"]]})
    codes.write_parquet(raw / "metadata" / "codes.parquet")
    splits = pl.DataFrame({"subject_id": [7, 8], "split": ["held_out", "train"]})
    splits.write_parquet(raw / "metadata" / "subject_splits.parquet")
    report, _ = read("meds", raw)
    folder = tmp_path / "raw-out" / "metadata"
    kept = pl.read_parquet(folder / "codes.parquet").filter(pl.col("code") == "A")
    assert kept["parent_codes"].to_list() == [["X//1", "X//2"]]
    assert pl.read_parquet(folder / "subject_splits.parquet").rows() == [(7, "held_out")]
    assert "The source's own split of subjects is kept" in report.to_text()


def test_a_unit_beside_the_number_parts_the_scales_of_one_code(tmp_path: Path) -> None:
    rows = [(1, "GLUCOSE", 90.0, "mg/dL"), (1, "GLUCOSE", 5.0, "mmol/L"), (1, "SODIUM", 140.0, "mmol/L")]
    frame = pl.DataFrame(rows, ["subject_id", "code", "numeric_value", "unit"], orient="row")
    frame = frame.with_columns(time=pl.lit(datetime(2010, 1, 1)))
    frame.write_parquet(tmp_path / "raw" / "data" / "0.parquet", mkdir=True)
    _, events = read("meds", tmp_path / "raw")
    assert events["code"].to_list() == ["GLUCOSE//mg/dL", "GLUCOSE//mmol/L", "SODIUM"]
