"""Folds: training and validation subjects together, divided anew, so that each of them validates once."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from ehrtrack.data.cohort import Cohort
from ehrtrack.data.split_settings import ColumnSplit, Split, TimeSplit
from ehrtrack.data.splits import uniform
from ehrtrack.errors import ConfigError, DataError


def check_folds(split: Split) -> None:
    """Refuse folds of subjects where a split keeps groups, or times, apart.

    Raises
    ------
    ConfigError
        If the split is by time or by group.
    """
    if isinstance(split, TimeSplit | ColumnSplit):
        raise ConfigError(
            f"data.split.rule is {split.rule!r}, and folds would mix what it keeps apart: set search.folds = 0, which "
            "scores trials on the validation subjects, or split by 'hash' or as the dataset does"
        )


def in_fold(cohort: Cohort, fold: str, split: Split) -> Cohort:
    """The cohort with its training and validation subjects divided anew: those of one fold validate, all others train.

    The folds are drawn by a hash of the subject, apart for subjects with and without the event, so that each fold has
    as many events as the others, or one more or less. Test subjects stay what they are. All rows of a subject are in
    one fold.

    Parameters
    ----------
    fold : such as ``2/5``: the second of five

    Raises
    ------
    ConfigError
        If there is no such fold, or the split keeps groups or times apart.
    DataError
        If a fold would have no event.
    """
    number, n_folds = (int(part) for part in fold.split("/"))
    if not 1 <= number <= n_folds or n_folds < 2:
        raise ConfigError(f"data.fold is {fold!r}; give the number of a fold and that of all, such as 2/5")
    check_folds(split)
    people = cohort.subjects.filter(pl.col("split") != "test").group_by("subject_id").agg(pl.col("is_event").any())
    people = people.with_columns(hash=uniform(people["subject_id"], getattr(split, "seed", 0)))
    people = people.sort("is_event", "hash", "subject_id").with_columns(
        fold=pl.int_range(pl.len()).over("is_event") % n_folds
    )
    n_events = int(people["is_event"].sum())
    if n_events < n_folds:
        raise DataError(
            f"{n_events} training and validation subjects have an event, and each of {n_folds} folds needs one; lower "
            "search.folds, or widen the cohort"
        )
    held = people.filter(pl.col("fold") == number - 1)["subject_id"].implode()
    part = pl.when(pl.col("subject_id").is_in(held)).then(pl.lit("validation")).otherwise(pl.lit("train"))
    anew = pl.when(pl.col("split") == "test").then(pl.col("split")).otherwise(part)
    return replace(cohort, subjects=cohort.subjects.with_columns(anew.alias("split")))
