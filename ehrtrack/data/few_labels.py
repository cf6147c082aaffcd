"""Training on few labels: subsets of the training rows, nested and with the same share of events."""

from __future__ import annotations

import math

import polars as pl

from ehrtrack.data.splits import uniform
from ehrtrack.errors import DataError


def draw_labels(rows: pl.DataFrame, n_labels: int, *, seed: int) -> pl.Series:
    """Which rows of a cohort are kept where `n_labels` of its training rows are to be.

    Of the training rows `n_labels` are kept, of the validation rows as many as keep their ratio to the training rows
    (two at least), and all others. Among them is the share of events that the whole split has, rounded, and at least
    one with and one without. Which ones is a hash of the seed, the subject and its time: with the same seed, those of a
    smaller number are among those of a larger one.

    Parameters
    ----------
    rows : subject_id, index_date, is_event, split

    Returns
    -------
    is_drawn : (N,) bool

    Raises
    ------
    DataError
        If there are fewer training rows, or all of a split are of one class.

    Examples
    --------
    Four of eight training rows, with the half of events that all of them have; the test row stays:

    >>> from datetime import datetime
    >>> split = ["train"] * 8 + ["validation"] * 4 + ["test"]
    >>> rows = pl.DataFrame({"subject_id": range(13), "is_event": [True, False] * 6 + [True], "split": split})
    >>> rows = rows.with_columns(index_date=datetime(2020, 1, 1))
    >>> drawn = rows.filter(draw_labels(rows, 4, seed=0))
    >>> drawn.group_by("split", maintain_order=True).agg(pl.len(), pl.col("is_event").sum()).rows()
    [('train', 4, 2), ('validation', 2, 1), ('test', 1, 1)]
    """
    keys = rows.select(pl.format("{}:{}", "subject_id", pl.col("index_date").dt.epoch("us"))).to_series()
    ordered = rows.select("split", "is_event").with_row_index("row").with_columns(u=uniform(keys, seed)).sort("u")
    n_training = int((rows["split"] == "train").sum())
    if n_labels > n_training:
        raise DataError(
            f"cohort.n_labels is {n_labels}, and there are {n_training} training rows; ask for that many at most, or "
            "leave it out to train on all of them"
        )
    ratio = int((rows["split"] == "validation").sum()) / n_training
    wanted = {"train": n_labels, "validation": max(2, math.floor(n_labels * ratio + 0.5))}
    drawn = [row for split, n in wanted.items() for row in _stratified(ordered, split, n)]
    is_drawn = ~rows["split"].is_in(list(wanted)) | pl.Series(range(rows.height)).is_in(drawn)
    return is_drawn.alias("is_drawn")


def _stratified(ordered: pl.DataFrame, split: str, n_wanted: int) -> list[int]:
    """The first rows of a split with and without the event, in the proportion of the split."""
    part = ordered.filter(pl.col("split") == split)
    n_events = int(part["is_event"].sum())
    if n_events in (0, part.height):
        raise DataError(
            f"cohort.n_labels draws from both classes, and of {part.height} {split} rows {n_events} have the outcome; "
            "look at cohort.outcome, or split otherwise"
        )
    n_drawn = min(n_wanted, part.height)
    n_with = min(max(1, math.floor(n_drawn * n_events / part.height + 0.5)), n_drawn - 1)
    of_class = {True: n_with, False: n_drawn - n_with}
    return [
        row
        for is_event, n in of_class.items()
        for row in part.filter(pl.col("is_event") == is_event)["row"].head(n).to_list()
    ]
