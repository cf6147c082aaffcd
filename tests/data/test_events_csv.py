"""The source `events-csv`: offsets from an anchor, joined files, measured columns, conditions, one file a subject."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ehrtrack.data.events import open_dataset
from ehrtrack.data.importing import import_dataset
from ehrtrack.data.importing.report import ImportReport
from ehrtrack.errors import ConfigError, DataError

PROJECTS = Path(__file__).parents[2] / "projects"
START = datetime(2000, 1, 1)


def read(tmp_path: Path, toml: str | Path, **files: str) -> tuple[ImportReport, pl.DataFrame]:
    raw = tmp_path / "raw"
    raw.mkdir(exist_ok=True)
    for name, text in files.items():
        (raw / name.replace("__", ".")).write_text(text)
    if isinstance(toml, str):
        (tmp_path / "source.toml").write_text(toml)
        toml = tmp_path / "source.toml"
    report = import_dataset("events-csv", raw, tmp_path / "out", config=toml, progress=lambda line: None)
    return report, open_dataset(tmp_path / "out").scan().collect()


def test_minutes_from_a_date_become_times(tmp_path: Path) -> None:
    toml = """
    [[table]]
    files = "events.csv"
    subject = "stay"
    time = { offset = "minutes", unit = "minutes", anchor = "2000-01-01" }
    codes = [{ columns = ["code"], value = "val" }]
    """
    rows = "stay,minutes,code,val\n1,-30,K,4.5\n1,120,K,4.9\n2,15.5,K,5\n2,soon,K,6\n"
    report, events = read(tmp_path, toml, events__csv=rows)
    assert events["time"].to_list() == [
        datetime(1999, 12, 31, 23, 30),
        datetime(2000, 1, 1, 2),
        datetime(2000, 1, 1, 0, 15, 30),
    ]
    assert report.dropped() == {"unreadable time": 1}


OFFSETS = """
[[table]]
files = "events.csv"
subject = "stay"
time = { offset = "off", unit = "UNIT", anchor = "2000-01-01" }
codes = [{ columns = ["code"] }]
"""


@pytest.mark.parametrize("far", ["1e300", "-1e300", "4000000", "inf", "nan\t", "1e12"])
def test_an_offset_beyond_the_calendar_is_an_unreadable_time(far: str, tmp_path: Path) -> None:
    rows = f"stay,off,code\n1,1,K\n2,2,K\n3,{far},K\n"
    report, events = read(tmp_path, OFFSETS.replace("UNIT", "days"), events__csv=rows)
    assert events["time"].to_list() == [datetime(2000, 1, 2), datetime(2000, 1, 3)]
    assert report.dropped() == {"unreadable time": 1}


def test_an_anchor_beyond_the_calendar_makes_an_unreadable_time(tmp_path: Path) -> None:
    far = pl.Series("at", [0, 0, 2**63 - 10**9]).cast(pl.Datetime("us"))
    (tmp_path / "raw").mkdir()
    frame = pl.DataFrame({"stay": [1, 2, 3], "at": far, "off": [1, 2, 3], "code": ["K"] * 3})
    frame.write_parquet(tmp_path / "raw" / "events.parquet")
    toml = OFFSETS.replace("UNIT", "days").replace("2000-01-01", "at").replace("csv", "parquet")
    report, events = read(tmp_path, toml)
    assert events["time"].to_list() == [datetime(1970, 1, 2), datetime(1970, 1, 3)]
    assert report.dropped() == {"unreadable time": 1}


def test_hours_and_minutes_are_those_of_a_clock(tmp_path: Path) -> None:
    rows = "stay,off,code\n1,36:15,K\n2,00:59,K\n3,01:75,K\n"
    report, events = read(tmp_path, OFFSETS.replace("UNIT", "hh:mm"), events__csv=rows)
    assert events["time"].to_list() == [datetime(2000, 1, 2, 12, 15), datetime(2000, 1, 1, 0, 59)]
    assert report.dropped() == {"unreadable time": 1}


def test_offsets_have_the_decimal_mark_of_the_source(tmp_path: Path) -> None:
    rows = 'stay,off,code\n1,"1,5",K\n2,2,K\n'
    _, events = read(tmp_path, 'decimal = ","\n' + OFFSETS.replace("UNIT", "days"), events__csv=rows)
    assert events["time"].to_list() == [datetime(2000, 1, 2, 12), datetime(2000, 1, 3)]


def test_decimal_commas_are_refused_by_column(tmp_path: Path) -> None:
    cells = "".join(f'1,2010-01-{day:02},60,120,"{day},5",x,y\n' for day in range(1, 4))
    rows = "id,at,hr,sbp,dbp,status,kind\n" + cells
    with pytest.raises(DataError, match=r"wide\.csv, column dbp: 3 of 3 results have a comma"):
        read(tmp_path, WIDE, wide__csv=rows)


STAYS = "stay,patient,admitted,hospital_offset,age\n10,1,2010-05-01 10:00,-60,> 89\n11,2,2011-01-01,0,40\n"
JOINED = """
[[table]]
name = "stays"
files = "stays.csv"
subject = "patient"
roster = true
birth = { offset = "-age", unit = "years", anchor = "admitted", values = { "> 89" = "90" } }

