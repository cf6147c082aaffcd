"""What is done to a run's tables and messages before they leave the machine."""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from pathlib import Path

import polars as pl
import pytest
from simulated import study_values

from ehrtrack.config import parse_config
from ehrtrack.errors import ConfigError
from ehrtrack.home import home
from ehrtrack.pipeline.run import privacy_of
from ehrtrack.privacy import (
    Privacy,
    hide_in_attrition,
    hide_in_groups,
    hide_in_summary,
    read_key,
)

KEY = b"0123456789abcdef0123456789abcdef"
IDS = [730_000_117, 730_000_001, 730_000_042]
PREDICTIONS = pl.DataFrame(
    {
        "subject_id": IDS,
        "prediction_time": [datetime(2015, 3, 2, 8), datetime(2016, 1, 1), datetime(2017, 5, 6)],
        "born": [date(1950, 1, 1)] * 3,
        "follow_up_days": [30.0, 7.5, 30.0],
        "is_event": [True, False, False],
        "risk": [0.3, 0.1, 0.2],
    }
)


def attrition(*dropped: int, start: int = 1000) -> pl.DataFrame:
    left = [start]
    for n in dropped:
        left.append(left[-1] - n)
    steps = [f"step {i}" for i in range(len(left))]
    return pl.DataFrame({"step": steps, "n_subjects": left, "n_dropped": [0, *dropped]})


def test_subjects_have_the_same_hash_under_the_same_key_alone() -> None:
    mine, again, other = (Privacy(key).table(PREDICTIONS) for key in (KEY, KEY, KEY[::-1]))
    assert mine.equals(again)
    assert not set(mine["subject_id"]) & set(other["subject_id"])
    expected = hmac.new(KEY, b"subject 730000001", hashlib.sha256).hexdigest()[:32]
    assert mine.row(by_predicate=pl.col("risk") == 0.1, named=True)["subject_id"] == expected
    assert Privacy(KEY).fingerprint == Privacy(KEY).fingerprint != Privacy(KEY[::-1]).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", Privacy(KEY).fingerprint)
    assert "0123456789" not in repr(Privacy(KEY))


def test_dates_are_left_out_and_the_order_of_ids_is_lost() -> None:
    logged = Privacy(KEY).table(PREDICTIONS)
    assert logged.columns == ["subject_id", "follow_up_days", "is_event", "risk"]
    assert logged["subject_id"].is_sorted()


def test_raw_subjects_and_dates_are_logged_when_asked() -> None:
    privacy = Privacy(None)
    assert privacy.table(PREDICTIONS).equals(PREDICTIONS)
    assert privacy.fingerprint == "raw"
    assert privacy.message("first: subject 730000001 on 2015-03-02") == "first: subject 730000001 on 2015-03-02"


def test_days_that_a_calendar_date_would_turn_into_dates_are_logged_as_ranks() -> None:
    logged = Privacy(KEY, hides_days=True).table(PREDICTIONS)
    assert "follow_up_days" not in logged.columns
    assert dict(zip(logged["risk"], logged["follow_up_rank"], strict=True)) == {0.1: 1.0, 0.2: 2.0, 0.3: 2.0}


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        (
            "12 of 300 subjects have the outcome first (first: subject 4711)",
            "12 of 300 subjects have the outcome first (first: subject (not logged))",
        ),
        ("no event by 2015-03-02 08:15:00 of 730000001", "no event by (date not logged) of (number not logged)"),
        ("time 2015-03-02T08:15 is before birth", "time (date not logged) is before birth"),
        ("subjects 17, 23, 4711 are twice", "subjects (not logged) are twice"),
        ("subjects 17, 23 and 4711 in 2 shards", "subjects (not logged) in 2 shards"),
        ("subject_ids = [17, -23]", "subject_ids = [(not logged)]"),
        ("patient 17 or person 4711", "patient (not logged) or person (not logged)"),
        ("born 04.03.1950, seen 3/4/1950 08:15", "born (date not logged), seen (date not logged)"),
        ("1950/03/04, 1950.3.4, 19500304", "(date not logged), (date not logged), (date not logged)"),
        ("4 March 1950, 04-MAR-1950", "(date not logged), (date not logged)"),
        ("on March 4th, 1950 and 2015-03-02T08:15:00.5", "on (date not logged) and (date not logged)"),
        ("torch 2.13.0 of 12 may 20, model 3.5.2015x", "torch 2.13.0 of 12 may 20, model (date not logged)x"),
        ("KeyError: 730000001", "KeyError: (number not logged)"),
        ("8 events by day 365 and 6 subjects beyond", "<11 events by day 365 and <11 subjects beyond"),
        ("3 of 25 subjects", "<11 of 25 subjects"),
        ("needed are at least 5 events of 120 subjects", "needed are at least 5 events of 120 subjects"),
        ("code SNOMED//74474003 of model 3.5 at step 12", "code SNOMED//74474003 of model 3.5 at step 12"),
    ],
)
def test_messages_name_no_subject_no_date_and_no_few(message: str, logged: str) -> None:
    assert Privacy(KEY).message(message) == logged


