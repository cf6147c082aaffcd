"""What a cohort says of itself: attrition, summary, fingerprint; and the inputs it refuses."""

from __future__ import annotations

import polars as pl
import pytest

from ehrtrack.data.cohort import build_cohort, summarise_cohort
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.splits import assign_splits
from ehrtrack.errors import ConfigError, DataError

RULES = {
    "index": {"rule": "first_code", "codes": ["A"]},
    "outcome": {"codes": ["X"]},
    "horizon_days": 100,
}


def config(**changes) -> CohortConfig:
    return CohortConfig.model_validate({**RULES, **changes})


def story(subject: int, *, outcome: str | None = "2020-01-31") -> list[tuple[int, str, str]]:
    """Born 1970, index 1 January 2020, outcome on day 30 or censored at the horizon, day 100."""
    rows = [(subject, "1970-01-01", "MEDS_BIRTH"), (subject, "2020-01-01", "A"), (subject, "2021-01-01", "B")]
    return rows if outcome is None else [*rows, (subject, outcome, "X")]


def population(n_subjects: int = 60) -> list[tuple[int, str, str]]:
    """Every second subject has the outcome; ids are 1..n, spread over the three splits by their hash."""
    return [
        row
        for subject in range(1, n_subjects + 1)
        for row in story(subject, outcome="2020-01-31" if subject % 2 else None)
    ]


def test_attrition_counts_who_is_left_and_who_is_lost_at_every_step(make_dataset):
    rows = [
        *population(),
        (101, "2020-01-01", "B"),
        (102, "2020-01-01", "B"),
        *[(103, "2019-01-01", "MEDS_DEATH"), (103, "2020-01-01", "A"), (103, "2020-02-01", "A")],
        *[(104, "1970-01-01", "MEDS_BIRTH"), (104, "2020-01-01", "A"), (104, "2020-01-01", "X")],
        *[(105, "1970-01-01", "MEDS_BIRTH"), (105, "2020-01-01", "A")],
        *[(106, "2010-01-01", "MEDS_BIRTH"), (106, "2020-01-01", "A"), (106, "2021-01-01", "X")],
        *[(107, "1900-01-01", "MEDS_BIRTH"), (107, "2020-01-01", "A"), (107, "2021-01-01", "X")],
    ]
    settings = config(min_age_years=18, max_age_years=99, min_history_days=0)
    attrition = build_cohort(make_dataset(rows), settings, SplitConfig()).attrition
    assert attrition.rows() == [
        ("subjects in the dataset", 67, 0),
        ("has an index date", 65, 2),
        ("has an event at or before the index date", 65, 0),
        ("alive at the index date", 64, 1),
        ("age of at most 120 years at the index date", 64, 0),
        ("under observation at the index date", 64, 0),
        ("history of at least min_history_days", 64, 0),
        ("age of at least min_age_years", 63, 1),
        ("age of at most max_age_years", 62, 1),
        ("no outcome at or before the index date", 61, 1),
        ("follow-up after the index date", 60, 1),
    ]


def test_who_is_older_than_120_years_is_left_out_and_counted(make_dataset):
    births = {201: "1899-01-01", 202: "1899-01-02", 203: "1850-01-01"}  # 121 on the index date, 120, and 170
    rows = [
        row if row[2] != "MEDS_BIRTH" else (subject, births[subject], "MEDS_BIRTH")
        for subject in births
        for row in story(subject)
    ]
    cohort = build_cohort(make_dataset([*population(), *rows]), config(), SplitConfig())
    assert set(births) & set(cohort.subjects["subject_id"]) == {202}
    assert ("age of at most 120 years at the index date", 61, 2) in cohort.attrition.rows()


def test_subjects_carry_their_hashed_split_and_are_sorted(make_dataset):
    cohort = build_cohort(make_dataset(population()[::-1]), config(), SplitConfig(seed=3))
    assert cohort.subjects["subject_id"].to_list() == list(range(1, 61))
    expected = assign_splits(pl.Series(range(1, 61)), SplitConfig(seed=3))
    assert cohort.subjects["split"].to_list() == expected.to_list()
    assert cohort.horizon_days == 100
    assert cohort.subjects.schema == {
        "subject_id": pl.Int64,
        "index_date": pl.Datetime("us"),
        "follow_up_days": pl.Float64,
        "is_event": pl.Boolean,
        "split": pl.String,
    }
    assert cohort.cutoffs.columns == ["subject_id", "cutoff", "split"]


def test_summary_adds_up_events_and_person_years_of_each_split(make_dataset):
    cohort = build_cohort(make_dataset(population()), config(), SplitConfig())
    summary = summarise_cohort(cohort)
    assert summary["split"].to_list() == ["train", "validation", "test"]
    assert summary["n_subjects"].sum() == 60
    assert summary["n_events"].sum() == 30
    for split, n_subjects, n_events, event_rate, _, person_years in summary.iter_rows():
        assert n_subjects == (cohort.subjects["split"] == split).sum()
        assert event_rate == n_events / n_subjects
        assert person_years == pytest.approx((30 * n_events + 100 * (n_subjects - n_events)) / 365.25)


