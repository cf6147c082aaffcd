"""The split hangs on the subject and the seed, and on nothing else."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.splits import SPLITS, assign_splits
from ehrtrack.errors import ConfigError


def test_shares_are_those_asked_for():
    splits = assign_splits(pl.Series(range(20_000)), SplitConfig(train=0.6, validation=0.3))
    shares = splits.value_counts(normalize=True).sort("split")
    assert shares["split"].to_list() == ["test", "train", "validation"]
    assert shares["proportion"].to_list() == pytest.approx([0.1, 0.6, 0.3], abs=0.01)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1), st.integers(0, 5), st.data())
def test_adding_subjects_moves_nobody(subjects, seed, data):
    config = SplitConfig(seed=seed)
    some = data.draw(st.lists(st.sampled_from(subjects), unique=True))
    whole = dict(zip(subjects, assign_splits(pl.Series(subjects, dtype=pl.Int64), config), strict=True))
    part = assign_splits(pl.Series(some, dtype=pl.Int64), config).to_list()
    assert part == [whole[subject] for subject in some]


def test_splits_are_the_same_in_every_process():
    splits = assign_splits(pl.Series(range(12)), SplitConfig())
    assert [SPLITS.index(split) for split in splits] == [0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0, 0]


def test_another_seed_moves_subjects():
    subjects = pl.Series(range(1000))
    same = assign_splits(subjects, SplitConfig(seed=0)) == assign_splits(subjects, SplitConfig(seed=1))
    assert 0.4 < same.mean() < 0.65  # 0.7² + 0.15² + 0.15² = 0.535 by chance


def test_shares_that_leave_no_test_subjects_are_refused():
    with pytest.raises(ConfigError, match="leaves no test subjects"):
        SplitConfig(train=0.8, validation=0.2)
