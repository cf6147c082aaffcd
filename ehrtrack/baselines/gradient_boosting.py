"""Gradient boosted trees on counts of codes, or on their timing too: the hazard of each interval as a classification.

    logit h_k(x) = F(x, k),      S(t_k | x) = prod_{j <= k} (1 - h_j(x))

A subject is a row for each interval of the time grid that it entered, with the number of the interval as a column, the
event as the label (person-periods: Singer & Willett 1993, J Educ Stat 18:155-195; as a landmark for other models: Craig
et al. 2021, arXiv:2104.12002), and the share of the interval that it was seen through as the weight. F is
scikit-learn's histogram gradient boosting, which reads missing values as they are, on columns that were cut before
(`_cuts`). Trees are added until the validation subjects' loss no longer falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.baselines._ages import age_to_fill, with_ages
from ehrtrack.baselines._cuts import Cuts
from ehrtrack.baselines._folds import HeldOut, chosen, chosen_in_folds, divided, folds, together
from ehrtrack.baselines._trees import ROWS_AT_ONCE, TreeModel, Trees, columns_and_grid, join
from ehrtrack.baselines.base import (
    Baseline,
    FittedBaseline,
    Labelled,
    Setting,
    Tabular,
    TokenHistories,
    candidates,
    check_events,
    matrix,
    read_counts,
    read_timing,
    read_values,
    score_name,
    seen_within,
    tune,
    with_ages_filled,
)
from ehrtrack.baselines.settings import GradientBoostingConfig, TunedChoice
from ehrtrack.data.value_features import with_absent_values
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.metrics import c_index, evaluation_times, integrated_brier_score
from ehrtrack.survival.time_grid import TimeGrid

PATIENCE_TREES = 15
"""Trees without a better validation loss after which no more are added."""


@dataclass(frozen=True, kw_only=True)
class BoostingModel(TreeModel):
    """Fitted trees; after the columns that they ask for comes the number of the interval.

    Attributes
    ----------
    start : F before the first tree
    """

    what = "a gradient boosting model"

    grid: TimeGrid
    start: float

    def hazard(self, features: pl.DataFrame) -> Floats:
        """(B, K) probability of the event in each interval, given that it was entered."""
        parts = [
            self._hazard(features[first : first + ROWS_AT_ONCE]) for first in range(0, len(features), ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, self.grid.n_intervals))

    def _hazard(self, features: pl.DataFrame) -> Floats:
        there = with_absent_values(with_ages(features, self.mean_age), self.columns)
        x = matrix(there, self.columns, allows_missing=True)
        k = np.arange(self.grid.n_intervals)
        periods = np.column_stack([np.repeat(x, len(k), axis=0), np.tile(k, len(x))])  # (B K, D + 1)
        return expit(raw_score(self.trees, self.start, periods)).reshape(len(x), len(k))  # type: ignore[no-any-return]

    def survival(self, features: pl.DataFrame, times: npt.ArrayLike) -> Floats:
        """(B, M) S(t | x), by straight lines between the edges of the grid, and constant after the last."""
        hazard = self.hazard(features)
        curve = np.cumprod(np.column_stack([np.ones(len(hazard)), 1 - hazard]), axis=1)  # (B, K + 1)
        days = np.atleast_1d(np.asarray(times, dtype=np.float64))
        return interpolate_survival(curve, self.grid, np.minimum(days, self.grid.horizon_days))

    def risk(self, features: pl.DataFrame, horizon_days: float) -> Floats:
        """(B,) probability of an event up to the horizon."""
        return 1 - self.survival(features, [horizon_days])[:, 0]

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log; parameters are the leaves' values."""
        return {"n_parameters": self.trees.n_leaves, "n_trees": len(self.trees.roots), **self.facts}

    def own_fields(self) -> dict[str, Any]:
        return {"grid": self.grid.to_json(), "start": self.start}

    @classmethod
    def read_own(cls, fields: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
        trees = Trees.from_json(fields["trees"], n_columns=len(columns) + 1)
        return {"grid": TimeGrid.from_json(fields["grid"]), "start": float(fields["start"]), "trees": trees}


class GradientBoosting(Baseline[pl.DataFrame]):
    """Boosted trees on counts of codes, on counts and timing, or on recorded values."""

    Config = GradientBoostingConfig
    config: GradientBoostingConfig

    def __init__(self, config: TunedChoice) -> None:
        super().__init__(config)
        self._held_out: HeldOut[pl.DataFrame] | None = None

    @property
    def reads_values(self) -> bool:
        """Where it is asked to."""
        return self.config.features == "values"

    def read(self, histories: TokenHistories) -> pl.DataFrame:
        if self.reads_values:
            return read_values(histories)
        return read_timing(histories) if self.config.has_timing else read_counts(histories)

    def fit(self, train: Tabular, validation: Tabular) -> BoostingModel:
        """Fit on the training subjects; settings and number of trees are chosen on the validation subjects.

        With ``select = "cross-validation"`` or ``"cross-validation-ibs"`` it is fitted to both, and chosen in folds.

        Raises
        ------
        DataError
            If there is no training event, no usable feature, an infinite value, or no comparable validation pair.
        """
        check_events(train)
        if self.config.select != "validation":
            return self._fit_in_folds(train, validation)
        train, validation, mean_age = with_ages_filled(train, validation)
        columns, grid = columns_and_grid(self.config, train)
        data = CutPeriods.of(columns, grid, train, validation)

        def fit_one(setting: Setting) -> BoostingModel:
            return replace(_fit(self.config, setting, data).model, mean_age=mean_age)

        best = tune(self.config, self._space(), fit_one, validation)
        best.model.facts.update({"n_features": len(columns), **best.facts()})
        return best.model

    def _space(self) -> dict[str, Sequence[float]]:
        return {
            "learning_rate": self.config.learning_rates,
            "max_leaf_nodes": self.config.max_leaves,
            "min_samples_leaf": self.config.min_rows,
            "l2_regularization": self.config.penalties,
            "max_features": self.config.feature_shares,
        }

    def _fit_in_folds(self, train: Tabular, validation: Tabular) -> BoostingModel:
        """Settings by the subjects held out; as many trees as suited the folds on average."""
        everyone = together(train, validation)
        mean_age = age_to_fill(everyone.features)
        everyone = replace(everyone, features=with_ages(everyone.features, mean_age))
        columns, grid = columns_and_grid(self.config, everyone)
        parts, rows = list[CutPeriods](), list[Ints]()
        for others, held_out in divided(everyone, folds(everyone, self.config.n_folds, self.config.seed)):
            parts.append(CutPeriods.of(columns, grid, others, chosen(everyone, held_out)))
            rows.append(held_out)
        weights = [part.weight_to_stop_by for part in parts]
        by_brier = self.config.select == "cross-validation-ibs"
        best: tuple[float, Setting, list[_Fitted]] | None = None
        tried = candidates(self._space(), self.config.n_candidates, self.config.seed)
        for setting in tried:
            fits = [_fit(self.config, setting, part) for part in parts]
            if by_brier:
                gain = -_brier_score(_held_out(rows, fits), everyone)
            else:
                gain = float(np.average([fit.score for fit in fits], weights=weights))
            if best is None or gain > best[0]:
                best = gain, setting, fits
        assert best is not None
        _, best_setting, fits = best
        self._held_out = _held_out(rows, fits, n_train=len(train.is_event), mean_age=mean_age)
        risk = 1 - _held_out(rows, fits).survival(everyone, grid.horizon_days)[:, 0]
        n_trees = max(1, round(float(np.mean([len(fit.model.trees.roots) for fit in fits]))))
        final = _fit(self.config, best_setting, CutPeriods.of(columns, grid, everyone), n_trees=n_trees).model
        score = c_index(risk, everyone.follow_up_days, everyone.is_event)
        facts: dict[str, float | int | str] = {"n_features": len(columns), **best_setting}
        facts |= {score_name(everyone): score, "n_candidates": len(tried), "n_folds": len(parts)}
        facts["chosen_by"] = chosen_in_folds(len(parts), "integrated Brier score" if by_brier else "likelihood")
        return replace(final, mean_age=mean_age, facts=facts)

    def validation_survival(
        self, model: FittedBaseline[pl.DataFrame], validation: Labelled[pl.DataFrame], times: npt.ArrayLike
    ) -> Floats:
        """(B, M) of validation subjects by models that did not learn from them."""
        if self._held_out is None:
            return super().validation_survival(model, validation, times)
        return self._held_out.survival(validation, times)

    @classmethod
    def for_classes(cls) -> type[GradientBoosting]:
        """Itself: with one interval, person-periods are the labels, and the hazard is their probability."""
        return cls

    @classmethod
    def from_json(cls, text: str) -> BoostingModel:
        return BoostingModel.from_json(text)


class PersonPeriods(NamedTuple):
    """Rows of subjects and intervals.

    Attributes
    ----------
    x : (R, D + 1) features and number of the interval
    is_event : (R,) whether the event fell in it
    weight : (R,) share of the interval that the subject was seen through; 1 with the event
    """

    x: Floats
    is_event: Bools
    weight: Floats


def person_periods(subjects: Tabular, columns: list[str], grid: TimeGrid) -> PersonPeriods:
    """Intervals that a subject survived, and the one in which its event fell, or it was censored after some part."""
    x = matrix(subjects.features, columns, allows_missing=True)
    survived = grid.survived(subjects.follow_up_days, subjects.is_event)  # (B,)
    n_rows = np.ceil(survived).astype(np.int64) + subjects.is_event
    row = np.repeat(np.arange(len(x)), n_rows)
    k = np.arange(n_rows.sum()) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    is_event = subjects.is_event[row] & (k == survived[row])
    return PersonPeriods(np.column_stack([x[row], k]), is_event, np.clip(survived[row] - k, 0, 1) + is_event)


class _Fitted(NamedTuple):
    """Trees, and the log likelihood per person-period of those by whom their number was chosen."""

    model: BoostingModel
    score: float


def _held_out(
    rows: Sequence[Ints], fits: Sequence[_Fitted], *, n_train: int = 0, mean_age: float | None = None
) -> HeldOut[pl.DataFrame]:
    """The models of a cross-validation, each for the rows that it did not learn from."""
    held_out: HeldOut[pl.DataFrame] = HeldOut(n_train)
    for of_fold, fit in zip(rows, fits, strict=True):
        held_out.add(of_fold, replace(fit.model, mean_age=mean_age))
    return held_out


def _brier_score(held_out: HeldOut[pl.DataFrame], everyone: Tabular) -> float:
    """The integrated Brier score of all subjects together, each by the model without its fold; of classes, Brier's."""
    days, is_event = everyone.follow_up_days, everyone.is_event
    if everyone.has_classes:
        return float(np.mean((1 - held_out.survival(everyone, days.max())[:, 0] - is_event) ** 2))
    times = evaluation_times(days, is_event, days)
    return integrated_brier_score(days, is_event, days, is_event, held_out.survival(everyone, times), times)


class CutPeriods(NamedTuple):
    """Person-periods on columns that are cut where those of training subjects suggest.

    Attributes
    ----------
    columns : without the number of the interval, which comes last in x
    train, stopping : of whom trees are fitted to, and by whom their number is chosen; x are the numbers of parts
    """

    columns: list[str]
    grid: TimeGrid
    cuts: Cuts
    train: PersonPeriods
    stopping: PersonPeriods | None

    @classmethod
    def of(cls, columns: list[str], grid: TimeGrid, train: Tabular, stopping: Tabular | None = None) -> CutPeriods:
        def periods(subjects: Tabular) -> PersonPeriods:
            return person_periods(seen_within(subjects, grid.horizon_days), columns, grid)

        of_train = periods(train)
        cuts = Cuts.of(of_train.x, of_train.weight)
        of_stopping = None if stopping is None else periods(stopping)
        return cls(
            columns,
            grid,
            cuts,
            of_train._replace(x=cuts.part(of_train.x)),
            None if of_stopping is None else of_stopping._replace(x=cuts.part(of_stopping.x)),
        )

    @property
    def weight_to_stop_by(self) -> float:
        return 0.0 if self.stopping is None else float(self.stopping.weight.sum())


def _fit(config: GradientBoostingConfig, setting: Setting, data: CutPeriods, *, n_trees: int | None = None) -> _Fitted:
    """As many trees as suit the subjects to stop by, or `n_trees` where there are none."""
    library, train, stopping = _library_model(config, setting, n_trees), data.train, data.stopping
    if stopping is None:
        library.fit(train.x, train.is_event, train.weight)
        return _Fitted(_from_library(library, len(library._predictors), data), np.nan)
    library.fit(
        train.x,
        train.is_event,
        train.weight,
        X_val=stopping.x,
        y_val=stopping.is_event,
        sample_weight_val=stopping.weight,
    )
    best = int(np.argmax(library.validation_score_))  # the score before the first tree is the first
    return _Fitted(_from_library(library, best, data), float(library.validation_score_[best]))


def _library_model(
    config: GradientBoostingConfig, setting: Setting, n_trees: int | None
) -> HistGradientBoostingClassifier:
    parameters: dict[str, Any] = dict(setting)
    return HistGradientBoostingClassifier(
        max_iter=n_trees or config.max_trees,
        early_stopping=n_trees is None,
        scoring="loss",
        n_iter_no_change=PATIENCE_TREES,
        tol=0,
        random_state=config.seed,
        **parameters,
    )


def _from_library(library: HistGradientBoostingClassifier, n_trees: int, data: CutPeriods) -> BoostingModel:
    """The first `n_trees` trees, over the columns that they ask for, and their values instead of parts.

    The library has no public door to its trees; a test holds these to its own predictions.
    """
    nodes = [stage[0].nodes for stage in library._predictors[:n_trees]]
    trees = join(
        [
            {
                "feature": np.where(tree["is_leaf"], -1, tree["feature_idx"]),
                "threshold": data.cuts.value(tree["feature_idx"], tree["num_threshold"]),
                "is_missing_left": tree["missing_go_to_left"],
                "left": tree["left"],
                "right": tree["right"],
                "value": np.where(tree["is_leaf"], tree["value"], 0.0),
            }
            for tree in nodes
        ]
    )
    kept = np.union1d(trees.used(), [len(data.columns)]).astype(np.int64)  # the last column is the interval
    return BoostingModel(
        grid=data.grid,
        columns=tuple(data.columns[j] for j in kept[:-1]),
        trees=trees.with_columns(kept),
        start=float(library._baseline_prediction[0, 0]),
        facts={},
    )


def raw_score(trees: Trees, start: float, x: Floats) -> Floats:
    """(R,) F: the start and what each tree adds, in the order in which they were fitted."""
    score = np.full(len(x), start)
    for leaf in trees.leaves(x):
        score += trees.value[leaf]
    return score
