"""Every import source, over tiny data in its own form: three subjects, of whom one dies.

A new source is tested as soon as there is `source_NAME.py` beside this file, with a function ``make`` that writes such
data; without one, the first test fails and says so.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from meds.schema import CodeMetadataSchema, DataSchema, DatasetMetadataSchema

from ehrtrack import plugins
from ehrtrack.data.events import open_dataset
from ehrtrack.data.importing import import_dataset
from ehrtrack.data.importing.report import ImportReport
from ehrtrack.errors import DataError

SOURCES = plugins.names("data.sources")
# Every maker's data: births 1950, 1960, 1970; subject 2 dies on 2010-05-05 and has an event after that.


def write(folder: Path, **tables: str) -> None:
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text.strip() + "\n")


def make_synthea(folder: Path) -> Path | None:
    write(
        folder,
        patients="Id,BIRTHDATE,DEATHDATE,GENDER,RACE,ETHNICITY\na,1950-01-01,,F,white,nonhispanic\n"
        "b,1960-01-01,2010-05-05,M,black,nonhispanic\nc,1970-01-01,,F,asian,hispanic",
        encounters="Id,START,PATIENT,ENCOUNTERCLASS,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION\n"
        "e1,2009-01-01T10:00:00Z,a,inpatient,1,Stay,,\ne2,2011-01-01T10:00:00Z,b,wellness,2,Late,,\n"
        "e3,2012-01-01T10:00:00Z,c,wellness,2,Check,9,Reason",
    )
    return None


def make_omop(folder: Path) -> Path | None:
    write(
        folder,
        person="person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth\n-7,8532,1950,1,1\n"
        "2,8507,1960,,\n3,8532,1970,1,1",
        death="person_id,death_date\n2,2010-05-05",
        CONDITION_OCCURRENCE="PERSON_ID,CONDITION_CONCEPT_ID,CONDITION_START_DATE\n-7,5,2009-01-01\n"
        "2,5,2011-01-01\n3,5,2012-01-01",
    )
    return None


def make_mimic_iv(folder: Path) -> Path | None:
    (folder / "hosp").mkdir()
    write(
        folder / "hosp",
        patients="subject_id,gender,anchor_age,anchor_year,dod\n1,F,59,2009,\n2,M,50,2010,2010-05-05\n3,F,42,2012,",
        admissions="subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,discharge_location,race\n"
        "1,10,2009-01-01 10:00:00,2009-01-03 10:00:00,,URGENT,HOME,WHITE\n"
        "2,20,2011-01-01 10:00:00,2011-01-02 10:00:00,,URGENT,HOME,WHITE\n"
        "3,30,2012-01-01 10:00:00,2012-01-02 10:00:00,,ELECTIVE,HOME,ASIAN",
    )
    return None


def make_events_csv(folder: Path) -> Path | None:
    write(
        folder,
        people="who,born,died,sex\na,19500101,,F\nb,19600101,20100505,M\nc,19700101,,F",
        claims="who,day,dx1,dx2\na,20090101,4019,25000\nb,20110101,4280,\nc,20120101,4019,",
    )
    config = folder / "columns.toml"
    config.write_text(
        """
        [[table]]
        files = "people.csv"
        subject = "who"
        birth = "born"
        death = "died"
        time_format = "%Y%m%d"
        roster = true
        static = [{columns = ["sex"], prefix = "GENDER//"}]
        [[table]]
        files = "claims.csv"
        subject = "who"
        time = "day"
        time_format = "%Y%m%d"
        codes = [{columns = ["dx*"], prefix = "ICD9CM//"}]
        """
    )
    return config


def make_meds(folder: Path) -> Path | None:
    (folder / "data").mkdir()
    rows = [
        (1, None, "GENDER//F"),
        (1, "1950-01-01", "MEDS_BIRTH"),
        (1, "2009-01-01", "A"),
        (2, "1960-01-01", "MEDS_BIRTH"),
        (2, "2010-05-05", "MEDS_DEATH"),
        (2, "2011-01-01", "A"),
        (3, "1970-01-01", "MEDS_BIRTH"),
        (3, "2012-01-01", "B"),
    ]
    frame = pl.DataFrame(rows, schema=["subject_id", "time", "code"], orient="row")
    frame = frame.with_columns(pl.col("time").str.to_datetime("%Y-%m-%d", time_unit="us"))
    frame.write_parquet(folder / "data" / "0.parquet")
    return None


MAKERS: dict[str, Callable[[Path], Path | None]] = {
    "synthea": make_synthea,
    "omop": make_omop,
    "mimic-iv": make_mimic_iv,
    "events-csv": make_events_csv,
    "meds": make_meds,
}
for file in sorted(Path(__file__).parent.glob("source_*.py")):
    MAKERS[file.stem.removeprefix("source_").replace("_", "-")] = importlib.import_module(file.stem).make


def imported(source: str, tmp_path: Path) -> tuple[ImportReport, pl.DataFrame]:
    folder = tmp_path / "raw"
    folder.mkdir()
    config = MAKERS[source](folder)
    report = import_dataset(source, folder, tmp_path / "out", config=config, events_per_shard=4)
    return report, open_dataset(tmp_path / "out").scan().collect()


def test_every_source_has_data_here() -> None:
    assert sorted(MAKERS) == SOURCES


@pytest.mark.parametrize("source", SOURCES)
def test_written_dataset_is_valid_meds(source: str, tmp_path: Path) -> None:
    report, events = imported(source, tmp_path)
    shards = sorted((tmp_path / "out" / "data").iterdir())
    assert len(shards) == report.n_shards > 1
    seen: set[int] = set()
    for shard in shards:
        table = pq.read_table(shard)
        assert table.schema.equals(pa.schema([*DataSchema.schema(), pa.field("visit_id", pa.string())]))
        frame = pl.read_parquet(shard)
        assert frame.equals(frame.sort("subject_id", "time", nulls_last=False, maintain_order=True))
        subjects = set(frame["subject_id"])
        assert seen.isdisjoint(subjects)
        seen |= subjects
    codes = pq.read_table(tmp_path / "out" / "metadata" / "codes.parquet")
    assert codes.schema.equals(CodeMetadataSchema.schema())
    DatasetMetadataSchema.validate(json.loads((tmp_path / "out" / "metadata" / "dataset.json").read_text()))
    assert set(codes["code"].to_pylist()) == set(events["code"])
    mapped = pl.read_parquet(tmp_path / "out" / "metadata" / "subjects.parquet")
    assert set(mapped["subject_id"]) == seen


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_written_after_death(source: str, tmp_path: Path) -> None:
    report, events = imported(source, tmp_path)
    deaths = events.filter(pl.col("code") == "MEDS_DEATH")
    assert deaths["time"].dt.strftime("%Y-%m-%d").to_list() == ["2010-05-05"]
    late = events.join(deaths.select("subject_id", death="time"), on="subject_id").filter(
        pl.col("time") > pl.col("death")
    )
    assert late.is_empty()
    assert report.dropped()["after death"] > 0


@pytest.mark.parametrize("source", SOURCES)
def test_births_are_those_of_the_source(source: str, tmp_path: Path) -> None:
    _, events = imported(source, tmp_path)
    births = events.filter(pl.col("code") == "MEDS_BIRTH")["time"].dt.year()
    assert sorted(births) == [1950, 1960, 1970]


@pytest.mark.parametrize("source", SOURCES)
def test_each_event_is_kept_or_dropped_for_one_reason(source: str, tmp_path: Path) -> None:
    report, events = imported(source, tmp_path)
    for table in report.tables:
        assert table.n_events == table.n_kept + sum(table.dropped.values())
    assert sum(table.n_kept for table in report.tables) == len(events) == report.n_events
    assert report.n_subjects == 3
    assert "after death" in report.to_text()


@pytest.mark.parametrize("source", SOURCES)
def test_importing_twice_gives_the_same_fingerprint(source: str, tmp_path: Path) -> None:
    imported(source, tmp_path)
    config = tmp_path / "raw" / "columns.toml"
    import_dataset(
        source,
        tmp_path / "raw",
        tmp_path / "again",
        config=config if config.exists() else None,
        events_per_shard=4,
    )
    assert open_dataset(tmp_path / "out").fingerprint() == open_dataset(tmp_path / "again").fingerprint()


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "events-csv"])
def test_an_empty_folder_is_refused_and_leaves_nothing(source: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"found|needed"):
        import_dataset(source, tmp_path / "raw", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
