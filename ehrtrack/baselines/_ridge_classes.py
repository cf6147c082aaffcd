"""Logistic regression with an L2 penalty on values as they were recorded; it stands in the place of `ridge`.

    logit p(x) = a + z beta

a and beta minimise the mean log loss plus lambda / 2 |beta|^2, by scikit-learn; the penalty is chosen by the likelihood
of subjects that were held out in cross-validation, with the settings of `ridge`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from pydantic import TypeAdapter
from scipy.special import expit, log_expit
from sklearn.linear_model import LogisticRegression

from ehrtrack.arrays import Floats, Ints
from ehrtrack.baselines._classes import ClassModel
from ehrtrack.baselines._design import Term, weighted
from ehrtrack.baselines._json import no_such_model
from ehrtrack.baselines._linear import STRICT
from ehrtrack.baselines._ridge import HowChosen, Path, RidgeBase
from ehrtrack.baselines.base import Tabular
from ehrtrack.baselines.settings import RidgeConfig

MAX_STEPS = 10_000


@dataclass(frozen=True)
class RidgeClassModel(ClassModel[pl.DataFrame]):
    """A fitted logistic regression.

    Attributes
    ----------
    terms : the columns used
    intercept : log odds at the training means
    choice : how it was chosen
    """

    __pydantic_config__ = STRICT

    terms: tuple[Term, ...]
    intercept: float
    choice: HowChosen

    def probability(self, features: pl.DataFrame) -> Floats:
        """(B,) of the class. What is missing counts as the training mean."""
        return np.asarray(expit(self.intercept + weighted(self.terms, features)), dtype=np.float64)

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log; the intercept is a parameter."""
        return self.choice.describe(len(self.terms) + 1)

    def to_json(self) -> str:
        """The model as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RidgeClassModel:
        """The model back from `to_json`.

        Raises
        ------
        CheckpointError
            If the text is no such model.
        """
        try:
            model: RidgeClassModel = TypeAdapter(cls).validate_json(text)
            return model
        except ValueError as error:
            raise no_such_model(text, "a ridge regression of classes", cls, error) from error


class RidgeClasses(RidgeBase[RidgeClassModel]):
    """Logistic regression with an L2 penalty on recorded values, chosen by cross-validation."""

    Config = RidgeConfig
    regression = "logistic"

    def _slope(self, subjects: Tabular) -> Floats:
        slope: Floats = subjects.is_event - subjects.is_event.mean()
        return slope

    def _path(self, z: Floats, subjects: Tabular, penalties: Sequence[float]) -> Path:
        is_lasso = self.config.is_lasso
        model = LogisticRegression(
            solver="saga" if is_lasso else "lbfgs",
            l1_ratio=float(is_lasso),
            max_iter=MAX_STEPS,
            warm_start=True,
            random_state=self.config.seed,
        )
        beta, intercept = np.empty((z.shape[1], len(penalties))), np.empty(len(penalties))
        for place, penalty in enumerate(penalties):
            model.set_params(C=1 / (penalty * len(z))).fit(z, subjects.is_event)
            beta[:, place], intercept[place] = model.coef_[0], model.intercept_[0]
        return Path(beta, intercept)

    def _gain(self, log_ratio: Floats, subjects: Tabular, held_out: Ints) -> float:
        sign = np.where(subjects.is_event[held_out], 1, -1)
        return float(log_expit(sign * log_ratio[held_out]).sum())

    def _model(
        self, terms: tuple[Term, ...], intercept: float, subjects: Tabular, choice: HowChosen
    ) -> RidgeClassModel:
        return RidgeClassModel(terms, intercept, choice)

    @classmethod
    def from_json(cls, text: str) -> RidgeClassModel:
        return RidgeClassModel.from_json(text)
