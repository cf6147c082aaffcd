"""Units: converted by the user's table alike in every source, and else a part of the code; glucose worked by hand.

90 mg/dL of glucose (180.16 g/mol) are 90 * 0.0555 = 4.995 mmol/L; 98.6 degrees Fahrenheit are 37 Celsius.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ehrtrack.data.importing import import_dataset
from ehrtrack.data.importing.report import ImportReport
from ehrtrack.errors import ConfigError

TO_MMOL = "code,from,to,factor,offset\n{code},mg/dL,mmol/L,0.0555,\n"
GLUCOSE = {4.995, 5.0}


def read(source: str, raw: Path, *, units: str = "", settings: str = "") -> tuple[ImportReport, dict[str, set[float]]]:
    """The report, and the results of each code with numbers, to three decimals."""
    config = raw.parent / "settings" / f"{len(list(raw.parent.glob('out*')))}.toml"
    config.parent.mkdir(exist_ok=True)
    if units:
        (config.parent / "units.csv").write_text(units)
    config.write_text(('units = "units.csv"\n' if units else "") + settings)
    out = raw.parent / f"out{config.stem}"
    report = import_dataset(source, raw, out, config=config, progress=lambda _: None)
    events = pl.concat([pl.read_parquet(file) for file in (out / "data").glob("*.parquet")]).drop_nulls("numeric_value")
    values = {code: set() for code in sorted(events["code"].unique())}
    for code, value in events.select("code", "numeric_value").iter_rows():
        values[code].add(round(value, 3))
    return report, values


def files(folder: Path, **tables: str) -> Path:
    for name, text in tables.items():
        file = folder / f"{name.replace('__', '/')}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def omop(folder: Path) -> Path:
    return files(
        folder / "raw",
        person="person_id,gender_concept_id,year_of_birth\n1,8507,1950\n",
        concept="concept_id,concept_name,vocabulary_id,concept_code\n7,Glucose,LOINC,2345-7\n"
        "8,mg,UCUM,mg/dL\n9,mmol,UCUM,mmol/L\n",
        measurement="person_id,measurement_concept_id,measurement_date,value_as_number,unit_concept_id\n"
        "1,7,2020-01-01,90,8\n1,7,2020-01-02,5,9\n",
    )


def synthea(folder: Path) -> Path:
    return files(
        folder / "raw",
        patients="Id,BIRTHDATE,DEATHDATE,GENDER,RACE,ETHNICITY\n1,1950-01-01,,M,white,nonhispanic\n",
        observations="DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,VALUE,UNITS\n"
        "2020-01-01,1,,2345-7,Glucose,90,mg/dL\n2020-01-02,1,,2345-7,Glucose,5,mmol/L\n",
    )


def mimic_iv(folder: Path) -> Path:
    stay = "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,discharge_location,race\n"
    return files(
        folder / "raw",
        hosp__patients="subject_id,gender,anchor_age,anchor_year,dod\n1,M,50,2150,\n",
        hosp__admissions=stay + "1,1,2150-01-01 08:00:00,2150-01-05 08:00:00,,URGENT,HOME,WHITE\n",
        hosp__labevents="subject_id,hadm_id,itemid,charttime,value,valuenum,valueuom\n"
        "1,1,50931,2150-01-02 08:00:00,90,90,mg/dL\n1,1,50931,2150-01-02 09:00:00,5,5,mmol/L\n",
    )


def events_csv(folder: Path) -> Path:
    return files(
        folder / "raw", labs="id,day,name,result,unit\n1,2020-01-01,GLUC,90,mg/dL\n1,2020-01-02,GLUC,5,mmol/L\n"
    )


LONG = """
[[table]]
files = "labs.csv"
subject = "id"
time = "day"
[[table.codes]]
columns = ["name"]
prefix = "LAB//"
value = "result"
unit = "unit"
"""


def meds(folder: Path, codes: tuple[str, str], units: tuple[str, str] | None = None) -> Path:
    columns = {"subject_id": [1, 1], "time": [datetime(2020, 1, 1), datetime(2020, 1, 2)], "code": list(codes)}
    columns |= {"numeric_value": [90.0, 5.0]} | ({"unit": list(units)} if units else {})
    pl.DataFrame(columns).write_parquet(folder / "raw" / "data" / "0.parquet", mkdir=True)
    return folder / "raw"


def test_omop_and_synthea_have_units_in_the_code_only_while_there_are_several(tmp_path: Path) -> None:
    for source, make, code in (("omop", omop, "LOINC//2345-7"), ("synthea", synthea, "LOINC//2345-7")):
        raw = make(tmp_path / source)
        report, mixed = read(source, raw)
        assert mixed == {f"{code}//mg/dL": {90}, f"{code}//mmol/L": {5}}
        assert f"2 results are of 1 codes with several units, which stay a part of the code, such as {code}" in (
            report.to_text()
        )
        assert "(1 in mg/dL, 1 in mmol/L)" in report.to_text()
        report, converted = read(source, raw, units=TO_MMOL.format(code="LOINC//2345-7$"))
        assert converted == {code: GLUCOSE}
        assert "1 results of LOINC//2345-7$ are converted from mg/dL to mmol/L" in report.to_text()
        assert "several units" not in report.to_text()


def test_mimic_iv_and_events_csv_always_have_the_unit_in_the_code(tmp_path: Path) -> None:
    for source, make, code, settings in (
        ("mimic-iv", mimic_iv, "LAB//50931", ""),
        ("events-csv", events_csv, "LAB//GLUC", LONG),
    ):
        raw = make(tmp_path / source)
        report, mixed = read(source, raw, settings=settings)
        assert mixed == {f"{code}//mg/dL": {90}, f"{code}//mmol/L": {5}}
        assert f"2 results are of 1 codes with several units, which stay a part of the code, such as {code}" in (
            report.to_text()
        )
        report, converted = read(source, raw, units=TO_MMOL.format(code=code), settings=settings)
        assert converted == {f"{code}//mmol/L": GLUCOSE}
        assert f"1 results of {code} are converted from mg/dL to mmol/L" in report.to_text()


@pytest.mark.parametrize(
    ("codes", "units", "before", "after"),
    [
        (("G//mg/dL", "G//mmol/L"), None, {"G//mg/dL": {90}, "G//mmol/L": {5}}, {"G//mmol/L": GLUCOSE}),
        (("G", "G"), ("mg/dL", "mmol/L"), {"G//mg/dL": {90}, "G//mmol/L": {5}}, {"G": GLUCOSE}),
        (("G", "G"), ("mg/dL", "mg/dL"), {"G": {90, 5}}, {"G": {4.995, 0.278}}),
        (("G//mg/dL", "G//mmol/L"), ("mg/dL", "mmol/L"), {"G//mg/dL": {90}, "G//mmol/L": {5}}, {"G//mmol/L": GLUCOSE}),
    ],
    ids=["at the end of the code", "in a column", "one unit in a column", "in both"],
)
def test_a_meds_dataset_has_units_in_its_codes_or_in_a_column(
    codes: tuple[str, str], units: tuple[str, str] | None, before: object, after: object, tmp_path: Path
) -> None:
    raw = meds(tmp_path, codes, units)
    assert read("meds", raw)[1] == before
    assert read("meds", raw, units=TO_MMOL.format(code="G"))[1] == after


def test_a_fixed_code_with_several_units_is_not_one_scale(tmp_path: Path) -> None:
    fixed = LONG.replace('columns = ["name"]\nprefix = "LAB//"', 'code = "GLUCOSE"')
    _, values = read("events-csv", events_csv(tmp_path), settings=fixed)
    assert values == {"GLUCOSE//mg/dL": {90}, "GLUCOSE//mmol/L": {5}}


def test_results_without_a_unit_can_be_converted_and_offsets_are_added(tmp_path: Path) -> None:
    raw = files(tmp_path / "raw", stay="id,day,TempF,HR\n1,2020-01-01,98.6,70\n1,2020-01-02,32,\n")
    wide = """
    [[table]]
    files = "stay.csv"
    subject = "id"
    time = "day"
    [[table.codes]]
    measured = ["TempF", "HR"]
    prefix = "VITAL//"
    """
    units = "code,from,to,factor,offset\nVITAL//TempF$,,Cel,0.5555555555555556,-17.77777777777778\n"
    report, values = read("events-csv", raw, units=units, settings=wide)
    assert values == {"VITAL//HR": {70}, "VITAL//TempF//Cel": {37, 0}}
    assert "2 results of VITAL//TempF$ are converted from no unit to Cel" in report.to_text()


def test_a_unit_that_the_table_does_not_name_stays_and_is_told(tmp_path: Path) -> None:
    raw = events_csv(tmp_path)
    with (raw / "labs.csv").open("a") as file:
        file.write("1,2020-01-03,GLUC,7,g/L\n1,2020-01-04,GLUC,high,mg/dL\n")
    units = TO_MMOL.format(code="LAB//GLUC") + "LAB//SODIUM,mg/dL,mmol/L,0.435,0\n"
    report, values = read("events-csv", raw, units=units, settings=LONG)
    assert values == {"LAB//GLUC//g/L": {7}, "LAB//GLUC//mmol/L": GLUCOSE}
    said = report.to_text()
    assert "1 results of LAB//GLUC are converted from mg/dL to mmol/L" in said  # of numbers: "high" is none
    assert "3 results are of 1 codes with several units" in said
    assert "(2 in mmol/L, 1 in g/L)" in said
    assert "The conversion of LAB//SODIUM from mg/dL to mmol/L found no result" in said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("code,from,to\nG,mg/dL,mmol/L\n", "has no column factor"),
        ("code,from,to,factor\nG,mg/dL,mmol/L,\n", "line 2: could not convert"),
        ("code,from,to,factor\nG,mg/dL,mmol/L,0\n", "line 2: factor is 0"),
        ("code,from,to,factor\nG,mg/dL,mmol/L,nan\n", "line 2: factor is nan"),
        ("code,from,to,factor\n(,mg/dL,mmol/L,2\n", "line 2: code pattern"),
        ("code,from,to,factor\n,mg/dL,mmol/L,2\n", "line 2: code is ''"),
    ],
)
def test_a_table_of_units_that_cannot_be_used_is_refused_with_its_line(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        read("events-csv", events_csv(tmp_path), units=text, settings=LONG)


def test_a_table_of_units_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the table of units .*nowhere.csv cannot be read"):
        read("events-csv", events_csv(tmp_path), settings='units = "nowhere.csv"\n' + LONG)
