"""Small valid sources whose files are damaged at random: an import accounts for every row, or says what is wrong.

`EHRTRACK_MUTATIONS` is the number of examples a source; the suite takes few, always the same ones.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrtrack.data.importing import import_dataset
from ehrtrack.data.importing.report import ImportReport
from ehrtrack.errors import EhrtrackError

N_EXAMPLES = int(os.environ.get("EHRTRACK_MUTATIONS", "25"))
SECRET = "Q7"
"""Stands in every text that a mutation writes: none may be told of in a message."""

Rows = list[list[object]]


@dataclass
class Table:
    """A file of a source: its header and rows, kept as CSV or Parquet."""

    header: list[str]
    rows: Rows
    n_counted: bool = True
    """Whether the report has the table's rows, which it has not of a table that is only looked up."""


Tables = dict[str, Table]


def table(header: str, *rows: str, n_counted: bool = True) -> Table:
    return Table(header.split(","), [list(row.split(",")) for row in rows], n_counted)


def events_csv() -> Tables:
    return {
        "people.csv": table("who,sex,born,died", "1,F,1950-01-01,", "2,M,1960-02-03,2012-01-01", "3,F,1970-01-01,"),
        "stays.csv": table("stay,patient,admitted", "10,1,2010-05-01 10:00", "11,2,2011-01-01", n_counted=False),
        "labs.csv": table(
            "stay,offset,lab,result,unit", "10,5,K,4.1,mmol/L", "10,65,K,4.4,mmol/L", "11,-3,PCR,positive,"
        ),
        "wide.csv": table(
            "who,at,hr,sbp,dead", "1,2010-05-02,60,120,0", "2,2011-01-02T10:30,61,,1", "3,2011-01-02,,118,0"
        ),
    }


EVENTS_CSV = {
    "people.csv": """
[[table]]
files = "people.csv"
subject = "who"
roster = true
birth = "born"
death = "died"
static = [{ columns = ["sex"], prefix = "GENDER//" }]
""",
    "labs.csv": """
[[table]]
files = "labs.csv"
join = [{ files = "stays.csv", on = "stay" }]
subject = "patient"
visit = "stay"
time = { offset = "offset", unit = "minutes", anchor = "admitted" }
codes = [{ columns = ["lab"], value = "result", unit = "unit", prefix = "LAB//" }]
""",
    "wide.csv": """
[[table]]
files = "wide.csv"
subject = "who"
time = "at"
codes = [{ measured = ["hr", "sbp"], prefix = "VITAL//" }, { code = "DEAD", where = { dead = "1" } }]
""",
}


def omop() -> Tables:
    return {
        "person.csv": table(
            "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,gender_source_value",
            "1,8507,1950,3,4,M",
            "2,8532,1960,,,F",
        ),
        "death.csv": table("person_id,death_date,death_datetime", "2,2012-01-01,2012-01-01 10:00:00"),
        "visit_occurrence.csv": table(
            "visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_end_date",
            "7,1,9201,2010-05-01,2010-05-06",
            "8,2,9202,2010-06-01,2010-06-01",
        ),
        "condition_occurrence.csv": table(
            "person_id,condition_concept_id,condition_start_date,visit_occurrence_id",
            "1,5,2010-05-01,7",
            "2,6,2010-06-01,8",
        ),
        "measurement.csv": table(
            "person_id,measurement_concept_id,measurement_date,measurement_time,value_as_number,value_as_concept_id,"
            "unit_concept_id",
            "1,100,2010-05-02,10:30:00,90,,840",
            "1,100,2010-05-03,,5,,753",
            "2,101,2010-06-01,,,11,",
        ),
        "observation_period.csv": table(
            "person_id,observation_period_start_date,observation_period_end_date",
            "1,2005-01-01,2012-01-01",
            "2,2005-01-01,9999-12-31",
        ),
        "concept.csv": table(
            "concept_id,concept_name,vocabulary_id,concept_code",
            "100,Glucose,LOINC,2345-7",
            "840,mg,UCUM,mg/dL",
            n_counted=False,
        ),
    }


