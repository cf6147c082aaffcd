"""The rules of an import: what is dropped and why, subject ids, times, and that it is whole or not at all."""

from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ehrtrack.data.events import open_dataset
from ehrtrack.data.importing import candidates, import_dataset
from ehrtrack.data.importing.report import ImportReport
from ehrtrack.errors import ConfigError, DataError

CONFIG = """
[[table]]
files = "events.csv*"
subject = "who"
time = "at"
visit = "stay"
codes = [{columns = ["code"], value = "value"}]
"""
HEADER = "who,at,code,value,stay\n"


def run(tmp_path: Path, rows: str, *, config: str = CONFIG) -> tuple[ImportReport, pl.DataFrame]:
    raw = tmp_path / "raw"
    raw.mkdir(exist_ok=True)
    (raw / "events.csv").write_text(HEADER + rows)
    (tmp_path / "columns.toml").write_text(config)
    report = import_dataset("events-csv", raw, tmp_path / "out", config=tmp_path / "columns.toml")
    return report, open_dataset(tmp_path / "out").scan().collect()


def times_of(events: pl.DataFrame, code: str) -> list[datetime]:
    return events.filter(pl.col("code") == code)["time"].to_list()


def test_each_reason_to_drop_is_counted(tmp_path: Path) -> None:
    report, events = run(
        tmp_path,
        "1,1950-01-01,MEDS_BIRTH,,\n"
        "1,2000-06-01 12:00,MEDS_DEATH,,\n"
        "1,1999-01-01,A,,\n"
        "1,1999-01-01,A,,\n"  # exact duplicate
        "1,1949-12-31,A,,\n"  # before birth
        "1,2000-06-01 12:01,A,,\n"  # after death
        "1,,A,,\n"  # no time
        "1,soon,A,,\n"  # unreadable time
        "1,1999-01-01,,,\n"  # no code
        ",1999-01-01,A,,\n"  # no subject
        "who,at,code,value,stay\n"  # header row read as data
        "1,2001-01-01,MEDS_DEATH,,\n",  # a second death
    )
    assert report.dropped() == {
        "header row read as data": 1,
        "no subject": 1,
        "no code": 1,
        "unreadable time": 1,
        "no time": 1,
        "before birth": 1,
        "after death": 1,
        "conflicting birth or death": 1,
        "exact duplicate": 1,
    }
    assert events["code"].to_list() == ["MEDS_BIRTH", "A", "MEDS_DEATH"]


def test_an_event_at_the_very_time_of_death_is_kept(tmp_path: Path) -> None:
    _, events = run(tmp_path, "1,2000-06-01 12:00,MEDS_DEATH,,\n1,2000-06-01 12:00,A,,\n")
    assert events["code"].to_list() == ["A", "MEDS_DEATH"]


def test_a_death_known_by_date_is_put_at_the_last_event_of_that_day(tmp_path: Path) -> None:
    _, events = run(
        tmp_path,
        "1,2000-06-01,MEDS_DEATH,,\n1,2000-06-01 09:30,A,,\n1,2000-06-01 08:00,B,,\n1,2000-06-02,C,,\n"
        "2,2000-06-01,MEDS_DEATH,,\n2,2000-05-01,A,,\n",
    )
    assert times_of(events, "MEDS_DEATH") == [datetime(2000, 6, 1, 9, 30), datetime(2000, 6, 1)]
    assert times_of(events, "C") == []


def test_a_stated_time_of_death_beats_the_bare_date_of_the_same_day(tmp_path: Path) -> None:
    report, events = run(
        tmp_path,
        "1,2000-06-01,MEDS_DEATH,,\n1,2000-06-01 07:00,MEDS_DEATH,,\n1,2000-06-01 09:30,A,,\n1,1999-01-01,B,,\n",
    )
    assert times_of(events, "MEDS_DEATH") == [datetime(2000, 6, 1, 7)]
    assert report.dropped() == {"after death": 1, "exact duplicate": 1}


def test_a_dated_event_on_the_birthday_is_kept_and_follows_the_birth(tmp_path: Path) -> None:
    _, events = run(tmp_path, "1,2000-06-01 12:00,MEDS_BIRTH,,\n1,2000-06-01,A,,\n1,2000-05-31,B,,\n")
    assert events["code"].to_list() == ["MEDS_BIRTH", "A"]
    assert times_of(events, "MEDS_BIRTH") == [datetime(2000, 6, 1)]


