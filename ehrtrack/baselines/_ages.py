"""Ages that are not known, in tables of features."""

from __future__ import annotations

import polars as pl

AGE, IS_AGE_UNKNOWN = "age_years", "is_age_unknown"


def age_to_fill(train: pl.DataFrame) -> float | None:
    """What stands for an age that is unknown: the training subjects' mean; None where every age has to be known."""
    if IS_AGE_UNKNOWN not in train.columns:
        return None
    known = train[AGE].fill_nan(None).mean()
    return float(known) if isinstance(known, float) else 0.0


def with_ages(features: pl.DataFrame, mean_age: float | None) -> pl.DataFrame:
    """The features with `age_to_fill` where the age is unknown; the column beside still tells them apart.

    >>> features = pl.DataFrame({"age_years": [60.0, float("nan")], "is_age_unknown": [0.0, 1.0]})
    >>> with_ages(features, 50.0)["age_years"].to_list()
    [60.0, 50.0]
    """
    return features if mean_age is None else features.with_columns(pl.col(AGE).fill_nan(mean_age))