def mimic_iv() -> Tables:
    return {
        "hosp/patients.csv": table(
            "subject_id,gender,anchor_age,anchor_year,dod", "1,F,60,2150,", "2,M,50,2140,2145-01-02"
        ),
        "hosp/admissions.csv": table(
            "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,race",
            "1,11,2150-01-01 10:00:00,2150-01-05 12:00:00,,URGENT,WHITE",
            "2,12,2144-01-01 10:00:00,2144-01-05 12:00:00,,URGENT,ASIAN",
        ),
        "hosp/labevents.csv": table(
            "subject_id,hadm_id,itemid,charttime,valuenum,value,valueuom",
            "1,11,50809,2150-01-02 10:00:00,285,285,mg/dL",
            "2,12,50810,2144-01-02 10:00:00,,NEG,",
        ),
        "hosp/diagnoses_icd.csv": table(
            "subject_id,hadm_id,seq_num,icd_code,icd_version", "1,11,1,I10,10", "2,12,1,4139,9"
        ),
        "hosp/d_labitems.csv": table("itemid,label", "50809,Glucose", "50810,Culture", n_counted=False),
        "icu/procedureevents.csv": table("subject_id,hadm_id,itemid,starttime", "1,11,225401,2150-01-02 11:00:00"),
    }


def synthea() -> Tables:
    return {
        "patients.csv": table(
            "Id,BIRTHDATE,DEATHDATE,GENDER,RACE,ETHNICITY", "a,1950-01-01,,F,white,irish", "b,1960-01-01,2012-01-01,M,,"
        ),
        "encounters.csv": table(
            "Id,START,PATIENT,ENCOUNTERCLASS,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION",
            "e1,2010-01-01T10:00:00Z,a,inpatient,185347001,Visit,195662009,Sore throat",
            "e2,2011-01-01T10:00:00Z,b,wellness,185347001,Visit,,",
        ),
        "observations.csv": table(
            "DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,VALUE,UNITS",
            "2010-01-01T10:00:00Z,a,e1,2339-0,Glucose,90,mg/dL",
            "2011-01-01T10:00:00Z,b,e2,2339-0,Glucose,5,mmol/L",
            "2011-01-02T10:00:00Z,b,,72166-2,Smoking,Never,",
        ),
        "procedures.csv": table("DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION", "2010-01-02,a,e1,430193006,Review"),
    }


def meds() -> Tables:
    return {
        "data/0.parquet": Table(
            ["subject_id", "time", "code", "numeric_value", "text_value", "hadm_id"],
            [
                [1, datetime(1950, 1, 1), "MEDS_BIRTH", None, None, None],
                [1, None, "GENDER//F", None, None, None],
                [1, datetime(2010, 1, 1, 10), "LAB//K", 4.5, None, "11"],
                [1, datetime(2010, 1, 2, 10), "PCR", None, "positive", "11"],
            ],
        ),
        "data/1.parquet": Table(
            ["subject_id", "time", "code", "numeric_value", "text_value", "hadm_id"],
            [
                [2, datetime(1960, 1, 1), "MEDS_BIRTH", None, None, None],
                [2, datetime(2011, 1, 1), "LAB//K", 5.5, None, "12"],
                [2, datetime(2012, 1, 1), "MEDS_DEATH", None, None, None],
            ],
        ),
        "metadata/codes.parquet": Table(["code", "description"], [["LAB//K", "Potassium"]], n_counted=False),
        "metadata/subject_splits.parquet": Table(
            ["subject_id", "split"], [[1, "train"], [2, "held_out"]], n_counted=False
        ),
    }


SOURCES: dict[str, Callable[[], Tables]] = {
    "events-csv": events_csv,
    "meds": meds,
    "mimic-iv": mimic_iv,
    "omop": omop,
    "synthea": synthea,
}

NEEDED = {"people.csv", "stays.csv", "person.csv", "patients.csv", "hosp/patients.csv", "hosp/admissions.csv"}
NEEDED |= {"data/0.parquet"}
"""Files that their source cannot do without."""

# Mutations: of a cell, of a header, of a column, of a file.

CELLS: tuple[str, ...] = (
    *("", " ", "NA", "nan", r"\N", ".", "-", "0", "-1", "00012", "1e+05", "1E5", "1e400", "-0", "inf", "-Infinity"),
    *(
        "9" * 30,
        str(2**63),
        str(2**63 - 1),
        str(-(2**63)),
        "4,5",
        "1.234,5",
        "1,234.5",
        "٤٥",
        "²",
        "½",
        "0x1F",
        "1_000",
        "1e-400",
    ),
    *(
        "0000-01-01",
        "99-12-31",
        "20190",
        "200100",
        "20190-03-12",
        "0044-03-15 (BC)",
        "1700-01-01",
        "2999-01-01",
        "9999-12-31",
    ),
    *("2010-02-30", "2010-01-05T25:61", "25:61", "02:30 PM", "2010-01-05 10:00 Europe/Berlin", "2010-01-05 10:00 EST"),
    *(
        "10:00:00+02:00",
        "5/1/10",
        "2010-01-05T10:00:00+14:59",
        "2010-01-05T23:59:60Z",
        "-2010-01-05",
        "infinity",
        "epoch",
        "now",
    ),
    *(
        "２０１０-01-01",
        "\u200b1",
        "1\t",
        "\u00a01",
        'a"b',
        '"',
        "'",
        "a\nb",
        "a\r\nb",
        "a\x00b",
        ";",
        "|",
        "a//b",
        "{n}",
        "%s",
    ),
    *("', 1); DROP TABLE person; --", "\ufeff1", "\U0001f600", "MEDS_BIRTH", "MEDS_DEATH", "GENDER//X", "true", "NULL"),
)


