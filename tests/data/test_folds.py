"""Folds of training and validation subjects: each validates once, test subjects are left alone."""

from __future__ import annotations

from datetime import datetime

import polars as pl
import pytest

from ehrtrack.data.cohort import Cohort
from ehrtrack.data.folds import in_fold
from ehrtrack.data.split_settings import ColumnSplit, DatasetSplit, SplitConfig
from ehrtrack.errors import ConfigError, DataError


def cohort_of(n_subjects: int = 40, *, n_rows: int = 1, n_events: int = 12) -> Cohort:
    """Subjects of whom the first have the event, a quarter tests, and a quarter of the others validates."""
    subjects = pl.DataFrame(
        [
            {
                "subject_id": subject,
                "index_date": datetime(2020, 1, 1 + row),
                "follow_up_days": 10.0,
                "is_event": subject < n_events,
                "split": "test" if subject % 4 == 3 else "validation" if subject % 4 == 2 else "train",
            }
            for subject in range(n_subjects)
            for row in range(n_rows)
        ]
    )
    return Cohort(subjects, 365.0, pl.DataFrame(), "a-fingerprint")


def people(cohort: Cohort, split: str) -> set[int]:
    return set(cohort.subjects.filter(split=split)["subject_id"])


@pytest.mark.parametrize("n_rows", [1, 3])
def test_each_subject_but_those_of_the_test_validates_in_one_fold_and_trains_in_all_others(n_rows: int) -> None:
    cohort = cohort_of(n_rows=n_rows)
    folds = [in_fold(cohort, f"{number}/3", SplitConfig()) for number in (1, 2, 3)]
    assert all(people(fold, "test") == people(cohort, "test") for fold in folds)
    held = [people(fold, "validation") for fold in folds]
    assert sorted(subject for part in held for subject in part) == sorted(
        people(cohort, "train") | people(cohort, "validation")
    )
    for fold, part in zip(folds, held, strict=True):
        assert people(fold, "train") == set.union(*held) - part
        assert fold.subjects["subject_id"].to_list() == cohort.subjects["subject_id"].to_list()
        assert fold.subjects.columns == cohort.subjects.columns


def test_each_fold_has_its_share_of_the_events_and_another_seed_gives_others() -> None:
    cohort = cohort_of()
    held = [people(in_fold(cohort, f"{number}/3", SplitConfig()), "validation") for number in (1, 2, 3)]
    assert [sum(subject < 12 for subject in part) for part in held] == [3, 3, 3]
    assert people(in_fold(cohort, "1/3", SplitConfig(seed=1)), "validation") != held[0]
    assert people(in_fold(cohort, "1/3", DatasetSplit(rule="dataset")), "validation") == held[0]


def test_folds_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="folds would mix what it keeps apart"):
        in_fold(cohort_of(), "1/3", ColumnSplit(rule="column", column="hospital"))
    with pytest.raises(ConfigError, match=r"data\.fold is '4/3'"):
        in_fold(cohort_of(), "4/3", SplitConfig())
    with pytest.raises(DataError, match="2 training and validation subjects have an event"):
        in_fold(cohort_of(n_events=2), "1/3", SplitConfig())
