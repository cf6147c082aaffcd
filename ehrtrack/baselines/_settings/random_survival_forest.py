"""Settings of `ehrtrack.baselines.random_survival_forest`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ehrtrack.baselines.settings import Numbers, Shares, TreeSettings


class Config(TreeSettings):
    """Settings of the forest; the tuples are what `n_candidates` combinations are taken from.

    Attributes
    ----------
    n_trees : trees of the forest
    min_rows, feature_shares : subjects a leaf, and share of the columns that a split may choose from
    max_rows : subjects that a tree is grown on, at most, drawn with replacement
    n_intervals : of the time grid, at most
    """

    name: Literal["random-survival-forest"] = "random-survival-forest"
    n_trees: int = Field(100, ge=1)
    min_rows: Numbers = (15, 8, 30, 60)
    feature_shares: Shares = (0.05, 0.02, 0.1)
    max_rows: int = Field(5_000, ge=1)
    n_intervals: int = Field(10, ge=1)