@st.composite
def cells(draw: st.DrawFn) -> str:
    kind = draw(st.integers(0, 3))
    if kind < 2:
        return draw(st.sampled_from(CELLS))
    if kind == 2:
        return draw(st.sampled_from(CELLS)) + SECRET
    return draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=6)) + SECRET


def to_csv(content: Table, delimiter: str = ",", newline: str = "\n", encoding: str = "utf-8") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline)
    writer.writerow(content.header)
    writer.writerows(content.rows)
    return text.getvalue().encode(encoding)


def to_parquet(content: Table, *, stored: dict[str, tuple[pa.DataType, object, bool]] | None = None) -> bytes:
    """The table in Parquet, `stored` in other types: by column the type, a value of it, and whether that is in all."""
    arrays = []
    for place, name in enumerate(content.header):
        cells = [row[place] for row in content.rows]
        if len({type(cell) for cell in cells if cell is not None}) > 1:
            cells = [None if cell is None else str(cell) for cell in cells]
        array = pa.array(cells)
        if stored and name in stored:
            array = _stored(array, *stored[name])
        arrays.append(array)
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, content.header), file)
    return file.getvalue()


def _stored(array: pa.Array, kind: pa.DataType, value: object, is_in_all: bool) -> pa.Array:
    """The column as another type, or that many values of it."""
    try:
        if not is_in_all:
            return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    return pa.array([value] * len(array), kind)


# Types that a column may be stored in, and a value where its own cells are none.
KINDS: tuple[tuple[pa.DataType, object], ...] = (
    (pa.null(), None),
    (pa.int8(), -100),
    (pa.int32(), 2010),
    (pa.uint64(), 2**64 - 1),
    (pa.int64(), 2**62),
    (pa.float64(), 1e300),
    (pa.float64(), float("inf")),
    (pa.float16(), 1.5),
    (pa.float32(), float("nan")),
    (pa.bool_(), True),
    (pa.string(), SECRET),
    (pa.large_string(), SECRET),
    (pa.binary(), b"\xff\x00" + SECRET.encode()),
    (pa.decimal128(20, 4), Decimal("2010.5000")),
    (pa.decimal128(38, 0), Decimal(10) ** 37),
    (pa.date32(), date(2010, 1, 5)),
    (pa.date64(), date(2010, 1, 5)),
    (pa.time64("us"), time(3)),
    (pa.duration("us"), timedelta(days=3)),
    (pa.duration("ns"), timedelta(days=3)),
    (pa.timestamp("s"), 2**40),
    (pa.timestamp("ms"), datetime(9999, 1, 5)),
    (pa.timestamp("ms"), 2**62),
    (pa.timestamp("us"), datetime(1, 1, 1)),
    (pa.timestamp("us"), 2**62),
    (pa.timestamp("us"), -(2**62)),
    (pa.timestamp("us", "UTC"), 2**62),
    (pa.timestamp("ns"), 2**62),
    (pa.timestamp("ns", "Asia/Shanghai"), datetime(2010, 1, 5)),
    (pa.timestamp("us", "+02:00"), datetime(2010, 1, 5)),
    (pa.dictionary(pa.int32(), pa.string()), SECRET),
    (pa.list_(pa.string()), ["a", SECRET]),
    (pa.struct([("a", pa.int64())]), {"a": 1}),
)


@dataclass
class Damage:
    """A source's files after a mutation: their tables where they can still be counted, and their bytes."""

    tables: Tables
    files: dict[str, bytes]
    folders: list[str]
    toml: str = ""


def written(tables: Tables) -> dict[str, bytes]:
    return {
        name: to_parquet(content) if name.endswith(".parquet") else to_csv(content) for name, content in tables.items()
    }