def test_zoned_stamps_become_utc_and_plain_ones_stay(tmp_path: Path) -> None:
    _, events = run(
        tmp_path,
        "1,2000-06-01T12:00:00Z,Z,,\n1,2000-06-01T12:00:00+02:00,OFFSET,,\n1,2000-06-01T12:00:00.25,PLAIN,,\n"
        "1,2000-06-01,DATE,,\n",
    )
    assert times_of(events, "Z") == [datetime(2000, 6, 1, 12)]
    assert times_of(events, "OFFSET") == [datetime(2000, 6, 1, 10)]
    assert times_of(events, "PLAIN") == [datetime(2000, 6, 1, 12, 0, 0, 250_000)]
    assert times_of(events, "DATE") == [datetime(2000, 6, 1)]


def test_values_are_numbers_or_text_never_both(tmp_path: Path) -> None:
    _, events = run(tmp_path, "1,2000-01-01,A,1.5,\n1,2000-01-02,A,never smoked,v1\n1,2000-01-03,A,NaN,\n")
    assert events["numeric_value"].to_list() == [1.5, None, None]
    assert events["text_value"].to_list() == [None, "never smoked", None]  # NaN is no value
    assert events["visit_id"].to_list() == [None, "v1", None]


def test_integer_ids_stay_and_may_be_negative(tmp_path: Path) -> None:
    report, events = run(tmp_path, "-7391666713304457659,2000-01-01,A,,\n12,2000-01-01,A,,\n")
    assert report.has_integer_ids
    assert events["subject_id"].to_list() == [-7391666713304457659, 12]


def test_ids_that_integers_would_merge_are_hashed(tmp_path: Path) -> None:
    report, events = run(tmp_path, "007,2000-01-01,A,,\n7,2000-01-01,A,,\n")
    assert not report.has_integer_ids
    # The first 63 bits of what `printf 007 | b2sum -l 64` and `printf 7 | b2sum -l 64` print.
    table = pl.read_parquet(tmp_path / "out" / "metadata" / "subjects.parquet")
    found = dict(zip(table["source_id"], table["subject_id"], strict=True))
    assert found == {"007": 0x492A8021FCEC81BD >> 1, "7": 0xE75017CACE788F82 >> 1}
    assert set(events["subject_id"]) == set(found.values())


def test_colliding_ids_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "hash_subject_id", lambda source_id: 1)
    with pytest.raises(DataError, match="'a' and 'b' get the same"):
        run(tmp_path, "a,2000-01-01,A,,\nb,2000-01-01,A,,\n")


def test_mostly_unreadable_times_are_refused_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column at: 2 of 3 times are unreadable \(for example '99999999', its digits"):
        run(tmp_path, "1,20000101,A,,\n1,20000102,A,,\n1,2000-01-03,A,,\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["columns.toml", "raw"]


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column when not found; needed: when; found: who, at, code, value, stay"):
        run(tmp_path, "1,2000-01-01,A,,\n", config=CONFIG.replace('"at"', '"when"'))
    assert not (tmp_path / "out").exists()


def test_a_row_with_too_many_cells_is_refused_not_skipped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"events.csv\* cannot be read: .*Line: 3") as raised:
        run(tmp_path, "1,2000-01-01,A,,\n1,2000-01-01,A,B,C,D,E\n")
    assert "B,C,D" not in str(raised.value)  # a row is a patient's


def test_quoted_commas_far_down_the_file_are_read(tmp_path: Path) -> None:
    rows = "".join(f"1,2000-01-01,A{i},,\n" for i in range(30_000)) + '1,2000-01-02,"A, with comma",,\n'
    _, events = run(tmp_path, rows)
    assert events["code"][-1] == "A, with comma"


def test_no_usable_event_is_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable event.*1 no time"):
        run(tmp_path, "1,,A,,\n")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_taken_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        run(tmp_path, "1,2000-01-01,A,,\n")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_an_empty_output_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    report, _ = run(tmp_path, "1,2000-01-01,A,,\n")
    assert report.n_events == 1


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere not found"):
        import_dataset("synthea", tmp_path / "nowhere", tmp_path / "out")


def test_unknown_sources_and_settings_name_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'synthea'"):
        import_dataset("synthia", tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="needs a configuration"):
        import_dataset("events-csv", tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"table\.0\.codez"):
        run(tmp_path, "1,2000-01-01,A,,\n", config=CONFIG.replace("codes", "codez"))


def test_gzip_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "events.csv.gz").write_bytes(gzip.compress(("\ufeff" + HEADER + "1,2000-01-01,A,,\n").encode()))
    (tmp_path / "columns.toml").write_text(CONFIG)
    report = import_dataset("events-csv", raw, tmp_path / "out", config=tmp_path / "columns.toml")
    assert report.n_events == 1


