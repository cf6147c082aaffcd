"""Settings of `ehrtrack.baselines.gradient_boosting`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ehrtrack.baselines.settings import Numbers, Rates, Shares, Strengths, TreeSettings


class Settings(TreeSettings):
    """Settings of gradient boosting; the tuples are what `n_candidates` combinations are taken from.

    Attributes
    ----------
    learning_rates, max_leaves, min_rows, penalties, feature_shares : of the trees: step, leaves a tree, person-periods
        a leaf, L2 penalty, and share of the columns that a split may choose from
    max_trees : the most trees; fewer where the validation loss stops falling
    n_intervals : of the time grid, at most; rows and time of the fit grow with it
    """

    learning_rates: Rates = (0.06, 0.03, 0.12)
    max_leaves: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (8, 4, 16)
    min_rows: Numbers = (40, 100)
    penalties: Strengths = (1.0, 10.0)
    feature_shares: Shares = (0.3, 1.0)
    max_trees: int = Field(400, ge=1)
    n_intervals: int = Field(4, ge=1)


class Config(Settings):
    """Settings of gradient boosting on counts."""

    name: Literal["gradient-boosting"] = "gradient-boosting"
