"""What an import says of files that it cannot read: which, where and why, and no cell of a patient's record."""

from __future__ import annotations

import io
import sqlite3
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehrtrack.data.events import open_dataset
from ehrtrack.data.importing import import_dataset
from ehrtrack.errors import DataError

PERSON = "person_id,gender_concept_id,year_of_birth\n1,8507,1950\n2,8532,1960\n"
HEAD = "person_id,condition_concept_id,condition_start_date,note\n"


def refused(tmp_path: Path, *, source: str = "omop", path: str = "", **files: str | bytes) -> str:
    """The message of an import that is refused, and leaves nothing behind."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, bytes) else content.encode()
        (raw / name.replace("__", ".")).write_bytes(text)
    with pytest.raises(DataError) as raised:
        import_dataset(source, raw / path, tmp_path / "out", progress=lambda line: None)
    assert [left.name for left in tmp_path.iterdir()] == ["raw"]
    return str(raised.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"1,7,2010-01-01,Sm\xe9th\n", "it is not UTF-8"),
        (b'1,7,2010-01-01,"Smith\n', "a quotation mark is not closed"),
        (b"1,7,2010-01-01,a,Smith\n", "it has 5 cells; needed: 4"),
        (b"1,7,Smith\n", "it has 3 cells; needed: 4"),
        (b"1,7,2010-01-01," + b"Smith" * 500_000 + b"\n", "it is longer than 2000000 bytes"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_by_file_line_and_reason_alone(
    row: bytes, said: str, tmp_path: Path
) -> None:
    text = HEAD.encode() + b"1,5,2010-01-01,\n" + row
    message = refused(tmp_path, person__csv=PERSON, condition_occurrence_1__csv=HEAD, condition_occurrence_2__csv=text)
    assert f"condition_occurrence_2.csv: CSV Error on Line: 3, {said}" in message
    assert "Sm" not in message


def test_line_ends_that_change_within_a_file_are_told(tmp_path: Path) -> None:
    message = refused(tmp_path, person__csv=PERSON.replace("1950\n", "1950\r\n"))
    assert "person.csv: its lines end in different ways" in message


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_may_end_as_on_other_systems(end: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "person.csv").write_bytes(PERSON.replace("\n", end).encode())
    import_dataset("omop", tmp_path / "raw", tmp_path / "out", progress=lambda line: None)
    events = open_dataset(tmp_path / "out").scan().collect()
    births = events.filter(pl.col("code") == "MEDS_BIRTH")["time"].to_list()
    assert births == [datetime(1950, 1, 1), datetime(1960, 1, 1)]


@pytest.mark.parametrize("source", ["omop", "synthea", "mimic-iv"])
def test_a_file_without_a_header_does_not_have_its_first_patient_told(source: str, tmp_path: Path) -> None:
    name = "person__csv" if source == "omop" else "patients__csv"
    stays = "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type\n"
    files = {name: "1,8507,1950-01-02,john smith\n2,8532,1960-01-02,jane\n", "admissions__csv": stays}
    message = refused(tmp_path, source=source, **files)
    assert "a first line of data instead of names (masked: 9, 9999, 9999-99-99, aaaa aaaaa)" in message
    assert "smith" not in message


def test_a_column_that_is_asked_for_and_stands_twice_is_refused(tmp_path: Path) -> None:
    conditions = "person_id,condition_concept_id,condition_start_date,condition_start_date\n1,7,2010-01-01,2011-01-01\n"
    message = refused(tmp_path, person__csv=PERSON, condition_occurrence__csv=conditions)
    assert "table condition_occurrence: column condition_start_date stands more than once in the header" in message


def test_a_column_that_nobody_asks_for_may_stand_twice(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    lines = PERSON.splitlines()
    text = "\n".join([f"{lines[0]},x,x_5,x", *(f"{line},a,b,c" for line in lines[1:])]) + "\n"
    (tmp_path / "raw" / "person.csv").write_text(text)
    report = import_dataset("omop", tmp_path / "raw", tmp_path / "out", progress=lambda line: None)
    assert report.n_births == 2


def test_a_text_of_parquet_that_is_not_utf8_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "whole.parquet").unlink(missing_ok=True)
    frame = pl.DataFrame({"subject_id": [1, 1], "time": [datetime(2010, 1, 1)] * 2, "code": ["Smith123"] * 2})
    frame.write_parquet(tmp_path / "whole.parquet", compression="uncompressed")
    broken = (tmp_path / "whole.parquet").read_bytes().replace(b"Smith123", b"Smith\xff\xfe3")
    (tmp_path / "whole.parquet").unlink()
    message = refused(tmp_path, source="meds", data__parquet=broken)
    assert "data.parquet" in message
    assert "Smith" not in message


def test_unreadable_times_are_shown_masked(tmp_path: Path) -> None:
    message = refused(tmp_path, person__csv=PERSON, condition_occurrence__csv=HEAD + "1,7,John Smith,\n")
    assert "1 of 1 times are unreadable (for example 'aaaa aaaaa', its digits and letters masked)" in message


@pytest.mark.parametrize(("start", "stop"), [(100, None), (30_000, None), (8_192, 40_000)])
def test_a_damaged_sqlite_file_is_named(start: int, stop: int | None, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "whole.db") as database:
        database.execute("CREATE TABLE person (person_id, gender_concept_id, year_of_birth)")
        database.executemany("INSERT INTO person VALUES (?, 8507, 1950)", [(n,) for n in range(20_000)])
    database.close()
    content = (tmp_path / "whole.db").read_bytes()
    (tmp_path / "whole.db").unlink()
    damaged = content[:start] if stop is None else content[:start] + bytes(stop - start) + content[stop:]
    message = refused(tmp_path, path="cdm.db", cdm__db=damaged)
    assert "cdm.db cannot be read" in message
    assert message.endswith("is it damaged?")
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("table", "when"), [("person", "birth_datetime"), ("condition_occurrence", "condition_start_datetime")]
)
def test_a_time_that_duckdb_cannot_hold_is_named_by_file_and_column(table: str, when: str, tmp_path: Path) -> None:
    """Parquet holds milliseconds until the year 292,278,994, and DuckDB until 294,247."""
    beyond = pa.array([2**62], pa.timestamp("ms"))
    tables = {
        "person": {"person_id": [1], "gender_concept_id": [8507], "year_of_birth": [1950]},
        "condition_occurrence": {"person_id": [1], "condition_concept_id": [7], "condition_start_date": ["2010-01-01"]},
    }
    files = {}
    for name, columns in tables.items():
        file = io.BytesIO()
        pq.write_table(pa.table(columns | ({when: beyond} if name == table else {})), file)
        files[f"{name}__parquet"] = file.getvalue()
    message = refused(tmp_path, **files)
    assert f"column {when} of " in message
    assert f"{table}.parquet cannot be read" in message


def test_a_time_that_duckdb_cannot_hold_is_named_where_another_table_is_made_of_it(tmp_path: Path) -> None:
    raw = tmp_path / "raw" / "hosp"
    raw.mkdir(parents=True)
    patients = {"subject_id": [1], "gender": ["F"], "anchor_age": [60], "anchor_year": [2150], "dod": [""]}
    stay = {"subject_id": [1], "hadm_id": [11], "admittime": ["2150-01-01 10:00:00"], "admission_type": ["URGENT"]}
    times = {"dischtime": ["2150-01-05 12:00:00"], "deathtime": pa.array([2**62], pa.timestamp("ms"))}
    pq.write_table(pa.table(patients), raw / "patients.parquet")
    pq.write_table(pa.table(stay | times | {"race": ["WHITE"]}), raw / "admissions.parquet")
    with pytest.raises(DataError, match=r"column deathtime of .*admissions\.parquet cannot be read"):
        import_dataset("mimic-iv", tmp_path / "raw", tmp_path / "out", progress=lambda line: None)
