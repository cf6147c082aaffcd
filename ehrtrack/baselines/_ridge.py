"""What ridge and lasso regressions of survival and of classes share: features, folds, and the choice of the penalty."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Floats, Ints
from ehrtrack.baselines._ages import AGE, IS_AGE_UNKNOWN
from ehrtrack.baselines._design import Term, design, z_of
from ehrtrack.baselines._folds import HeldOut, chosen_in_folds, divided, folds, together
from ehrtrack.baselines._linear import STRICT
from ehrtrack.baselines.base import (
    Baseline,
    FittedBaseline,
    Labelled,
    Tabular,
    TokenHistories,
    read_counts,
    read_values,
    score_name,
)
from ehrtrack.baselines.settings import RidgeConfig, TunedChoice
from ehrtrack.data.events import starts_with_any
from ehrtrack.errors import DataError
from ehrtrack.survival.metrics import c_index

AGE_SEX = "age-sex"
SHARE_OF_AGE_AND_SEX = 0.1
"""Of the penalty, what age and sex have to bear: much of the risk in most cohorts is theirs, and few labels show it."""
RANGES = {False: (30.0, 0.03), True: (1.0, 0.03)}
"""The strongest and the weakest penalty tried, of ridge and of lasso, in units of the largest slope of the mean log
likelihood where all coefficients are 0; at 1 a lasso keeps no column."""


@dataclass(frozen=True)
class HowChosen:
    """How a model was chosen.

    Attributes
    ----------
    penalty : the one chosen
    n_features : columns that took part, with those that tell what is missing
    n_candidates, n_folds : penalties that were tried, and folds in which they were
    score : C-index of all subjects, each as the model without its fold ranks it
    score_name : what it is called
    """

    __pydantic_config__ = STRICT

    penalty: float
    n_features: int
    n_candidates: int
    n_folds: int
    score: float
    score_name: str

    def describe(self, n_parameters: int) -> dict[str, float | int | str]:
        """Facts to log."""
        return {
            "n_features": self.n_features,
            "n_parameters": n_parameters,
            "penalty": self.penalty,
            self.score_name: self.score,
            "n_candidates": self.n_candidates,
            "n_folds": self.n_folds,
            "chosen_by": chosen_in_folds(self.n_folds),
        }


class Path(NamedTuple):
    """Coefficients (D, P) and intercepts (P,) at P penalties."""

    beta: Floats
    intercept: Floats


class _Part(NamedTuple):
    """A fold: who is left, (H,) the rows held out, and what was fitted without them."""

    others: Tabular
    held_out: Ints
    terms: list[Term]
    path: Path


Model = TypeVar("Model", bound=FittedBaseline[pl.DataFrame])


class RidgeBase(Baseline[pl.DataFrame], Generic[Model]):
    """A ridge or lasso regression whose penalty is chosen by cross-validation."""

    config: RidgeConfig
    regression: ClassVar[str]

    def __init__(self, config: TunedChoice) -> None:
        super().__init__(config)
        self._held_out: HeldOut[pl.DataFrame] = HeldOut(0)
        if self.config.features == AGE_SEX:
            self.title = f"{self.regression}-{AGE_SEX}"
        elif self.regression == "logistic":
            self.title = f"logistic-{self.config.name}"

    @property
    def reads_values(self) -> bool:
        """Unless age and sex are all that is read."""
        return self.config.features == "values"

    def read(self, histories: TokenHistories) -> pl.DataFrame:
        """Age, static facts, counts and values, or age and sex.

        Raises
        ------
        DataError
            If sex is asked for, and no token tells it.
        """
        if self.config.features == "values":
            return read_values(histories)
        tokens = pl.DataFrame({"code": histories.vocabulary.tokens})
        sexes = tokens.filter(starts_with_any(self.config.sex))["code"].to_list()
        if not sexes:
            raise DataError(
                f"no token begins with one of {', '.join(self.config.sex)}, and age and sex were asked for; say by "
                "baseline.sex which codes tell the sex"
            )
        table = read_counts(histories)
        return table.select(name for name in table.columns if name in (AGE, IS_AGE_UNKNOWN, *sexes))

    def fit(self, train: Tabular, validation: Tabular) -> Model:
        """Choose the penalty by cross-validation over all subjects, and fit the model to all of them.

        Raises
        ------
        DataError
            If no training subject has the event, fewer than two subjects have it, there is no usable feature, or a
            value is infinite.
        """
        everyone = together(train, validation)
        terms = self._terms(everyone)
        z = z_of(terms, everyone.features)
        penalties = sorted(self.config.penalties or self._penalties(everyone), reverse=True)
        parts, log_ratio, gain = self._cross_validated(everyone, penalties)
        best = int(np.argmax(np.nan_to_num(gain, nan=-np.inf)))  # the first of equals: the strongest penalty
        score = c_index(log_ratio[:, best], everyone.follow_up_days, everyone.is_event)
        choice = HowChosen(penalties[best], len(terms), len(penalties), len(parts), score, score_name(everyone))

        def model(of: list[Term], path: Path, subjects: Tabular) -> Model:
            return self._model(_with(of, path.beta[:, best]), float(path.intercept[best]), subjects, choice)

        self._held_out = HeldOut(len(train.is_event))
        for part in parts:
            self._held_out.add(part.held_out, model(part.terms, part.path, part.others))
        return model(terms, self._path(z, everyone, penalties[: best + 1]), everyone)

    def _cross_validated(self, everyone: Tabular, penalties: Sequence[float]) -> tuple[list[_Part], Floats, Floats]:
        """The folds; (B, P) what is said of subjects by the model without their fold; (P,) the likelihood gained."""
        parts: list[_Part] = []
        log_ratio, gain = np.empty((len(everyone.is_event), len(penalties))), np.zeros(len(penalties))
        for others, held_out in divided(everyone, folds(everyone, self.config.n_folds, self.config.seed)):
            terms = self._terms(others)
            path = self._path(z_of(terms, others.features), others, penalties)
            said = z_of(terms, everyone.features) @ path.beta + path.intercept  # (B, P)
            gain += [self._gain(of_penalty, everyone, held_out) for of_penalty in said.T]
            log_ratio[held_out] = said[held_out]
            parts.append(_Part(others, held_out, terms, path))
        return parts, log_ratio, gain

    def validation_survival(
        self, model: FittedBaseline[pl.DataFrame], validation: Labelled[pl.DataFrame], times: npt.ArrayLike
    ) -> Floats:
        """(B, M) of each validation subject by the model without its fold."""
        return self._held_out.survival(validation, times)

    def _terms(self, subjects: Tabular) -> list[Term]:
        """The terms, with age and sex on a scale on which they bear a share of the penalty."""
        terms = self._plain_terms(subjects)
        names = pl.DataFrame({"code": [term.name for term in terms]})
        is_light = names.select(pl.col("code").is_in([AGE, IS_AGE_UNKNOWN]) | starts_with_any(self.config.sex))
        return [
            replace(term, scale=term.scale * SHARE_OF_AGE_AND_SEX**0.5) if light else term
            for term, light in zip(terms, is_light.to_series(), strict=True)
        ]

    def _plain_terms(self, subjects: Tabular) -> list[Term]:
        n_needed = max(self.config.min_subjects, int(np.ceil(self.config.min_share * len(subjects.is_event))))
        return design(subjects, min_subjects=n_needed)

    def _penalties(self, subjects: Tabular) -> list[float]:
        z = z_of(self._plain_terms(subjects), subjects.features)
        steepest = float(np.abs(z.T @ self._slope(subjects)).max()) / len(z)
        strongest, weakest = RANGES[self.config.is_lasso]
        found = np.geomspace(strongest * steepest, weakest * steepest, self.config.n_candidates)
        return [float(penalty) for penalty in found]

    @abstractmethod
    def _slope(self, subjects: Tabular) -> Floats:
        """(B,) of the log likelihood, by each subject's z beta, where all are 0."""

    @abstractmethod
    def _path(self, z: Floats, subjects: Tabular, penalties: Sequence[float]) -> Path:
        """The regressions at falling penalties; NaN where one diverges."""

    @abstractmethod
    def _gain(self, log_ratio: Floats, subjects: Tabular, held_out: Ints) -> float:
        """What subjects that were held out add to the log likelihood of (B,) intercept + z beta."""

    @abstractmethod
    def _model(self, terms: tuple[Term, ...], intercept: float, subjects: Tabular, choice: HowChosen) -> Model:
        """The model of coefficients that were fitted to these subjects."""


def _with(terms: Sequence[Term], beta: Floats) -> tuple[Term, ...]:
    return tuple(replace(term, beta=float(of_term)) for term, of_term in zip(terms, beta, strict=True))
