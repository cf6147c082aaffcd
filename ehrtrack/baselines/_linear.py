"""What linear models on counts of codes share: which columns they use, on which scale, and how they are kept."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import ConfigDict, TypeAdapter

from ehrtrack.arrays import Bools, Floats
from ehrtrack.baselines._ages import with_ages
from ehrtrack.baselines._json import names_of, no_such_model
from ehrtrack.baselines.base import Tabular, matrix, used_columns
from ehrtrack.baselines.settings import CoxConfig

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Feature:
    """How one column enters the model: z = (g(x) - mean) / scale with g = log1p for counts, times beta."""

    __pydantic_config__ = STRICT

    name: str
    is_count: bool
    mean: float
    scale: float
    beta: float


@dataclass(frozen=True, kw_only=True)
class ProportionalModel(ABC):
    """A model with proportional hazards: S(t | x) = exp(-H_0(t) exp(linear predictor)).

    Attributes
    ----------
    baseline_days, baseline_cumulative_hazard : steps of Breslow's H_0
    """

    baseline_days: tuple[float, ...]
    baseline_cumulative_hazard: tuple[float, ...]

    @abstractmethod
    def linear_predictor(self, features: pl.DataFrame) -> Floats:
        """(B,) the log hazard ratio against a subject with the training means."""

    def survival(self, features: pl.DataFrame, times: npt.ArrayLike) -> Floats:
        """(B, M) at `times` (M,) in days.

        H_0 is a step function: 0 before the first training event, and constant after the last.
        """
        steps = np.concatenate([[0.0], self.baseline_cumulative_hazard])
        at = np.atleast_1d(np.asarray(times, dtype=np.float64))
        cumulative_hazard = steps[np.searchsorted(self.baseline_days, at, side="right")]  # (M,)
        return np.exp(-np.outer(np.exp(self.linear_predictor(features)), cumulative_hazard))

    def risk(self, features: pl.DataFrame, horizon_days: float) -> Floats:
        """(B,) probability of an event up to the horizon."""
        return 1 - self.survival(features, [horizon_days])[:, 0]

    def check_steps(self) -> None:
        """Raise ValueError if H_0 is none."""
        if len(self.baseline_days) != len(self.baseline_cumulative_hazard):
            raise ValueError("days and hazards of the baseline are not as many")


@dataclass(frozen=True)
class Columns:
    """The D columns that take part in a fit.

    Attributes
    ----------
    is_count, mean, scale : (D,) as in `Feature`
    """

    names: Sequence[str]
    is_count: Bools
    mean: Floats
    scale: Floats

    def z(self, table: pl.DataFrame) -> Floats:
        """(B, D) as the model reads them."""
        return _standardised(matrix(table, self.names), self.is_count, self.mean, self.scale)

    def features(self, beta: Floats) -> tuple[Feature, ...]:
        """Those whose coefficient (D,) is not zero."""
        found = zip(self.names, self.is_count, self.mean, self.scale, beta, strict=True)
        return tuple(Feature(n, bool(c), float(m), float(s), float(b)) for n, c, m, s, b in found if b)


def standardise(train: Tabular, config: CoxConfig) -> tuple[Columns, Floats]:
    """The columns to use, and (B, D) the training subjects' values on their scale.

    Raises
    ------
    DataError
        If none can be used, or a value is missing.
    """
    matrix(train.features, train.features.columns)  # nothing may be missing
    names = used_columns(train, min_subjects=config.min_subjects)
    x = matrix(train.features, names)
    is_count = config.log_counts & (x >= 0).all(axis=0) & (x == np.round(x)).all(axis=0)
    _take_log(x, is_count)
    columns = Columns(names, is_count, x.mean(axis=0), x.std(axis=0))
    return columns, (x - columns.mean) / columns.scale


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """A fitted linear model. Only features with a non-zero coefficient are kept, and needed for predicting.

    Attributes
    ----------
    features : the columns used
    penalty, l1_ratio : the penalty chosen
    n_features : columns that took part in the fit
    n_candidates : penalties that were tried
    mean_age : in years, what stands for an age that is unknown; None where every age has to be known
    """

    __pydantic_config__ = STRICT
    what: ClassVar[str]

    features: tuple[Feature, ...]
    penalty: float
    l1_ratio: float
    n_features: int
    n_candidates: int
    mean_age: float | None = None

    def __post_init__(self) -> None:
        names_of([feature.name for feature in self.features])

    def linear_predictor(self, features: pl.DataFrame) -> Floats:
        """(B,) z beta, 0 for a subject with the training means.

        Raises
        ------
        DataError
            If a column that the model uses is missing, or a value is.
        """
        table = with_ages(features, self.mean_age)
        if not self.features:
            return np.zeros(table.height)
        z = _standardised(
            matrix(table, [feature.name for feature in self.features]),
            is_count=np.array([feature.is_count for feature in self.features]),
            mean=np.array([feature.mean for feature in self.features]),
            scale=np.array([feature.scale for feature in self.features]),
        )
        return np.asarray(z @ np.array([feature.beta for feature in self.features]), dtype=np.float64)

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log."""
        return {
            "n_features": self.n_features,
            "n_parameters": len(self.features),
            "penalty": self.penalty,
            "l1_ratio": self.l1_ratio,
            "n_candidates": self.n_candidates,
        }

    def to_json(self) -> str:
        """The model as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The model back from `to_json`.

        Raises
        ------
        CheckpointError
            If the text is not such a model.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValueError as error:
            raise no_such_model(text, cls.what, cls, error) from error


def _take_log(x: Floats, is_count: Bools) -> None:
    """log(1 + x) in place, in the columns that hold counts."""
    x[:, is_count] = np.log1p(np.maximum(x[:, is_count], 0))


def _standardised(x: Floats, is_count: Bools, mean: Floats, scale: Floats) -> Floats:
    """Features as the model reads them; changes x, which is as large as all subjects by all codes."""
    _take_log(x, is_count)
    return (x - mean) / scale
