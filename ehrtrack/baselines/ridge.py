"""Ridge regression on values as they were recorded: Cox with an L2 penalty.

    h(t | x) = h_0(t) exp(z beta)        z: age, static facts, counts, and summaries of each code's values (`_design`)

The penalty is chosen by K-fold cross-validation over training and validation subjects together, by the cross-validated
partial likelihood, sum over folds of l(beta without the fold; all) - l(beta without the fold; all but the fold)
(Verweij & van Houwelingen 1993, Stat Med 12:2305-2314), and the model fitted to all of them. Age and sex bear a tenth
of the penalty. `lasso-values` is the same with an L1 penalty. With ``features = "age-sex"`` it is the floor of a
comparison: Cox on age and sex.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from pydantic import TypeAdapter
from sksurv.linear_model import CoxnetSurvivalAnalysis
from sksurv.linear_model.coxph import BreslowEstimator
from sksurv.util import Surv

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.baselines._design import Term, weighted
from ehrtrack.baselines._json import no_such_model
from ehrtrack.baselines._linear import STRICT, ProportionalModel
from ehrtrack.baselines._ridge import HowChosen, Path, RidgeBase
from ehrtrack.baselines._ridge_classes import RidgeClasses
from ehrtrack.baselines.base import Baseline, Tabular
from ehrtrack.baselines.settings import RidgeConfig
from ehrtrack.survival.ridge_cox import PartialLikelihood, ridge_path


@dataclass(frozen=True, kw_only=True)
class RidgeModel(ProportionalModel):
    """A fitted Cox regression.

    Attributes
    ----------
    terms : the columns used
    choice : how it was chosen
    """

    __pydantic_config__ = STRICT

    terms: tuple[Term, ...]
    choice: HowChosen

    def linear_predictor(self, features: pl.DataFrame) -> Floats:
        """(B,) z beta. What is missing counts as the training mean."""
        return weighted(self.terms, features)

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log."""
        return self.choice.describe(len(self.terms))

    def to_json(self) -> str:
        """The model as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RidgeModel:
        """The model back from `to_json`.

        Raises
        ------
        CheckpointError
            If the text is no such model.
        """
        try:
            model: RidgeModel = TypeAdapter(cls).validate_json(text)
            model.check_steps()
            return model
        except ValueError as error:
            raise no_such_model(text, "a ridge regression", cls, error) from error


class Ridge(RidgeBase[RidgeModel]):
    """Cox with an L2 penalty on recorded values, chosen by cross-validation."""

    Config = RidgeConfig
    regression = "cox"

    def _slope(self, subjects: Tabular) -> Floats:
        return _likelihood(subjects)(np.zeros(len(subjects.is_event)))[1]

    def _path(self, z: Floats, subjects: Tabular, penalties: Sequence[float]) -> Path:
        path = _lasso_path if self.config.is_lasso else ridge_path
        return Path(path(z, subjects.follow_up_days, subjects.is_event, penalties), np.zeros(len(penalties)))

    def _gain(self, log_ratio: Floats, subjects: Tabular, held_out: Ints) -> float:
        kept = np.delete(np.arange(len(log_ratio)), held_out)
        without = PartialLikelihood(subjects.follow_up_days[kept], subjects.is_event[kept])
        return _likelihood(subjects)(log_ratio)[0] - without(log_ratio[kept])[0]

    def _model(self, terms: tuple[Term, ...], intercept: float, subjects: Tabular, choice: HowChosen) -> RidgeModel:
        log_ratio = weighted(terms, subjects.features)
        breslow = BreslowEstimator().fit(log_ratio, subjects.is_event, subjects.follow_up_days)
        steps = breslow.cum_baseline_hazard_
        return RidgeModel(
            baseline_days=tuple(steps.x.tolist()),
            baseline_cumulative_hazard=tuple(steps.y.tolist()),
            terms=terms,
            choice=choice,
        )

    @classmethod
    def for_classes(cls) -> type[Baseline]:
        """Logistic regression by the same rule."""
        return RidgeClasses

    @classmethod
    def from_json(cls, text: str) -> RidgeModel:
        return RidgeModel.from_json(text)


def _lasso_path(z: Floats, days: Floats, is_event: Bools, penalties: Sequence[float]) -> Floats:
    """(D, P) coefficients with an L1 penalty, by scikit-survival; NaN at the weak end where that diverges."""
    beta = np.full((z.shape[1], len(penalties)), np.nan)
    y = Surv.from_arrays(is_event, days)
    for n_kept in range(len(penalties), 0, -1):
        model = CoxnetSurvivalAnalysis(alphas=list(penalties[:n_kept]), l1_ratio=1.0)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="all coefficients are zero")
                beta[:, :n_kept] = model.fit(z, y).coef_
            break
        except ArithmeticError:
            continue
    return beta


def _likelihood(subjects: Tabular) -> PartialLikelihood:
    return PartialLikelihood(subjects.follow_up_days, subjects.is_event)
