"""Cox proportional hazards with an elastic-net penalty: the model that every other has to beat.

    h(t | x) = h_0(t) exp(z beta)        z: features, log-counted and standardised on the training subjects

beta maximises the penalised partial likelihood along a path of penalties (Simon et al. 2011, Journal of
Statistical Software 39(5); scikit-survival's Coxnet), the penalty is the one with the best validation
C-index, and h_0 is Breslow's.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from sksurv.linear_model import CoxnetSurvivalAnalysis
from sksurv.linear_model.coxph import BreslowEstimator
from sksurv.util import Surv

from ehrtrack.arrays import Floats
from ehrtrack.baselines._linear import LinearModel, standardise
from ehrtrack.baselines._logistic import Logistic
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
from ehrtrack.survival.metrics import c_index


@dataclass(frozen=True, kw_only=True)
class CoxModel(LinearModel):
    """A fitted Cox model; the linear predictor is the log hazard ratio against a subject with the training means.

    Attributes
    ----------
    baseline_days, baseline_cumulative_hazard : steps of Breslow's H_0
    validation_c_index : the C-index by which the penalty was chosen
    """

    what = "a Cox model"

    baseline_days: tuple[float, ...]
    baseline_cumulative_hazard: tuple[float, ...]
    validation_c_index: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.baseline_days) != len(self.baseline_cumulative_hazard):
            raise ValueError("days and hazards of the baseline are not as many")

    def survival(self, features: pl.DataFrame, times: npt.ArrayLike) -> Floats:
        """(B, M) S(t | x) = exp(-H_0(t) exp(z beta)) at `times` (M,) in days.

        H_0 is a step function: 0 before the first training event, and constant after the last.
        """
        steps = np.concatenate([[0.0], self.baseline_cumulative_hazard])
        at = np.atleast_1d(np.asarray(times, dtype=np.float64))
        cumulative_hazard = steps[np.searchsorted(self.baseline_days, at, side="right")]  # (M,)
        return np.exp(-np.outer(np.exp(self.linear_predictor(features)), cumulative_hazard))

    def risk(self, features: pl.DataFrame, horizon_days: float) -> Floats:
        """(B,) probability of an event up to the horizon."""
        return 1 - self.survival(features, [horizon_days])[:, 0]

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log."""
        return super().describe() | {"validation_c_index": self.validation_c_index}


class Cox(Baseline[pl.DataFrame]):
    """Cox proportional hazards on counts of codes; the penalty with the best validation C-index is kept."""

    Config = CoxConfig
    config: CoxConfig

    def read(self, histories: TokenHistories) -> pl.DataFrame:
        return read_counts(histories)

    def fit(self, train: Tabular, validation: Tabular) -> CoxModel:
        """Fit on the training subjects; choose the penalty by C-index on the validation subjects.

        Parameters
        ----------
        train, validation : the same feature columns; features that never vary in training are left out

        Raises
        ------
        DataError
            If there is no training event, no usable feature, a missing value, or no comparable validation pair.
        ConfigError
            If every penalty asked for is too weak to be fitted.
        """
        check_events(train)
        train, validation, mean_age = with_ages_filled(train, validation)
        columns, z_train = standardise(train, self.config)
        z_validation = columns.z(validation.features)
        penalties, betas = _penalty_path(self.config, z_train, train)
        scores = [c_index(z_validation @ beta, validation.follow_up_days, validation.is_event) for beta in betas.T]
        best = int(np.argmax(scores))  # the first of equals: the strongest penalty
        beta = betas[:, best]
        breslow = BreslowEstimator().fit(z_train @ beta, train.is_event, train.follow_up_days)
        return CoxModel(
            features=columns.features(beta),
            baseline_days=tuple(breslow.cum_baseline_hazard_.x.tolist()),
            baseline_cumulative_hazard=tuple(breslow.cum_baseline_hazard_.y.tolist()),
            penalty=float(penalties[best]),
            l1_ratio=self.config.l1_ratio,
            n_features=len(columns.names),
            n_candidates=len(penalties),
            validation_c_index=float(scores[best]),
            mean_age=mean_age,
        )

    @classmethod
    def for_classes(cls) -> type[Baseline]:
        """Logistic regression by the same settings: the partial likelihood has no use for events that are all tied."""
        return Logistic

    @classmethod
    def from_json(cls, text: str) -> CoxModel:
        return CoxModel.from_json(text)


def _penalty_path(config: CoxConfig, z: Floats, train: Tabular) -> tuple[Floats, Floats]:
    """Penalties (P,) from strong to weak, and the coefficients (D, P) at each.

    With more features than subjects the weak end can diverge, and the library then refuses the whole path.
    The path is cut short until it holds: a model that separates the training subjects is not one that
    validation would choose.
    """
    y = Surv.from_arrays(train.is_event, train.follow_up_days)
    asked = sorted(config.penalties, reverse=True)
    ratio = config.min_penalty_ratio
    while True:
        model = CoxnetSurvivalAnalysis(
            alphas=asked or None,
            n_alphas=config.n_candidates,
            alpha_min_ratio=ratio,
            l1_ratio=config.l1_ratio,
        )
        try:
            with warnings.catch_warnings():
                # Coefficients that are all zero are a valid answer here: the strong end of every path has
                # them.
                warnings.filterwarnings("ignore", message="all coefficients are zero")
                model.fit(z, y)
            return model.alphas_, model.coef_
        except ArithmeticError as error:
            if len(asked) > 1:
                asked = asked[:-1]
            elif not asked and ratio < 0.5:
                ratio = math.sqrt(ratio)
            else:
                raise ConfigError(
                    f"the Cox model diverges at every penalty tried ({error}); raise baseline.penalties or "
                    "baseline.min_penalty_ratio"
                ) from error
