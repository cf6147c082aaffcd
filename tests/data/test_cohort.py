"""Cohorts by rules: every index rule, outcome and end of follow-up with dates worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from ehrtrack.data import cohort as cohort_module
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.split_settings import SplitConfig

FIRST_A = {"rule": "first_code", "codes": ["A"]}
Followed = dict[int, tuple[str, float, bool]]


@pytest.fixture
def follow(make_dataset, monkeypatch) -> Callable[..., Followed]:
    """Index date, follow-up in days and is_event of each subject; a few subjects cannot fill three splits."""
    monkeypatch.setattr(cohort_module, "_check_events", lambda *_: None)

    def run(rows, **config) -> Followed:
        settings = {
            "index": FIRST_A,
            "outcome": {"codes": ["X"]},
            "horizon_days": 1000,
            "min_followed_share": 0,
            **config,
        }
        cohort = build_cohort(make_dataset(rows), CohortConfig.model_validate(settings), SplitConfig())
        return {
            subject: (index_date.isoformat(sep=" ").removesuffix(" 00:00:00"), follow_up, is_event)
            for subject, index_date, follow_up, is_event, _ in cohort.subjects.iter_rows()
        }

    return run


# index rules


def test_first_code_is_the_first_event_that_matches_a_pattern_at_its_start(follow):
    rows = [
        (1, "2019-01-01", "NOT//A1"),
        (1, "2020-03-01", "A2"),
        (1, "2020-01-05 08:30", "A1"),
        (1, "2020-01-15 08:30", "B"),
        (2, "2020-01-01", "B"),
    ]
    assert follow(rows, index={"rule": "first_code", "codes": ["A[12]"]}) == {
        1: ("2020-01-05 08:30:00", 26 + 29 + 15.5 / 24, False)  # to 1 March 00:00
    }


def test_static_fact_is_no_index_event(follow):
    assert follow([(1, None, "A"), (1, "2020-01-01", "A"), (1, "2020-01-11", "B")]) == {1: ("2020-01-01", 10.0, False)}


@pytest.mark.parametrize(
    ("birth", "years", "birthday"),
    [
        ("1960-05-17 14:20", 60, "2020-05-17"),
        ("1960-02-29", 60, "2020-02-29"),
        ("1960-02-29", 59, "2019-02-28"),
        ("1959-12-31", 61, "2020-12-31"),
    ],
)
def test_age_index_is_the_start_of_the_birthday(follow, birth, years, birthday):
    rows = [(1, birth, "MEDS_BIRTH"), (1, "2018-01-01", "B"), (1, "2022-01-01", "B")]
    followed = follow(rows, index={"rule": "age", "years": years}, horizon_days=5)
    assert followed == {1: (birthday, 5.0, False)}


def test_age_index_needs_an_event_before_the_birthday(follow):
    rows = [
        (1, "1960-06-01", "MEDS_BIRTH"),
        (1, "2020-06-02", "B"),
        (1, "2020-07-01", "B"),
        (2, "1960-06-01", "MEDS_BIRTH"),
        (2, "2020-06-01", "B"),
        (2, "2020-06-11", "B"),
    ]
    assert follow(rows, index={"rule": "age", "years": 60}) == {2: ("2020-06-01", 10.0, False)}


def test_date_index_takes_those_seen_before_and_after_it(follow):
    rows = [
        (1, "2019-12-31", "B"),
        (1, "2020-01-31", "B"),
        (2, "2020-01-02", "B"),  # not yet seen on 1 January
        (2, "2020-01-31", "B"),
        (3, "2019-01-01", "B"),  # last seen before it
        (4, "2019-06-01", "B"),
        (4, "2020-01-01", "B"),  # seen on it, and never after
        (5, "2019-06-01", "B"),
        (5, "2019-12-31", "MEDS_DEATH"),
        (5, "2020-05-01", "B"),
    ]
    assert follow(rows, index={"rule": "date", "date": date(2020, 1, 1)}) == {1: ("2020-01-01", 30.0, False)}


def test_visit_index_is_the_end_of_the_nth_day_with_events(follow):
    rows = [
        (1, None, "GENDER//F"),
        (1, "1950-01-01", "MEDS_BIRTH"),
        (1, "2019-05-01", "OBSERVATION_PERIOD//START"),
        (1, "2020-01-01 09:00", "B"),
        (1, "2020-01-01 17:00", "B"),
        (1, "2020-01-03 09:00", "B"),
        (1, "2020-01-03 12:00", "B"),
        (1, "2020-01-13 12:00", "B"),
        (2, "2020-01-01", "B"),
    ]
    assert follow(rows, index={"rule": "visit", "number": 2}) == {1: ("2020-01-03 12:00:00", 10.0, False)}


def test_visit_index_by_encounter_orders_them_by_their_first_event(follow):
    rows = [
        (1, "2020-01-01", "B", None, "long stay"),
        (1, "2020-01-08", "B", None, "long stay"),
        (1, "2020-01-03", "B", None, "clinic"),
        (1, "2020-01-05", "B", None, None),  # no encounter: its day is the visit
        (1, "2020-01-28", "B", None, "later"),
    ]
    for number, end, follow_up in [(1, "2020-01-08", 20.0), (2, "2020-01-03", 25.0), (3, "2020-01-05", 23.0)]:
        index = {"rule": "visit", "number": number, "unit": "encounter"}
        assert follow(rows, index=index) == {1: (end, follow_up, False)}


def test_visit_index_by_hour_is_the_last_event_of_the_nth_hour_with_events(follow):
    rows = [
        (1, None, "GENDER//F"),
        (1, "2020-01-01 09:05", "B"),
        (1, "2020-01-01 09:55", "B"),
        (1, "2020-01-01 10:01", "B"),
        (1, "2020-01-01 10:59", "B"),
        (1, "2020-01-11 10:59", "B"),
    ]
    assert follow(rows, index={"rule": "visit", "number": 1, "unit": "hour"})[1][0] == "2020-01-01 09:55:00"
    assert follow(rows, index={"rule": "visit", "number": 2, "unit": "hour"}) == {
        1: ("2020-01-01 10:59:00", 10.0, False)
    }


# outcome and follow-up: index 1 January 2020 unless said

INDEX = (1, "2020-01-01", "A")


def test_outcome_is_the_first_strictly_after_the_index(follow):
    rows = [INDEX, (1, "2020-03-01", "X2"), (1, "2020-02-01", "X1"), (1, "2020-06-01", "B")]
    assert follow(rows) == {1: ("2020-01-01", 31.0, True)}


def test_subject_with_outcome_before_or_at_the_index_is_left_out(follow):
    before = [INDEX, (1, "2019-06-01", "X"), (1, "2020-02-01", "X")]
    at_index = [(2, "2020-01-01", "A"), (2, "2020-01-01", "X"), (2, "2020-02-01", "X")]
    free = [(3, "2020-01-01", "A"), (3, "2020-02-01", "X")]
    assert follow(before + at_index + free) == {3: ("2020-01-01", 31.0, True)}


def test_prior_outcome_stays_when_asked_and_only_later_ones_count(follow):
    before = [INDEX, (1, "2019-06-01", "X"), (1, "2020-02-01", "X")]
    at_index = [(2, "2020-01-01", "A"), (2, "2020-01-01", "X"), (2, "2020-01-21", "B")]
    assert follow(before + at_index, exclude_prior_outcome=False) == {
        1: ("2020-01-01", 31.0, True),
        2: ("2020-01-01", 20.0, False),
    }


def test_outcome_later_the_same_day_counts_with_its_hours(follow):
    rows = [(1, "2020-01-01 06:00", "A"), (1, "2020-01-01 18:00", "X")]
    assert follow(rows) == {1: ("2020-01-01 06:00:00", 0.5, True)}


def test_death_is_an_outcome(follow):
    rows = [INDEX, (1, "2020-01-31", "MEDS_DEATH"), (2, "2020-01-01", "A"), (2, "2020-01-11", "B")]
    assert follow(rows, outcome={"death": True}) == {
        1: ("2020-01-01", 30.0, True),
        2: ("2020-01-01", 10.0, False),
    }


def test_death_censors_another_outcome_and_nothing_after_it_counts(follow):
    rows = [INDEX, (1, "2020-01-31", "MEDS_DEATH"), (1, "2020-02-02", "X"), (1, "2020-02-03", "B")]
    assert follow(rows) == {1: ("2020-01-01", 30.0, False)}


def test_outcome_at_the_moment_of_death_is_an_event(follow):
    assert follow([INDEX, (1, "2020-01-31", "X"), (1, "2020-01-31", "MEDS_DEATH")]) == {1: ("2020-01-01", 30.0, True)}


def test_end_of_record_censors_and_the_end_of_an_observation_period_is_one(follow):
    rows = [
        INDEX,
        (1, "2020-01-20", "B"),
        (2, "2020-01-01", "A"),
        (2, "2020-01-20", "B"),
        (2, "2020-12-31", "OBSERVATION_PERIOD//END"),
    ]
    assert follow(rows) == {1: ("2020-01-01", 19.0, False), 2: ("2020-01-01", 365.0, False)}


PERIODS = [
    ("2005-01-01", "OBSERVATION_PERIOD//START"),
    ("2006-12-31", "OBSERVATION_PERIOD//END"),
    ("2010-01-01", "OBSERVATION_PERIOD//START"),
    ("2012-12-31", "OBSERVATION_PERIOD//END"),
]


def test_follow_up_ends_with_the_period_that_holds_the_index(follow):
    rows = [(1, *period) for period in PERIODS] + [(1, "2006-06-01", "A"), (1, "2010-02-01", "X")]
    rows += [(2, *period) for period in PERIODS] + [(2, "2006-06-01", "A"), (2, "2006-08-01", "X")]
    assert follow(rows, horizon_days=3650) == {1: ("2006-06-01", 213, False), 2: ("2006-06-01", 61, True)}


def test_an_index_between_two_periods_is_not_under_observation(follow):
    rows = [(1, *period) for period in PERIODS] + [(1, "2005-06-01", "B"), (1, "2010-02-01", "X")]
    rows += [(2, "2005-06-01", "B"), (2, "2010-02-01", "X")]  # a record without periods
    index = {"rule": "date", "date": "2008-01-01"}
    assert follow(rows, index=index, horizon_days=3650) == {2: ("2008-01-01", 762, True)}


def test_the_day_that_a_period_ends_on_is_in_it_and_an_open_one_goes_on(follow):
    rows = [(1, *period) for period in PERIODS[:2]] + [(1, "2006-12-31 10:00", "A"), (1, "2007-01-05", "X")]
    rows += [(2, *period) for period in PERIODS[:3]] + [(2, "2010-06-01", "A"), (2, "2010-06-11", "X")]
    assert follow(rows) == {2: ("2010-06-01", 10, True)}  # the first has no follow-up left


@pytest.mark.parametrize(("horizon_days", "is_event"), [(30.5, False), (31, True), (32, True)])
def test_horizon_censors_what_comes_after_it_and_keeps_what_comes_at_it(follow, horizon_days, is_event):
    rows = [INDEX, (1, "2020-02-01", "X"), (1, "2021-01-01", "B")]
    assert follow(rows, horizon_days=horizon_days) == {1: ("2020-01-01", min(horizon_days, 31), is_event)}


def test_end_of_study_censors_at_its_first_moment(follow):
    rows = [
        INDEX,
        (1, "2020-03-01 10:00", "X"),
        (2, "2020-01-01", "A"),
        (2, "2020-02-29 10:00", "X"),
        (3, "2020-03-01", "A"),  # the study is over
        (3, "2020-04-01", "X"),
    ]
    assert follow(rows, end_of_study=date(2020, 3, 1)) == {
        1: ("2020-01-01", 60.0, False),  # 31 + 29 days of a leap year
        2: ("2020-01-01", 59 + 10 / 24, True),
    }


def test_subject_not_seen_after_the_index_has_no_follow_up(follow):
    rows = [INDEX, (2, "2020-01-01", "A"), (2, "2020-01-02", "B")]
    assert follow(rows) == {2: ("2020-01-01", 1.0, False)}


def test_subject_who_dies_at_the_index_is_not_alive_at_it(follow):
    rows = [INDEX, (1, "2020-01-01", "MEDS_DEATH"), (1, "2020-01-05", "B")]
    others = [(2, "2020-01-01", "A"), (2, "2020-01-02", "B")]
    assert follow(rows + others, outcome={"death": True}) == {2: ("2020-01-01", 1.0, False)}


# eligibility


def test_history_runs_from_the_first_event_that_is_not_birth(follow):
    rows = [
        (1, "1950-01-01", "MEDS_BIRTH"),
        (1, "2019-01-02", "B"),
        INDEX,
        (1, "2020-02-01", "B"),
        (2, "1950-01-01", "MEDS_BIRTH"),
        (2, "2019-01-01", "OBSERVATION_PERIOD//START"),
        (2, "2020-01-01", "A"),
        (2, "2020-02-01", "B"),
    ]
    assert set(follow(rows, min_history_days=365)) == {2}
    assert set(follow(rows, min_history_days=364)) == {1, 2}


@pytest.mark.parametrize(
    ("birth", "age"),
    [
        ("2002-01-01", 18),
        ("2002-01-01 15:00", 18),  # the day counts, not the hour
        ("2002-01-02", 17),
        ("2001-12-31", 18),
        ("2000-02-29", 19),
    ],
)
def test_age_is_counted_in_completed_years_at_the_index(follow, birth, age):
    rows = [
        (1, birth, "MEDS_BIRTH"),
        INDEX,
        (1, "2020-02-01", "B"),
        (2, "1990-01-01", "MEDS_BIRTH"),  # is 30 (below: 0), so that there always is a cohort
        (2, "2020-01-01", "A"),
        (2, "2020-02-01", "B"),
    ]
    assert 1 in follow(rows, min_age_years=age)
    assert 1 not in follow(rows, min_age_years=age + 1)
    rows[3] = (2, "2020-01-01", "MEDS_BIRTH")
    assert 1 in follow(rows, max_age_years=age)
    assert 1 not in follow(rows, max_age_years=age - 1)


def test_leap_day_child_turns_a_year_older_on_28_february_in_common_years(follow):
    rows = [
        (1, "2000-02-29", "MEDS_BIRTH"),
        (1, "2018-02-28", "A"),
        (1, "2018-03-10", "B"),
        (2, "2000-02-29", "MEDS_BIRTH"),
        (2, "2018-02-27", "A"),
        (2, "2018-03-10", "B"),
    ]
    assert follow(rows, min_age_years=18) == {1: ("2018-02-28", 10.0, False)}


# landmarks


def test_at_a_landmark_those_still_followed_begin_anew(follow):
    rows = [
        *[(1, "2020-01-01", "A"), (1, "2020-01-21", "X")],  # the outcome before the landmark
        *[(2, "2020-01-01", "A"), (2, "2020-02-10", "X"), (2, "2020-06-01", "B")],
        *[(3, "2020-01-01", "A"), (3, "2020-01-31", "B")],  # followed up to the landmark and not beyond it
        *[(4, "2020-01-01", "A"), (4, "2020-12-31", "B")],
    ]
    assert follow(rows, landmark_days=30, horizon_days=100) == {
        2: ("2020-01-31", 10.0, True),
        4: ("2020-01-31", 100.0, False),  # the horizon is as long as it was
    }


def test_follow_up_from_a_landmark_is_never_longer_than_the_horizon(follow):
    rows = [(1, "2020-01-01", "A"), (1, "2020-06-01", "B")]
    assert 0.3 < 0.1 + 0.3 - 0.1
    assert follow(rows, landmark_days=0.1, horizon_days=0.3) == {1: ("2020-01-01 02:24:00", 0.3, False)}