# What a user may set, so that a fault in a birth or death does not always end the import.
TOMLS = (
    "",
    *["max_unreadable_births = 1\nmax_unreadable_deaths = 1\n"] * 3,
    'max_unreadable_births = 1\nmax_unreadable_deaths = 1\ntime_zone = "America/New_York"\n',
    'max_unreadable_births = 1\nmax_unreadable_deaths = 1\ndecimal = ","\nmax_result_levels = 0\n',
    "max_unreadable_births = 1\nmax_unreadable_deaths = 1\nyears = [1, 9998]\n",
)


@st.composite
def damaged(draw: st.DrawFn, source: str) -> Damage:
    tables = SOURCES[source]()
    for name in draw(st.sets(st.sampled_from(sorted(set(tables) - NEEDED)))):  # few tables are read sooner
        del tables[name]
    result = Damage(tables, written(tables), [], draw(st.sampled_from(TOMLS)))
    kinds = [_damage_cells, _damage_cells, _damage_header, _damage_types, _damage_file]
    draw(st.sampled_from(kinds))(draw, result)
    return result


def _pick(draw: st.DrawFn, result: Damage) -> tuple[str, Table]:
    name = draw(st.sampled_from(sorted(result.tables)))
    return name, result.tables[name]


def _damage_cells(draw: st.DrawFn, result: Damage) -> None:
    name, content = _pick(draw, result)
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.integers(0, len(content.rows) - 1))
        content.rows[row][draw(st.integers(0, len(content.header) - 1))] = draw(cells())
    for _ in range(draw(st.sampled_from([0, 0, 1, 5]))):  # a few rows as they were, or a row twice
        content.rows.append(list(draw(st.sampled_from(content.rows))))
    if name.endswith(".parquet"):
        result.files[name] = to_parquet(content)
    else:
        newline = draw(st.sampled_from(["\n", "\n", "\r\n"]))
        result.files[name] = to_csv(content, draw(st.sampled_from([",", ",", ";", "|"])), newline)


def _damage_header(draw: st.DrawFn, result: Damage) -> None:
    name, content = _pick(draw, result)
    place = draw(st.integers(0, len(content.header) - 1))
    other = draw(st.integers(0, len(content.header) - 1))
    change = draw(
        st.sampled_from(["rename", "swap", "double", "case", "space", "empty", "cell", "none", "rows", "drop"])
    )
    header = content.header
    if change == "rename":
        header[place] += "_x"
    elif change == "swap":
        header[place], header[other] = header[other], header[place]
    elif change == "double":
        header[place] = header[other]
    elif change == "case":
        header[place] = header[place].swapcase()
    elif change == "space":
        header[place] = f" {header[place]}\t"
    elif change == "empty":
        header[place] = ""
    elif change == "cell":
        header[place] = draw(st.sampled_from(CELLS))
    elif change == "none":
        content.header = [f"{cell}" for cell in content.rows[0]]
        content.rows = content.rows[1:]
    elif change == "rows":
        content.rows = []
    else:
        del header[place]
        content.rows = [row[:place] + row[place + 1 :] for row in content.rows]
    if name.endswith(".parquet"):
        if len(set(content.header)) == len(content.header) and "" not in content.header:
            result.files[name] = to_parquet(content)
        else:
            del result.tables[name]
        return
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"]))
    result.files[name] = to_csv(content, draw(st.sampled_from([",", ";", "\t", "|", ":"])), encoding=encoding)
    if encoding in ("utf-16", "utf-32"):
        del result.tables[name]


def _damage_types(draw: st.DrawFn, result: Damage) -> None:
    """A column of another type, in Parquet."""
    name, content = _pick(draw, result)
    stored = {draw(st.sampled_from(content.header)): (*draw(st.sampled_from(KINDS)), draw(st.booleans()))}
    del result.files[name], result.tables[name]
    new = str(Path(name).with_suffix(".parquet"))
    result.files[new], result.tables[new] = to_parquet(content, stored=stored), content


