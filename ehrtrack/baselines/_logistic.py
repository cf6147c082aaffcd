"""Logistic regression with an elastic-net penalty: the model of classes that every other has to beat.

    logit p(x) = a + z beta        z: features, log-counted and standardised on the training subjects

a and beta minimise the mean log loss plus lambda (l1_ratio |beta| + (1 - l1_ratio) / 2 |beta|^2), by scikit-learn,
along a path of penalties lambda (Friedman et al. 2010, J Stat Softw 33(1)); the one with the best validation AUROC is
kept. It stands in the place of `cox` where labels are classes, with the same settings.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ehrtrack.arrays import Floats
from ehrtrack.baselines._classes import ClassModel
from ehrtrack.baselines._linear import LinearModel, standardise
from ehrtrack.baselines.base import (
    Baseline,
    Tabular,
    TokenHistories,
    check_events,
    read_counts,
    with_ages_filled,
)
from ehrtrack.baselines.settings import CoxConfig
from ehrtrack.errors import ConfigError
from ehrtrack.survival.classes import Classes, auroc

MAX_STEPS = 2_000
"""Passes over the training subjects for one penalty."""


@dataclass(frozen=True, kw_only=True)
class LogisticModel(LinearModel, ClassModel[pl.DataFrame]):
    """A fitted logistic regression.

    Attributes
    ----------
    intercept : log odds at the training means
    validation_auroc : by which the penalty was chosen
    """

    what = "a logistic regression"

    intercept: float
    validation_auroc: float

    def probability(self, features: pl.DataFrame) -> Floats:
        """(B,) of the class.

        Raises
        ------
        DataError
            If a column that the model uses is missing, or a value is.
        """
        return np.asarray(expit(self.intercept + self.linear_predictor(features)), dtype=np.float64)

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log; the intercept is a parameter."""
        facts = super().describe() | {"validation_auroc": self.validation_auroc}
        return facts | {"n_parameters": len(self.features) + 1}


class Logistic(Baseline[pl.DataFrame]):
    """Logistic regression on counts of codes; the penalty with the best validation AUROC is kept."""

    Config = CoxConfig
    config: CoxConfig
    title = "logistic"

    def read(self, histories: TokenHistories) -> pl.DataFrame:
        return read_counts(histories)

    def fit(self, train: Tabular, validation: Tabular) -> LogisticModel:
        """Fit on the training subjects; choose the penalty by AUROC on the validation subjects.

        Raises
        ------
        DataError
            If a class is missing, there is no usable feature, or a value is missing.
        ConfigError
            If every penalty asked for is too weak to be fitted.
        """
        check_events(train)
        train, validation, mean_age = with_ages_filled(train, validation)
        columns, z_train = standardise(train, self.config)
        z_validation = columns.z(validation.features)
        best: LogisticModel | None = None
        for number, (penalty, intercept, beta) in enumerate(_path(self.config, z_train, train), start=1):
            score = auroc(Classes(z_validation @ beta, validation.is_event))
            if best is None or score > best.validation_auroc:  # the first of equals: the strongest penalty
                best = LogisticModel(
                    features=columns.features(beta),
                    intercept=intercept,
                    penalty=penalty,
                    l1_ratio=self.config.l1_ratio,
                    n_features=len(columns.names),
                    n_candidates=number,
                    validation_auroc=score,
                    mean_age=mean_age,
                )
        if best is None:
            raise ConfigError(
                "the logistic regression does not converge at any penalty tried; raise baseline.penalties or "
                "baseline.min_penalty_ratio"
            )
        return replace(best, n_candidates=number)

    @classmethod
    def from_json(cls, text: str) -> LogisticModel:
        return LogisticModel.from_json(text)


def _path(config: CoxConfig, z: Floats, train: Tabular) -> Iterator[tuple[float, float, Floats]]:
    """Penalty, intercept and coefficients (D,), from strong to weak; cut short where a fit no longer converges.

    Each fit begins where the one before ended. A model that separates the training subjects does not converge, and is
    not one that validation would choose.
    """
    penalties = sorted(config.penalties, reverse=True) or _penalties(config, z, train)
    model = LogisticRegression(
        solver="saga",
        l1_ratio=config.l1_ratio,
        tol=1e-5,
        max_iter=MAX_STEPS,
        warm_start=True,
        random_state=config.seed,
    )
    for penalty in penalties:
        model.set_params(C=1 / (penalty * len(z)) if penalty else np.inf)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                model.fit(z, train.is_event)
            except ConvergenceWarning:
                return
        yield float(penalty), float(model.intercept_[0]), model.coef_[0].copy()


def _penalties(config: CoxConfig, z: Floats, train: Tabular) -> list[float]:
    """Strengths from the smallest that zeroes every coefficient, down in equal ratios."""
    residual = train.is_event - train.is_event.mean()
    largest = float(np.abs(z.T @ residual).max() / (len(z) * config.l1_ratio))
    return [float(value) for value in np.geomspace(largest, largest * config.min_penalty_ratio, config.n_candidates)]