def test_many_events_come_out_sorted_and_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    rows = "".join(f"{i * 7919 % 500},{1990 + i * 31 % 30}-01-{1 + i % 28:02d},A{i % 9},{i},\n" for i in range(230_000))
    run(tmp_path, rows)
    for n_threads in (1, 3):
        import_dataset(
            "events-csv",
            tmp_path / "raw",
            tmp_path / f"threads{n_threads}",
            config=tmp_path / "columns.toml",
            threads=n_threads,
        )
    one, three = open_dataset(tmp_path / "threads1"), open_dataset(tmp_path / "threads3")
    events = one.scan().collect()
    assert len(events) == 230_000
    assert events.select("subject_id", "time").equals(events.select("subject_id", "time").sort("subject_id", "time"))
    assert one.fingerprint() == three.fingerprint()


MANY_ROWS = "".join(f"{i * 7919 % 500},{1990 + i * 31 % 30}-01-{1 + i % 28:02d},A{i % 9},{i},\n" for i in range(30_000))


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    run(tmp_path, MANY_ROWS)
    for n_workers in (1, 2):
        report = import_dataset(
            "events-csv",
            tmp_path / "raw",
            tmp_path / f"workers{n_workers}",
            config=tmp_path / "columns.toml",
            n_workers=n_workers,
            events_per_shard=10_000,
        )
        assert (report.n_shards, report.n_events) == (3, 30_000)
    one, two = open_dataset(tmp_path / "workers1"), open_dataset(tmp_path / "workers2")
    assert one.fingerprint() == two.fingerprint()
    for name in ("codes.parquet", "subjects.parquet"):
        assert (one.path / "metadata" / name).read_bytes() == (two.path / "metadata" / name).read_bytes()


def test_unknown_engines_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown engine 'slurm'.*there are: local, ray"):
        import_dataset("meds", tmp_path, tmp_path / "out", engine="slurm")


def test_small_and_large_shards_hold_the_same_events_in_the_same_order(tmp_path: Path) -> None:
    _, events = run(tmp_path, MANY_ROWS)
    report = import_dataset(
        "events-csv",
        tmp_path / "raw",
        tmp_path / "small",
        config=tmp_path / "columns.toml",
        events_per_shard=1_000,
    )
    assert report.n_shards == 30  # more than ten: 10.parquet must not come before 2.parquet
    assert open_dataset(tmp_path / "small").scan().collect().equals(events)


def test_events_of_a_shard_that_were_read_in_many_parts_come_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, MANY_ROWS)
    monkeypatch.setattr(candidates, "_EVENTS_PER_BATCH", 10_000)
    monkeypatch.setattr(candidates, "_EVENTS_PER_RUN", 1)
    import_dataset("events-csv", tmp_path / "raw", tmp_path / "parts", config=tmp_path / "columns.toml")
    assert open_dataset(tmp_path / "parts").fingerprint() == open_dataset(tmp_path / "out").fingerprint()


def test_of_a_repeated_event_that_two_tables_have_the_first_is_kept(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "more.csv").write_text(HEADER + "1,2000-01-01,B,,\n1,2000-01-01,A,,\n")
    report, events = run(
        tmp_path,
        "1,2000-01-01,B,,\n1,2000-01-01,C,,\n",
        config=CONFIG + CONFIG.replace("events.csv*", "more.csv"),
    )
    assert events["code"].to_list() == ["B", "C", "A"]  # at one time: the first table's, then the second's
    assert [table.n_kept for table in report.tables] == [2, 1]
    assert report.tables[1].dropped == {"exact duplicate": 1}


def test_minus_zero_is_zero(tmp_path: Path) -> None:
    report, events = run(tmp_path, "1,2000-01-01,A,-0.0,\n1,2000-01-01,A,0.0,\n")
    assert [str(value) for value in events["numeric_value"]] == ["0.0"]
    assert report.dropped() == {"exact duplicate": 1}


def test_subjects_without_a_usable_event_make_no_shard(tmp_path: Path) -> None:
    run(tmp_path, "1,2000-01-01,MEDS_BIRTH,,\n2,,A,,\n3,2000-01-01,A,,\n")
    report = import_dataset(
        "events-csv",
        tmp_path / "raw",
        tmp_path / "small",
        config=tmp_path / "columns.toml",
        events_per_shard=1,
    )
    assert report.n_shards == 2
    assert [path.name for path in open_dataset(tmp_path / "small").shards] == ["0.parquet", "1.parquet"]


def test_subjects_missing_from_the_roster_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "people.csv").write_text("who,sex\n1,F\n")
    config = CONFIG + (
        '[[table]]\nfiles = "people.csv"\nsubject = "who"\nroster = true\n'
        'static = [{columns = ["sex"], prefix = "GENDER//"}]\n'
    )
    report, events = run(tmp_path, "1,2000-01-01,A,,\n2,2000-01-01,A,,\n", config=config)
    assert report.dropped() == {"subject not in person table": 1}
    assert events["code"].to_list() == ["GENDER//F", "A"]
    assert events["time"].to_list() == [None, datetime(2000, 1, 1)]
