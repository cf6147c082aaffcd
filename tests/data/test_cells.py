"""Cells are read alike in every source: times, words for a missing value, numbers, identifiers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path

import polars as pl
import pytest

from ehrtrack.data.events import open_dataset
from ehrtrack.data.importing import import_dataset
from ehrtrack.data.importing.report import ImportReport
from ehrtrack.errors import ConfigError, DataError

Cells = dict[str, str]
ROW = {"subject": "1", "time": "2010-01-05", "code": "K", "value": "4.5", "birth": "1950-01-01", "death": ""}


def write(path: Path, header: str, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def omop(folder: Path, rows: list[Cells]) -> None:
    people = {row["subject"]: row for row in rows}.values()
    write(
        folder / "person.csv",
        "person_id,gender_concept_id,year_of_birth,birth_datetime",
        *(f"{row['subject']},8507,,{row['birth']}" for row in people),
    )
    if any(row["death"] for row in people):
        write(folder / "death.csv", "person_id,death_date", *(f"{row['subject']},{row['death']}" for row in people))
    write(
        folder / "measurement.csv",
        "person_id,measurement_concept_id,measurement_source_value,measurement_datetime,measurement_date,value_as_number,"
        "value_source_value",
        *(f'{r["subject"]},0,{r["code"]},{r["time"]},2010-01-05,"{r["value"]}","{r["value"]}"' for r in rows),
    )


def synthea(folder: Path, rows: list[Cells]) -> None:
    people = {row["subject"]: row for row in rows}.values()
    write(
        folder / "patients.csv",
        "Id,BIRTHDATE,DEATHDATE,GENDER,RACE,ETHNICITY",
        *(f"{row['subject']},{row['birth']},{row['death']},F,," for row in people),
    )
    write(
        folder / "observations.csv",
        "DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,VALUE,UNITS",
        *(f'{r["time"]},{r["subject"]},e,{r["code"]},,"{r["value"]}",' for r in rows),
    )


def mimic_iv(folder: Path, rows: list[Cells]) -> None:
    people = {row["subject"]: row for row in rows}.values()
    write(
        folder / "hosp/patients.csv",
        "subject_id,gender,anchor_age,anchor_year,dod",
        *(f"{row['subject']},F,0,{row['birth'][:4]},{row['death']}" for row in people),
    )
    write(
        folder / "hosp/admissions.csv",
        "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type",
        *(f"{row['subject']},1,2010-01-01,2010-01-20,,URGENT" for row in people),
    )
    write(
        folder / "hosp/labevents.csv",
        "subject_id,hadm_id,itemid,charttime,valuenum,value,valueuom",
        *(f'{r["subject"]},1,{r["code"]},{r["time"]},"{r["value"]}","{r["value"]}",' for r in rows),
    )


def meds(folder: Path, rows: list[Cells]) -> None:
    events = [(row["subject"], row["time"], row["code"], row["value"]) for row in rows]
    for row in {row["subject"]: row for row in rows}.values():
        events += [(row["subject"], row["birth"], "MEDS_BIRTH", "")] * bool(row["birth"])
        events += [(row["subject"], row["death"], "MEDS_DEATH", "")] * bool(row["death"])
    table = pl.DataFrame(events, ["subject_id", "time", "code", "text_value"], orient="row")
    (folder / "data").mkdir(parents=True)
    is_number = pl.col("text_value").cast(pl.Float64, strict=False).is_not_nan()
    text = pl.when(~is_number.fill_null(False)).then("text_value")
    table.with_columns(numeric_value="text_value", text_value=text).write_parquet(folder / "data" / "0.parquet")


def events_csv(folder: Path, rows: list[Cells]) -> None:
    cells = (f'{r["subject"]},{r["time"]},{r["code"]},"{r["value"]}",{r["birth"]},{r["death"]}' for r in rows)
    write(folder / "events.csv", "who,at,code,value,born,died", *cells)


MAKERS: dict[str, Callable[[Path, list[Cells]], None]] = {
    "omop": omop,
    "synthea": synthea,
    "mimic-iv": mimic_iv,
    "meds": meds,
    "events-csv": events_csv,
}
EVENTS_CSV = """
[[table]]
files = "events.csv"
subject = "who"
time = "at"
birth = "born"
death = "died"
codes = [{columns = ["code"], value = "value"}]
"""
every_source = pytest.mark.parametrize("source", MAKERS)


def read(source: str, tmp_path: Path, rows: list[Cells], settings: str = "") -> tuple[ImportReport, pl.DataFrame]:
    """The report, and the events that are neither facts nor of the stay, in their order."""
    MAKERS[source](tmp_path / "raw", [ROW | row for row in rows])
    toml = tmp_path / "source.toml"
    toml.write_text(settings + (EVENTS_CSV if source == "events-csv" else ""))
    report = import_dataset(source, tmp_path / "raw", tmp_path / "out", config=toml, progress=lambda line: None)
    events = open_dataset(tmp_path / "out").scan().collect()
    around = "^(GENDER|HOSPITAL|RACE|ETHNICITY)"
    return report, events.filter(~pl.col("code").str.contains(around))


def at(events: pl.DataFrame) -> list[datetime]:
    return events.filter(~pl.col("code").str.starts_with("MEDS_"))["time"].to_list()


READABLE = {
    "2010-01-05": datetime(2010, 1, 5),
    "2010-01-05T14:05": datetime(2010, 1, 5, 14, 5),
    "2010-01-05 14:05:00.123": datetime(2010, 1, 5, 14, 5, 0, 123000),
    "2010-01-05T14:05:01Z": datetime(2010, 1, 5, 14, 5, 1),
    "2010-01-05 14:05:02+02:00": datetime(2010, 1, 5, 12, 5, 2),
    "2010-01-05 14:05:03.0000000 -05:00": datetime(2010, 1, 5, 19, 5, 3),  # SQL Server's datetimeoffset
}
GUESSES = (
    "5/1/10",
    "99-12-31",
    "20190-03-12",
    "200100",
    "0000-01-01",
    "1799-12-31",
    "0044-03-15 (BC)",
    "2010-01-05 10:00 Europe/Berlin",
    "2010-01-05 10:00 EST",
    "2010-02-30",
    "9999-12-31",
    "2010-01-05T25:00",
)


@every_source
def test_a_time_is_read_the_same_in_every_source(source: str, tmp_path: Path) -> None:
    _, events = read(source, tmp_path, [{"time": stamp} for stamp in READABLE])
    assert sorted(at(events)) == sorted(READABLE.values())


@every_source
def test_a_time_that_would_have_to_be_guessed_is_counted_and_never_becomes_midnight(
    source: str, tmp_path: Path
) -> None:
    good = [{"time": f"2010-01-06T10:{minute}"} for minute in range(10, 10 + len(GUESSES))]
    report, events = read(source, tmp_path, [{"time": stamp} for stamp in GUESSES] + good)
    assert sorted(at(events)) == [datetime(2010, 1, 6, 10, minute) for minute in range(10, 10 + len(GUESSES))]
    assert report.dropped()["unreadable time"] == len(GUESSES)


@every_source
def test_stamps_without_a_zone_are_of_the_stated_one(source: str, tmp_path: Path) -> None:
    rows = [{"time": "2010-07-05T10:00:00"}, {"time": "2010-07-05T10:00:00Z"}]
    _, events = read(source, tmp_path, rows, 'time_zone = "Asia/Shanghai"\n')
    assert at(events) == [datetime(2010, 7, 5, 2), datetime(2010, 7, 5, 10)]


@every_source
def test_a_death_known_by_its_date_alone_is_put_at_the_last_event_of_that_day_where_it_happened(
    source: str, tmp_path: Path
) -> None:
    rows = [{"time": "2010-01-05T23:30:00", "death": "2010-01-05"}]  # 15:30 in UTC, where the day began at 16:00
    _, events = read(source, tmp_path, rows, 'time_zone = "Asia/Shanghai"\n')
    times = dict(events.select("code", "time").iter_rows())
    assert times["MEDS_DEATH"] == datetime(2010, 1, 5, 15, 30)
    assert at(events) == [datetime(2010, 1, 5, 15, 30)]


@pytest.mark.parametrize(
    ("dtype", "utc"),
    [
        (pl.Datetime("ns", "America/New_York"), datetime(2010, 1, 2, 4, 30)),
        (pl.Datetime("us", "America/New_York"), datetime(2010, 1, 2, 4, 30)),
        (pl.Datetime("ns"), datetime(2010, 1, 1, 23, 30)),
        (pl.Datetime("ms"), datetime(2010, 1, 1, 23, 30)),
        (pl.Date, datetime(2010, 1, 1)),
    ],
)
def test_stamps_of_any_stored_type_become_utc(dtype: pl.DataType, utc: datetime, tmp_path: Path) -> None:
    stamp = pl.Series("time", [datetime(2010, 1, 1, 23, 30)])
    zone = getattr(dtype, "time_zone", None)
    stamp = stamp.dt.replace_time_zone(zone).cast(dtype) if zone else stamp.cast(dtype)
    for source in ("meds", "omop"):
        folder = tmp_path / source
        if source == "meds":
            table = pl.DataFrame({"subject_id": [1], "time": stamp, "code": ["K"]})
            table.write_parquet(folder / "0.parquet", mkdir=True)
        else:
            write(folder / "person.csv", "person_id,gender_concept_id,year_of_birth", "1,8507,1950")
            table = pl.DataFrame({"person_id": [1], "measurement_concept_id": [5], "measurement_datetime": stamp})
            table.write_parquet(folder / "measurement.parquet")
        import_dataset(source, folder, tmp_path / f"{source}-out", progress=lambda line: None)
        events = open_dataset(tmp_path / f"{source}-out").scan().collect()
        assert at(events.filter(pl.col("time") > datetime(2000, 1, 1))) == [utc]


def test_stored_stamps_that_no_calendar_has_are_counted(tmp_path: Path) -> None:
    far = pl.Series("time", [200_000 * 365 * 86_400_000_000, 0]).cast(pl.Datetime("us"))
    pl.DataFrame({"subject_id": [1, 1], "time": far, "code": ["A", "B"]}).write_parquet(tmp_path / "in.parquet")
    report = import_dataset("meds", tmp_path / "in.parquet", tmp_path / "out", progress=lambda line: None)
    assert report.dropped() == {"unreadable time": 1}


@every_source
def test_a_word_for_nothing_is_nothing_in_every_source(source: str, tmp_path: Path) -> None:
    words = ["NA", "N/A", "NULL", "null", r"\N", "nan", "NaN", "None", ".", " "]
    blank_codes = [{"code": word} for word in words]
    blank_values = [{"value": word, "code": "L", "time": f"2010-01-{day:02}"} for day, word in enumerate(words, 6)]
    report, events = read(source, tmp_path, [*blank_codes, *blank_values, {"code": "K"}])
    found = events.filter(~pl.col("code").str.starts_with("MEDS_")).sort("code")
    assert [code.split("//")[-1] for code in found["code"]] == ["K"] + ["L"] * len(words)
    assert found["numeric_value"].to_list() == [4.5] + [None] * len(words)
    assert found["text_value"].null_count() == found.height
    if source != "events-csv":  # whose rows make a birth all the same
        assert report.dropped()["no code"] == len(words)


@every_source
def test_the_words_for_nothing_are_a_setting(source: str, tmp_path: Path) -> None:
    _, events = read(source, tmp_path, [{"code": "NA"}, {"code": "-99"}], 'missing = ["-99"]\n')
    found = events.filter(~pl.col("code").str.starts_with("MEDS_"))["code"]
    assert [code.split("//")[-1] for code in found] == ["NA"]  # sodium


@every_source
def test_a_number_may_stand_for_nothing(source: str, tmp_path: Path) -> None:
    rows = [{"value": "-1"}, {"value": "7", "time": "2010-01-06"}]
    _, events = read(source, tmp_path, rows, 'missing = ["-1"]\n')
    values = events.filter(~pl.col("code").str.starts_with("MEDS_"))
    assert values["numeric_value"].to_list() == [None, 7.0]
    assert values["text_value"].to_list() == [None, None]


def test_a_number_may_stand_for_nothing_in_a_column_of_numbers(tmp_path: Path) -> None:
    times = [datetime(2010, 1, 1), datetime(2010, 1, 2)]
    frame = pl.DataFrame({"subject_id": [1, 1], "time": times, "code": ["K", "K"], "numeric_value": [-1.0, 7.0]})
    frame.write_parquet(tmp_path / "raw.parquet")
    (tmp_path / "source.toml").write_text('missing = ["-1"]')
    out = tmp_path / "out"
    import_dataset("meds", tmp_path / "raw.parquet", out, config=tmp_path / "source.toml", progress=lambda line: None)
    assert open_dataset(out).scan().collect()["numeric_value"].to_list() == [None, 7.0]


@every_source
def test_decimal_commas_are_refused_until_they_are_told_of(source: str, tmp_path: Path) -> None:
    rows = [{"value": "4,5"}, {"value": "1.234,5", "time": "2010-01-06"}]
    with pytest.raises(DataError, match=r'2 of 2 results have a comma, as in 4,5.*decimal = ","'):
        read(source, tmp_path, rows)
    assert not (tmp_path / "out").exists()


@every_source
def test_decimal_commas_that_are_told_of_are_numbers(source: str, tmp_path: Path) -> None:
    rows = [{"value": "4,5"}, {"value": "1.234,5", "time": "2010-01-06"}]
    _, events = read(source, tmp_path, rows, 'decimal = ","\n')
    values = events.filter(~pl.col("code").str.starts_with("MEDS_"))["numeric_value"]
    assert values.to_list() == [4.5, 1234.5]


@every_source
def test_unreadable_deaths_stop_the_import_and_show_no_value(source: str, tmp_path: Path) -> None:
    rows = [{"subject": str(n), "death": "2011-03-04"} for n in range(9)] + [{"subject": "9", "death": "04.03.2011"}]
    with pytest.raises(DataError, match=r"1 of 10 deaths are unreadable \(for example '99\.99\.9999'") as raised:
        read(source, tmp_path, rows)
    assert "2011" not in str(raised.value)


@every_source
def test_as_many_unreadable_deaths_as_are_allowed_are_told(source: str, tmp_path: Path) -> None:
    rows = [{"subject": str(n), "death": "2011-03-04"} for n in range(9)] + [{"subject": "9", "death": "04.03.2011"}]
    report, _ = read(source, tmp_path, rows, "max_unreadable_deaths = 0.1\n")
    assert report.n_deaths == 9
    assert "1 of 10 deaths in" in report.to_text()


@pytest.mark.parametrize("source", [source for source in MAKERS if source != "mimic-iv"])  # which knows years alone
def test_unreadable_births_stop_the_import_above_the_share_that_is_allowed(source: str, tmp_path: Path) -> None:
    rows = [{"subject": str(n)} for n in range(9)] + [{"subject": "9", "birth": "31/12/1950"}]
    with pytest.raises(DataError, match=r"1 of 10 births are unreadable.*max_unreadable_births is 0\.05"):
        read(source, tmp_path, rows)


@every_source
def test_a_death_before_the_birth_stops_the_import_rather_than_make_a_survivor(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 1 subjects who died .* \(births are of \w+.*; deaths of \w+.*\)"):
        read(source, tmp_path, [{"death": "1949-01-01"}, {"subject": "2"}])


@pytest.mark.parametrize("source", ["omop", "mimic-iv", "events-csv"])
def test_integers_that_r_wrote_with_an_exponent_are_integers(source: str, tmp_path: Path) -> None:
    MAKERS[source](tmp_path / "raw", [ROW | {"subject": "100000"}])
    for path in (tmp_path / "raw").rglob("*"):
        if path.name in ("measurement.csv", "labevents.csv"):
            path.write_text(path.read_text().replace("100000,", "1e+05,"))
    if source == "events-csv":
        write(tmp_path / "raw" / "events.csv", "who,at,code,value,born,died", "1e+05,2010-01-05,K,4.5,1950-01-01,")
    (tmp_path / "source.toml").write_text(EVENTS_CSV if source == "events-csv" else "")
    out = tmp_path / "out"
    import_dataset(source, tmp_path / "raw", out, config=tmp_path / "source.toml", progress=lambda line: None)
    events = open_dataset(out).scan().collect()
    assert set(events["subject_id"]) == {100_000}
    assert events.filter(pl.col("numeric_value") == 4.5).height == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('time_zone = "Berlin"', "no zone of the IANA database"),
        ("years = [2020, 1800]", "the first and the last year"),
        ('decimal = ";"', "decimal"),
        ("max_unreadable_deaths = 2", "max_unreadable_deaths"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read("synthea", tmp_path, [{}], setting + "\n")


def test_what_is_left_out_and_what_is_odd_is_said_at_the_end(tmp_path: Path) -> None:
    rows = [{"value": "high"}, {"value": "", "code": "L"}, {"time": "2010-01-06T10:00"}]
    MAKERS["synthea"](tmp_path / "raw", [ROW | row for row in rows])
    (tmp_path / "raw" / "claims.csv").write_text("Id\n1\n")
    report = import_dataset("synthea", tmp_path / "raw", tmp_path / "out", progress=lambda line: None)
    text = report.to_text()
    assert "observations: results: 1 numbers, 1 texts, 1 empty; 2 of 3 times without a clock" in text
    assert "Not read: claims.csv" in text
    assert report.unread == ("claims.csv",)


def test_a_table_that_is_wholly_dropped_stops_the_import_unless_it_may(tmp_path: Path) -> None:
    MAKERS["synthea"](tmp_path / "raw", [ROW])
    write(tmp_path / "raw" / "conditions.csv", "START,PATIENT,CODE,DESCRIPTION", "2010-01-01,somebody,1,")
    with pytest.raises(DataError, match=r'conditions: 1 rows, 1 subject not in person table.*\["conditions"\]'):
        import_dataset("synthea", tmp_path / "raw", tmp_path / "out", progress=lambda line: None)
    assert not (tmp_path / "out").exists()
    toml = tmp_path / "source.toml"
    toml.write_text('allow_dropped_tables = ["conditions"]')
    report = import_dataset("synthea", tmp_path / "raw", tmp_path / "out", config=toml, progress=lambda line: None)
    assert report.dropped() == {"subject not in person table": 1}


@every_source
def test_few_different_words_as_results_are_part_of_the_code(source: str, tmp_path: Path) -> None:
    words = ["positive", "negative", "positive"]
    rows = [{"code": "PCR", "value": word, "time": f"2010-01-0{day}"} for day, word in enumerate(words, 1)]
    rows += [{"code": "NOTE", "value": f"said {day}", "time": f"2010-01-{day:02}"} for day in range(1, 29)]
    _, events = read(source, tmp_path, [*rows, {"code": "K", "value": "4.5"}], "max_result_levels = 20\n")
    found = events.filter(~pl.col("code").str.starts_with("MEDS_"))
    counts = dict(found["code"].str.replace("^[A-Z]*_?[A-Z]*//", "").value_counts().iter_rows())
    assert counts == {"PCR//positive": 2, "PCR//negative": 1, "NOTE": 28, "K": 1} or counts == {
        code.replace("PCR", "LOINC//PCR"): n for code, n in counts.items()
    }
    assert set(found.filter(pl.col("code").str.contains("PCR"))["text_value"]) == {"positive", "negative"}


@every_source
def test_which_codes_have_their_results_may_be_said(source: str, tmp_path: Path) -> None:
    rows = [{"code": "PCR", "value": "positive"}, {"code": "CULTURE", "value": "growth"}]
    _, events = read(source, tmp_path, rows, 'results_in_codes = [".*CULTURE"]\n')
    found = events.filter(~pl.col("code").str.starts_with("MEDS_"))["code"].sort().to_list()
    assert [code.split("//")[-1] for code in found] == ["growth", "PCR"]


@every_source
def test_results_may_stay_beside_their_codes(source: str, tmp_path: Path) -> None:
    _, events = read(source, tmp_path, [{"code": "PCR", "value": "positive"}], "max_result_levels = 0\n")
    (code,) = events.filter(~pl.col("code").str.starts_with("MEDS_"))["code"]
    assert code.split("//")[-1] == "PCR"


@every_source
def test_every_source_ends_with_the_whole_account(source: str, tmp_path: Path) -> None:
    """A number, a text and nothing; a date alone; next year; a subject without a birth; a file that is not read."""
    rows = [
        {"time": "2010-01-05", "value": "4"},
        {"time": "2010-01-06 08:00:00", "value": "positive"},
        {"time": "2010-01-07 08:00:00", "value": ""},
        {"time": f"{date.today().year + 1}-12-01 08:00:00", "value": "5"},
        {"subject": "2", "birth": "", "time": "2010-01-06 09:00:00", "value": "6"},
    ]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.csv").write_text("a\n1\n")
    report, _ = read(source, tmp_path, rows)
    table = max(report.tables, key=lambda table: table.results.n_numeric)
    assert (table.results.n_numeric, table.results.n_text) == (3, 1)
    assert table.results.n_empty >= 1  # births in the table of results have none either
    assert table.results.n_without_clock >= 1
    assert (report.n_future, report.n_subjects - report.n_births) == (1, 1)
    said = report.to_text()
    assert "results: 3 numbers, 1 texts" in said
    assert "times without a clock" in said
    assert "Subjects without a birth: 1 of 2" in said
    assert "Events after today: 1" in said
    assert "notes.csv" in said.partition("Not read: ")[2]


@pytest.mark.parametrize("source", [source for source in MAKERS if source != "meds"])
@pytest.mark.parametrize("line", ['"Jane Doe,2010', "1,Jane Doe,2,3,4,5,6,7,8,9,10,11,12,13,14"])
def test_a_line_that_is_no_row_is_refused_without_showing_it(source: str, line: str, tmp_path: Path) -> None:
    MAKERS[source](tmp_path / "raw", [ROW, ROW | {"time": "2010-01-06 08:00:00"}])
    for file in (tmp_path / "raw").rglob("*.csv"):
        with file.open("a") as out:
            out.write(line + "\n")
    toml = tmp_path / "source.toml"
    toml.write_text(EVENTS_CSV if source == "events-csv" else "")
    with pytest.raises(DataError) as refused:
        import_dataset(source, tmp_path / "raw", tmp_path / "out", config=toml, progress=lambda line: None)
    assert "Jane" not in str(refused.value)
    assert "cannot be" in str(refused.value)


@pytest.mark.parametrize(("code", "word"), [("MEDS_BIRTH", "births"), ("MEDS_DEATH", "deaths")])
def test_a_birth_or_death_without_a_time_is_no_static_fact(code: str, word: str, tmp_path: Path) -> None:
    meds(tmp_path / "raw", [ROW])
    file = tmp_path / "raw" / "data" / "0.parquet"
    table = pl.read_parquet(file)
    row = table.head(1).with_columns(code=pl.lit(code), time=pl.lit(None, pl.String), subject_id=pl.lit("2"))
    pl.concat([table, row]).write_parquet(file)
    toml = tmp_path / "source.toml"
    toml.write_text("")
    with pytest.raises(DataError, match=rf"1 of [12] {word} are unreadable"):
        import_dataset("meds", tmp_path / "raw", tmp_path / "out", config=toml, progress=lambda line: None)
    toml.write_text(f"max_unreadable_{word} = 1.0")
    report = import_dataset("meds", tmp_path / "raw", tmp_path / "out", config=toml, progress=lambda line: None)
    assert (report.n_births, report.n_deaths) == (1, 0)
    assert report.dropped() == {"no time": 1}
