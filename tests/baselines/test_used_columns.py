"""Which columns a tabular baseline reads: those that enough subjects have, however many rows these have."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ehrtrack.baselines.base import Labelled, seen_within, used_columns
from ehrtrack.errors import DataError

SUBJECT = np.array([5, 3, 5, 3, 8, 5])
#                            5  3  5  3  8  5
FEATURES = pl.DataFrame({"of_two": [1, 0, 0, 2, 0, 3], "of_one": [1, 0, 2, 0, 0, 3]})
TRAIN = Labelled(FEATURES, np.arange(1.0, 7.0), np.ones(6, dtype=bool), SUBJECT)


def test_a_subject_with_several_rows_counts_once():
    assert used_columns(TRAIN, min_subjects=2) == ["of_two"]
    of_rows = Labelled(FEATURES, TRAIN.follow_up_days, TRAIN.is_event)
    assert used_columns(of_rows, min_subjects=3) == ["of_two", "of_one"]
    with pytest.raises(DataError, match="none of 2 features varies and is non-zero in at least 3"):
        used_columns(TRAIN, min_subjects=3)


def test_rows_keep_their_subjects_where_follow_up_is_cut():
    assert seen_within(TRAIN, 3.0).subject is SUBJECT
