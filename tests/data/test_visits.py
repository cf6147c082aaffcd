"""Visits and their tokens, with ages, gaps and orders worked by hand."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from ehrtrack.data.histories import histories_of
from ehrtrack.data.settings import VisitConfig
from ehrtrack.data.store import build_store
from ehrtrack.data.visits import visit_tokens
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, UNK, Vocabulary
from ehrtrack.errors import DataError

VOCABULARY = Vocabulary(
    (*SPECIAL_TOKENS, "A", "B", "C", "GENDER//F", "HR//Q1", "HR//Q2"),
    {"HR": (80.0,)},
    exclude=("MEDS_BIRTH$", "MEDS_DEATH$", "BILL"),
)
BORN = (1, "1980-01-01", "MEDS_BIRTH")


def tokens_of(frame, rows, unit="day", cutoff="2020-12-31", subjects=(1,)) -> pl.DataFrame:
    cutoffs = pl.DataFrame(
        {"subject_id": subjects, "cutoff": [datetime.fromisoformat(cutoff)] * len(subjects)},
        schema={"subject_id": pl.Int64, "cutoff": pl.Datetime("us")},
    )
    tokens = visit_tokens(histories_of(frame(rows)), cutoffs, VOCABULARY, VisitConfig(unit=unit))
    columns = {name: getattr(tokens, name) for name in ("visit", "token", "age_years", "gap_days")}
    return pl.DataFrame({"subject_id": np.repeat(tokens.subject_ids, tokens.n_tokens), **columns})


def names(table: pl.DataFrame) -> list[tuple[int, str]]:
    """(visit, token) of each row."""
    return [(visit, VOCABULARY.tokens[token]) for visit, token in table.select("visit", "token").iter_rows()]


def test_visits_by_day_with_age_and_gap(frame):
    rows = [
        BORN,
        (1, None, "GENDER//F"),
        (1, "2020-01-01 08:00", "B"),
        (1, "2020-01-01 20:00", "A"),
        (1, "2020-01-04 08:00", "A"),
    ]
    table = tokens_of(frame, rows)
    assert names(table) == [(0, "GENDER//F"), (1, "A"), (1, "B"), (2, "A")]
    assert table["gap_days"].to_list() == [0, 0, 0, 3]
    age_days = [0, 14610 + 8 / 24, 14610 + 8 / 24, 14613 + 8 / 24]  # 40 years hold 10 leap days
    assert table["age_years"].to_list() == pytest.approx([days / 365.25 for days in age_days], rel=1e-6)
    assert table.schema == {
        "subject_id": pl.Int64,
        "visit": pl.Int32,
        "token": pl.Int32,
        "age_years": pl.Float32,
        "gap_days": pl.Float32,
    }


def test_visits_by_hour(frame):
    rows = [BORN, *[(1, f"2020-01-01 {time}", code) for time, code in TIMES]]
    table = tokens_of(frame, rows, unit="hour")
    assert names(table) == [(1, "A"), (1, "B"), (2, "A"), (3, "A")]
    assert table["gap_days"].to_list() == pytest.approx([0, 0, 55 / 1440, 180 / 1440])


TIMES = [("08:05", "A"), ("08:59:59", "B"), ("09:00", "A"), ("12:00", "A")]


def test_visits_by_encounter_and_by_day_where_there_is_none(frame):
    rows = [
        BORN,
        (1, "2020-01-01", "A", None, "stay"),
        (1, "2020-01-05", "B", None, "stay"),
        (1, "2020-01-03", "C", None, "clinic"),
        (1, "2020-01-04", "A"),
        (1, "2020-01-04", "B"),
    ]
    table = tokens_of(frame, rows, unit="encounter")
    assert names(table) == [(1, "A"), (1, "B"), (2, "C"), (3, "A"), (3, "B")]
    assert table["gap_days"].to_list() == [0, 0, 2, 1, 1]


def test_encounters_that_begin_together_are_ordered_by_name(frame):
    rows = [BORN, (1, "2020-01-01", "A", None, "e2"), (1, "2020-01-01", "B", None, "e1")]
    assert names(tokens_of(frame, rows, unit="encounter")) == [(1, "B"), (2, "A")]


def test_encounter_that_goes_on_after_the_cutoff_shows_only_what_was_before(frame):
    rows = [BORN, (1, "2020-01-01", "A", None, "stay"), (1, "2020-01-05", "B", None, "stay")]
    assert names(tokens_of(frame, rows, unit="encounter", cutoff="2020-01-04")) == [(1, "A")]


def test_token_appears_once_a_visit_and_unknown_codes_once_as_unk(frame):
    rows = [BORN, *[(1, "2020-01-01", code) for code in ("B", "A", "A", "NEW1", "NEW2")]]
    assert tokens_of(frame, rows)["token"].to_list() == [UNK, 4, 5]


def test_values_become_their_bins(frame):
    rows = [BORN, *[(1, "2020-01-01", "HR", value, None) for value in (60.0, 79.9, 80.0, None)]]
    assert names(tokens_of(frame, rows)) == [(1, "[UNK]"), (1, "HR//Q1"), (1, "HR//Q2")]


def test_excluded_codes_make_no_visit(frame):
    rows = [BORN, (1, "2020-01-01", "A"), (1, "2020-01-02", "BILL//7"), (1, "2020-01-03", "A")]
    table = tokens_of(frame, rows)
    assert names(table) == [(1, "A"), (2, "A")]
    assert table["gap_days"].to_list() == [0, 2]


def test_event_at_the_cutoff_is_known_and_a_moment_later_is_not(frame):
    rows = [BORN, (1, "2020-01-01 12:00:00", "A"), (1, "2020-01-01 12:00:00.000001", "B")]
    assert names(tokens_of(frame, rows, cutoff="2020-01-01 12:00")) == [(1, "A")]


def test_nothing_before_birth_or_after_death_appears(frame):
    rows = [
        (1, "1979-12-31", "C"),
        BORN,
        (1, "1980-01-01", "A"),
        (1, "2020-01-01", "MEDS_DEATH"),
        (1, "2020-01-01", "B"),
        (1, "2020-01-02", "C"),
    ]
    assert names(tokens_of(frame, rows)) == [(1, "A"), (2, "B")]


def test_subjects_do_not_mix(frame):
    rows = [
        BORN,
        (1, "2020-01-01", "A", None, "same id"),
        (2, "1990-01-01", "MEDS_BIRTH"),
        (2, "2020-01-01", "B", None, "same id"),
        (2, "2020-01-11", "B", None, "other"),
        (3, "2020-01-01", "C"),
    ]
    table = tokens_of(frame, rows, unit="encounter", subjects=(2, 1))
    assert table.select("subject_id", "visit", "gap_days").rows() == [(1, 1, 0), (2, 1, 0), (2, 2, 10)]
    assert table["age_years"].to_list() == pytest.approx([40, 30, 30 + 10 / 365.25], abs=1e-2)


def test_subjects_without_birth_are_counted_and_named(make_dataset, tmp_path):
    rows = [BORN, (2, "2020-01-01", "A"), (3, "2021-01-01", "MEDS_BIRTH"), (3, "2020-01-01", "A")]
    cutoffs = pl.DataFrame({"subject_id": [1, 2, 3], "cutoff": [datetime(2020, 12, 31)] * 3})
    with pytest.raises(DataError, match=r"2 of 3 subjects have no MEDS_BIRTH .*first: subject 2"):
        build_store(make_dataset(rows), cutoffs, VOCABULARY, VisitConfig(), tmp_path)
