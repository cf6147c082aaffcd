"""What a baseline is to the recipes: a module with a `Config` and `fit`, on one row of features a subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.errors import DataError


@dataclass(frozen=True)
class Tabular:
    """Subjects as rows of numbers, with their follow-up.

    Attributes
    ----------
    features : B rows, numeric columns only (no subject_id)
    follow_up_days : (B,) days from the index date to event or censoring
    is_event : (B,) bool
    """

    features: pl.DataFrame
    follow_up_days: npt.NDArray[np.float64]
    is_event: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        lengths = (self.features.height, len(self.follow_up_days), len(self.is_event))
        if len(set(lengths)) != 1:
            raise DataError(
                f"{lengths[0]} rows of features, {lengths[1]} follow-ups and {lengths[2]} event flags; "
                "needed is one of each per subject, in the same order"
            )
        not_numeric = [
            f"{name} ({kind})"
            for name, kind in self.features.schema.items()
            if not kind.is_numeric() and kind != pl.Boolean
        ]
        if not_numeric:
            raise DataError(
                f"columns that are not numbers: {', '.join(not_numeric[:5])}; encode or drop them before the fit"
            )


class FittedBaseline(Protocol):
    """A fitted baseline. Features go by name: in any order, with others beside them."""

    def survival(self, features: pl.DataFrame, times: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(B, M) probability of no event up to each of the M `times` in days."""

    def risk(self, features: pl.DataFrame, horizon_days: float) -> npt.NDArray[np.float64]:
        """(B,) probability of an event up to the horizon."""

    def describe(self) -> Mapping[str, float | int | str]:
        """Facts to log: at least n_features and n_parameters."""

    def to_json(self) -> str:
        """All that predicting needs, as JSON text; the module's ``from_json`` reads it."""