def test_small_counts_of_any_table_are_hidden_and_others_kept() -> None:
    table = pl.DataFrame(
        {"group": ["a", "b", "c"], "n_events": [0, 10, 11], "n_codes": [3, 4, 5], "c_index": [0.5] * 3}
    )
    logged = Privacy(KEY).table(table)
    assert logged["n_events"].to_list() == ["0", "<11", "11"]
    assert logged.drop("n_events").equals(table.drop("n_events"))
    many = pl.DataFrame({"n_events": [0, 11]})
    assert Privacy(KEY).table(many).equals(many)
    reasons = pl.DataFrame({"reason": ["3 events, fewer than 5", None], "code": ["SNOMED//123456789", "2"]})
    assert Privacy(KEY).table(reasons).rows() == [("<11 events, fewer than 5", "SNOMED//123456789"), (None, "2")]


def test_a_metric_that_counts_few_subjects_is_left_out() -> None:
    values = {"data/truncated_subjects": 3.0, "test/c_index": 0.6, "kept/epoch": 3.0}
    assert Privacy(KEY).metrics(values) == {"test/c_index": 0.6, "kept/epoch": 3.0}
    assert Privacy(KEY).metrics({"data/truncated_subjects": 11.0}) == {"data/truncated_subjects": 11.0}


def test_large_steps_are_shown_as_they_are() -> None:
    table = attrition(100, 0, 11)
    assert hide_in_attrition(table).rows() == [(row[0], str(row[1]), str(row[2])) for row in table.rows()]


def test_a_small_step_is_not_the_difference_of_others() -> None:
    hidden = hide_in_attrition(attrition(100, 4, 50, 0))
    assert hidden["n_subjects"].to_list() == ["1000", "900", None, "846", "846"]
    assert hidden["n_dropped"].to_list() == ["0", "100", "<11", None, "0"]


def test_small_last_steps_take_the_one_before_with_them() -> None:
    hidden = hide_in_attrition(attrition(100, 0, 3))
    assert hidden["n_subjects"].to_list() == ["1000", None, None, "897"]
    assert hidden["n_dropped"].to_list() == ["0", None, "0", "<11"]


def test_the_start_is_hidden_where_nothing_else_hides_a_small_step() -> None:
    hidden = hide_in_attrition(attrition(0, 3))
    assert hidden["n_subjects"].to_list() == [None, None, "997"]
    assert hidden["n_dropped"].to_list() == ["0", "0", "<11"]


def test_a_rate_does_not_give_the_count_back() -> None:
    summary = pl.DataFrame(
        {
            "split": ["train", "validation", "test"],
            "n_subjects": [700, 150, 9],
            "n_events": [70, 10, 3],
            "event_rate": [0.1, 10 / 150, 3 / 9],
            "median_follow_up_days": [300.0, 310.0, 12.0],
        }
    )
    assert hide_in_summary(summary).rows() == [
        ("train", "700", "70", 0.1, 300.0),
        ("validation", None, "<11", None, 310.0),  # else 9 would be what is left of the cohort
        ("test", "<11", "<11", None, None),
    ]


def test_all_but_a_few_with_the_event_are_not_told_either() -> None:
    summary = pl.DataFrame(
        {"split": ["train"], "n_subjects": [100], "n_events": [95], "event_rate": [0.95], "person_years": [50.0]}
    )
    assert hide_in_summary(summary).rows() == [("train", "100", None, None, 50.0)]