def test_fingerprint_follows_data_rules_and_split_and_nothing_else(make_dataset):
    dataset = make_dataset(population())
    base = build_cohort(dataset, config(), SplitConfig()).fingerprint
    assert build_cohort(make_dataset(population()), config(), SplitConfig()).fingerprint == base
    changed = {
        build_cohort(make_dataset(population(61)), config(), SplitConfig()).fingerprint,
        build_cohort(dataset, config(horizon_days=101), SplitConfig()).fingerprint,
        build_cohort(dataset, config(min_age_years=1), SplitConfig()).fingerprint,
        build_cohort(dataset, config(), SplitConfig(seed=1)).fingerprint,
    }
    assert len(changed | {base}) == 5


# refusals


def test_empty_cohort_names_the_step_that_emptied_it(make_dataset):
    with pytest.raises(DataError, match="'age of at least min_age_years' dropped the last 60 subjects"):
        build_cohort(make_dataset(population()), config(min_age_years=51), SplitConfig())


def test_index_code_that_nobody_has_is_said(make_dataset):
    rules = config(index={"rule": "first_code", "codes": ["NOTHING"]})
    with pytest.raises(DataError, match="'has an index date' dropped the last 60 subjects"):
        build_cohort(make_dataset(population()), rules, SplitConfig())


def test_all_censored_is_refused(make_dataset):
    with pytest.raises(DataError, match="all 60 subjects of the cohort are censored"):
        build_cohort(make_dataset(population()), config(horizon_days=29), SplitConfig())


def test_a_horizon_that_nobody_is_followed_to_is_refused_with_the_longest_that_would_do(make_dataset):
    dataset = make_dataset(
        [row for subject in range(1, 61) for row in story(subject, outcome=None if subject % 2 else "2020-01-31")]
    )
    assert build_cohort(dataset, config(horizon_days=366), SplitConfig()).horizon_days == 366  # of 2020
    with pytest.raises(DataError, match=r"is 367, and none of the \d+ training subjects .* that would do is 366 days"):
        build_cohort(dataset, config(horizon_days=367), SplitConfig())
    assert build_cohort(dataset, config(horizon_days=367, min_followed_share=0), SplitConfig()).horizon_days == 367


def test_the_share_that_has_to_be_followed_can_be_set_and_is_no_part_of_the_fingerprint(make_dataset):
    dataset = make_dataset(population())
    of_none = build_cohort(dataset, config(min_followed_share=0), SplitConfig())
    assert of_none.fingerprint == build_cohort(dataset, config(), SplitConfig()).fingerprint
    followed = of_none.subjects.filter(pl.col("split") == "train")["follow_up_days"].eq(100).mean()
    assert build_cohort(dataset, config(min_followed_share=followed), SplitConfig()).horizon_days == 100
    with pytest.raises(DataError, match=r"is 100, and fewer than \d+\.\d% of the .* that would do is 30 days"):
        build_cohort(dataset, config(min_followed_share=followed + 0.01), SplitConfig())


def test_split_without_events_is_named(make_dataset):
    split = assign_splits(pl.Series(range(1, 61)), SplitConfig())
    rows = [
        row
        for subject in range(1, 61)
        for row in story(subject, outcome=None if split[subject - 1] == "validation" else "2020-01-31")
    ]
    with pytest.raises(DataError, match="the validation split has no events"):
        build_cohort(make_dataset(rows), config(), SplitConfig())


def test_missing_birth_is_named_when_an_age_is_needed(make_dataset):
    rows = [*population(), (7, "2020-01-01", "C")]
    rows = [row for row in rows if row[0] not in (7, 9) or row[2] != "MEDS_BIRTH"]
    assert build_cohort(make_dataset(rows), config(), SplitConfig()).subjects.height == 60
    with pytest.raises(DataError, match=r"2 of 60 subjects have no MEDS_BIRTH .*first: subject 7"):
        build_cohort(make_dataset(rows), config(max_age_years=90), SplitConfig())
    with pytest.raises(DataError, match="rule = 'age' needs their ages"):
        build_cohort(make_dataset(rows), config(index={"rule": "age", "years": 50}), SplitConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither is cohort.labels"),
        ({"index": RULES["index"], "outcome": RULES["outcome"]}, "cohort.horizon_days is not set"),
        ({**RULES, "labels": "labels.csv"}, "cohort.labels and cohort.index, cohort.outcome are both set"),
        ({"labels": "labels.csv", "end_of_study": "2020-01-01"}, "cohort.end_of_study are both set"),
        ({**RULES, "outcome": {}}, "exactly one of death"),
        ({**RULES, "outcome": {"death": True, "codes": ["X"]}}, "exactly one of death"),
        ({**RULES, "outcome": {"codes": ["X("]}}, "'X\\(' is no regular expression"),
        ({**RULES, "index": {"rule": "first_code", "codes": [""]}}, "empty code pattern"),
    ],
)
def test_contradicting_or_missing_rules_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CohortConfig.model_validate(settings)