[[table]]
files = "labs.csv"
join = [{ files = "stays.csv", on = ["stay_id", "stay"] }]
subject = "patient"
visit = "stay_id"
time = { offset = ["offset", "-hospital_offset"], unit = "minutes", anchor = "admitted" }
codes = [{ columns = ["lab"], value = "result" }]
"""


def test_subjects_and_anchors_may_stand_in_another_file(tmp_path: Path) -> None:
    labs = "stay_id,offset,lab,result\n10,5,NA2,140\n11,30,NA2,141\n12,1,NA2,142\n"
    report, events = read(tmp_path, JOINED, stays__csv=STAYS, labs__csv=labs)
    found = events.filter(pl.col("code") == "NA2").select("subject_id", "time", "visit_id", "numeric_value").rows()
    assert found == [
        (1, datetime(2010, 5, 1, 11, 5), "10", 140.0),
        (2, datetime(2011, 1, 1, 0, 30), "11", 141.0),
    ]
    assert events.filter(pl.col("code") == "MEDS_BIRTH")["time"].dt.year().to_list() == [1920, 1971]
    assert report.dropped() == {"no subject": 1}  # of stay 12 nobody tells whose it is


def test_a_join_that_would_double_rows_is_refused(tmp_path: Path) -> None:
    labs = "stay_id,offset,lab,result\n10,5,NA2,140\n"
    with pytest.raises(DataError, match=r"stays\.csv has 3 rows with a stay and 2 different ones"):
        read(tmp_path, JOINED, stays__csv=STAYS + "11,3,2012-01-01,0,50\n", labs__csv=labs)


def test_an_anchor_that_is_not_stated_makes_no_time(tmp_path: Path) -> None:
    labs = "stay_id,offset,lab,result\n10,5,NA2,140\n11,5,NA2,141\n"
    report, _ = read(tmp_path, JOINED, stays__csv=STAYS.replace("2011-01-01", ""), labs__csv=labs)
    assert report.dropped() == {"no time": 1, "no code": 1}  # a lab; a stay that states nothing but a birth


WIDE = """
[[table]]
files = "wide.csv"
subject = "id"
time = "at"
[[table.codes]]
measured = ["hr", "*bp"]
prefix = "VITAL//"
[[table.codes]]
code = "BP"
value = "sbp"
[[table.codes]]
code = "DIED"
where = { status = "dead", kind = "final" }
"""


def test_an_empty_cell_of_a_measured_column_is_no_event(tmp_path: Path) -> None:
    rows = "id,at,hr,sbp,dbp,status,kind\n1,2010-01-01,60,120,,alive,final\n1,2010-01-02,,,NaN,dead,draft\n"
    _, events = read(tmp_path, WIDE, wide__csv=rows + "1,2010-01-03,,high,80,dead,final\n")
    assert events.select("code", "numeric_value", "text_value").rows() == [
        ("BP", 120.0, None),
        ("VITAL//hr", 60.0, None),
        ("VITAL//sbp", 120.0, None),
        ("BP//high", None, "high"),
        ("DIED", None, None),
        ("VITAL//dbp", 80.0, None),
        ("VITAL//sbp//high", None, "high"),
    ]


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ('{ measured = ["hr"], columns = ["hr"] }', "give one of code"),
        ('{ measured = ["hr"], value = "hr" }', "hold their results themselves"),
        ('{ code = "A", time = { offset = "hr", unit = "weeks", anchor = "at" } }', "unit"),
    ],
)
def test_codes_that_contradict_themselves_are_refused(codes: str, said: str, tmp_path: Path) -> None:
    toml = f'[[table]]\nfiles = "wide.csv"\nsubject = "id"\ntime = "at"\ncodes = [{codes}]\n'
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, toml, wide__csv="id,at,hr\n1,2010-01-01,60\n")


def test_one_file_a_stay_of_the_challenge_of_2012_is_imported_by_the_table_that_ships(tmp_path: Path) -> None:
    head = "Time,Parameter,Value\n00:00,RecordID,132539\n00:00,Age,54\n00:00,Gender,0\n00:00,Height,-1\n"
    _, events = read(
        tmp_path,
        PROJECTS / "icu_mortality" / "import_challenge2012.toml",
        **{
            "132539__txt": head + "00:07,HR,73\n36:15,Na,137\n",
            "132540__txt": head.replace("0:00,Gender,0", "0:00,Gender,1"),
        },
    )
    assert set(events["subject_id"]) == {132539, 132540}
    first = events.filter(pl.col("subject_id") == 132539)
    assert first.filter(pl.col("time") >= START).select("time", "code", "numeric_value").rows() == [
        (START, "ICU//Height", None),
        (datetime(2000, 1, 1, 0, 7), "ICU//HR", 73.0),
        (datetime(2000, 1, 2, 12, 15), "ICU//Na", 137.0),
    ]
    assert events.filter(pl.col("code").str.starts_with("GENDER"))["code"].to_list() == ["GENDER//F", "GENDER//M"]
    assert first.filter(pl.col("code") == "MEDS_BIRTH")["time"].to_list() == [datetime(1945, 12, 31, 12)]  # 54 x 365.25


def test_one_file_a_stay_of_the_challenge_of_2019_is_imported_by_the_table_that_ships(tmp_path: Path) -> None:
    toml = PROJECTS / "icu_mortality" / "import_challenge2019.toml"
    measured = [word.strip(' "\n') for word in toml.read_text().split("measured = [")[1].split("]")[0].split(",")]
    names = [*filter(None, measured), "Age", "Gender", "ICULOS", "SepsisLabel"]

    def row(**cells: str) -> str:
        return "|".join(cells.get(name, "NaN") for name in names) + "\n"

    facts = {"Age": "83.14", "Gender": "0"}
    text = "|".join(names) + "\n" + row(HR="97", ICULOS="1", SepsisLabel="0", **facts)
    text += row(Temp="36.1", HR="89", ICULOS="2", SepsisLabel="1", **facts)
    report, events = read(tmp_path, toml, p000001__psv=text)
    assert report.n_subjects == report.n_births == 1
    assert events.filter(pl.col("time") >= START).select("code", "numeric_value").rows() == [
        ("ICU//HR", 97.0),
        ("ICU//HR", 89.0),
        ("ICU//Temp", 36.099998474121094),
        ("SEPSIS", None),
    ]