def _damage_file(draw: st.DrawFn, result: Damage) -> None:
    name, content = _pick(draw, result)
    bytes_ = result.files.pop(name)
    del result.tables[name]
    change = draw(
        st.sampled_from(["cut", "flip", "empty", "gz", "zst", "bz2", "cut gz", "cut zst", "folder", "latin", "raw"])
    )
    if change == "cut":
        result.files[name] = bytes_[: draw(st.integers(0, len(bytes_)))]
    elif change == "flip":
        place = draw(st.integers(0, len(bytes_) - 1))
        result.files[name] = bytes_[:place] + draw(st.binary(min_size=1, max_size=3)) + bytes_[place + 1 :]
    elif change == "empty":
        result.files[name] = draw(st.sampled_from([b"", b"\n", b"\xef\xbb\xbf", b"\r\n\r\n", b"\x00", b",,\n"]))
    elif change == "folder":
        result.folders.append(name)
    elif change == "latin":
        result.files[name] = bytes_ + b"\xe9\xff,"
    elif change == "raw":
        place = bytes_.find(b"\n") + 1
        result.files[name] = (
            bytes_[:place] + draw(st.sampled_from([b'"', b"\r", b"\x00", b"a\n", b',"', b"\n\n"])) + bytes_[place:]
        )
    else:
        ending = change.removeprefix("cut ")
        packed = (
            gzip.compress(bytes_)
            if ending == "gz"
            else pa.compress(bytes_, "zstd" if ending == "zst" else "gzip", asbytes=True)
        )
        if ending == "bz2":
            packed = draw(st.binary(max_size=30))
        if change.startswith("cut"):
            packed = packed[: draw(st.integers(0, len(packed) - 1))]
        result.files[f"{name}.{ending}"] = packed
        if change in ("gz", "zst") and ".csv" in name:
            result.tables[f"{name}.{ending}"] = content


def run(source: str, folder: Path, damage: Damage) -> ImportReport:
    for name, content in damage.files.items():
        (folder / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "raw" / name).write_bytes(content)
    for name in damage.folders:
        (folder / "raw" / name).mkdir(parents=True)
    toml = folder / "source.toml"
    names = {Path(name).name.split(".")[0]: Path(name).name for name in (*damage.files, *damage.folders)}
    text = damage.toml
    if source == "events-csv":
        text += "".join(part for name, part in EVENTS_CSV.items() if Path(name).stem in names)
    toml.write_text(re.sub(r'"(\w+)\.csv"', lambda match: f'"{names.get(match[1], match[0].strip(chr(34)))}"', text))
    return import_dataset(source, folder / "raw", folder / "out", config=toml, threads=1, progress=lambda line: None)


def check_account(report: ImportReport, folder: Path, damage: Damage) -> None:
    """Every row of every table is accounted for, and what the report says was kept is there."""
    written = pl.concat([pl.read_parquet(file) for file in sorted((folder / "out" / "data").glob("*.parquet"))])
    assert sum(table.n_kept for table in report.tables) == report.n_events == written.height
    for table in report.tables:
        assert table.n_events == table.n_kept + sum(table.dropped.values())
        assert table.n_events >= table.n_rows
    reported = {table.name.split(".")[0]: table.n_rows for table in report.tables}
    if "data" in reported:  # MEDS has one table of all files
        parts = [content for name, content in damage.tables.items() if name.startswith("data/")]
        assert reported["data"] == sum(len(part.rows) for part in parts) or len(parts) < 2
        return
    for name, content in damage.tables.items():
        if content.n_counted:
            assert reported[Path(name).name.split(".")[0]] == len(content.rows), name


def check_refusal(error: EhrtrackError, source: str, folder: Path, damage: Damage) -> None:
    """The message names a table, no cell's text, and nothing is left of the import."""
    message = str(error)
    stems = {Path(name).name.split(".")[0] for name in (*damage.files, *damage.folders, *SOURCES[source](), "data.")}
    assert any(stem in message for stem in stems), message
    assert SECRET not in message, message
    assert not (folder / "out").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["raw", "source.toml"]


def check(source: str, damage: Damage) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mutated-"))
    try:
        try:
            report = run(source, folder, damage)
        except EhrtrackError as error:
            check_refusal(error, source, folder, damage)
        else:
            check_account(report, folder, damage)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("source", SOURCES)
def test_sources_of_the_builders_are_imported_whole(source: str, tmp_path: Path) -> None:
    tables = SOURCES[source]()
    damage = Damage(tables, written(tables), [])
    report = run(source, tmp_path, damage)
    check_account(report, tmp_path, damage)
    assert not set(report.dropped()) - {"unreadable time", "no code"}


@pytest.mark.parametrize("source", SOURCES)
def test_every_row_of_a_damaged_source_is_accounted_for_or_the_fault_is_named(source: str) -> None:
    @settings(
        max_examples=N_EXAMPLES,
        deadline=None,
        derandomize="EHRTRACK_MUTATIONS" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(source))
    def every_example(damage: Damage) -> None:
        check(source, damage)

    every_example()