def test_one_small_group_takes_the_smallest_other_with_it() -> None:
    table = pl.DataFrame(
        {
            "attribute": ["all", "race", "race", "race", "sex", "sex"],
            "group": ["all", "a", "b", "c", "F", "M"],
            "n_subjects": [500, 400, 92, 8, 250, 250],
            "n_events": [60, 50, 8, 2, 30, 30],
        }
    )
    hidden = hide_in_groups(table)
    assert hidden["n_subjects"].to_list() == ["500", "400", None, "<11", "250", "250"]
    assert hidden["n_events"].to_list() == ["60", "50", "<11", "<11", "30", "30"]  # two hidden ones hide each other


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EHRTRACK_SUBJECT_SECRET", raising=False)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: read_key(tmp_path / "cache"), range(8)))
    assert len(keys) == 1
    (file,) = (tmp_path / "cache").iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == ("subject.key", 0o600)
    assert len(keys.pop()) == 64


def test_runs_from_all_folders_of_a_user_have_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EHRTRACK_SUBJECT_SECRET", raising=False)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda number: read_key(tmp_path / f"clone{number % 4}"), range(8)))
    assert keys == {read_key(home())}
    assert {(tmp_path / f"clone{number}" / "subject.key").read_text().strip().encode() for number in range(4)} == keys
    assert stat.S_IMODE((home() / "subject.key").stat().st_mode) == 0o600


def test_a_folder_with_a_key_of_its_own_keeps_it_and_the_first_is_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of before can still be compared with new ones of the same folder."""
    monkeypatch.delenv("EHRTRACK_SUBJECT_SECRET", raising=False)
    for name, key in (("first", "1" * 64), ("second", "2" * 64)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "subject.key").write_text(key + "\n")
        (tmp_path / name / "subject.key").chmod(0o600)
    found = [read_key(tmp_path / name).decode()[0] for name in ("first", "second", "clone", "second", "first")]
    assert found == ["1", "2", "1", "2", "1"]


def test_a_users_folder_that_cannot_be_written_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("EHRTRACK_SUBJECT_SECRET", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EHRTRACK_HOME", str(tmp_path / "file" / "home"))
    assert read_key(tmp_path / "cache") == read_key(tmp_path / "cache")
    assert "cannot be kept in" in caplog.text
    assert "set EHRTRACK_HOME to a folder that can be written to" in caplog.text


def test_a_key_that_cannot_be_kept_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EHRTRACK_SUBJECT_SECRET", raising=False)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot be kept in .*cache/subject\.key.*set runtime\.cache to a folder"):
        read_key(tmp_path / "cache")


def test_the_environment_gives_the_key_and_no_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EHRTRACK_SUBJECT_SECRET", KEY.decode())
    assert read_key(tmp_path) == KEY
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_others_can_read_or_guess_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EHRTRACK_SUBJECT_SECRET", raising=False)
    read_key(tmp_path)
    (tmp_path / "subject.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"subject\.key can be read by other users.*chmod 600"):
        read_key(tmp_path)
    monkeypatch.setenv("EHRTRACK_SUBJECT_SECRET", "short")
    with pytest.raises(ConfigError, match="has 5 characters, and at least 16 are needed"):
        read_key(tmp_path)


def test_a_study_asks_for_raw_subjects_in_runtime_and_hides_days_by_its_calendar_dates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EHRTRACK_SUBJECT_SECRET", KEY.decode())
    values = study_values(tmp_path / "meds", tmp_path / "cache")

    def privacy(cohort: dict[str, object], **runtime: object) -> Privacy:
        sections = {"cohort": values["cohort"] | cohort, "runtime": values["runtime"] | runtime}
        return privacy_of(parse_config(values | sections))

    assert privacy({}) == Privacy(KEY)
    assert privacy({"end_of_study": "2020-12-31"}) == Privacy(KEY, hides_days=True)
    assert privacy({"index": {"rule": "date", "date": "2018-01-01"}}) == Privacy(KEY, hides_days=True)
    assert privacy({}, log_raw_subjects=True) == Privacy(None)
