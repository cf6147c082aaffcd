"""Three models behind one door: eight settings, and a fit which returns survival curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from sksurv.ensemble import RandomSurvivalForest
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from benchmarks.public_tables.hazard_head import fit_hazards
from ehrtrack.arrays import Bools, Floats

Survival = Callable[[Floats, Floats], Floats]
"""Of columns (B, D) and days (M,): S(t | x) (B, M)."""
Setting = Mapping[str, Any]

N_TREES = 100
N_TIMES = 60
"""Distinct times that the forest sees, at most: its leaves keep a curve with a step for each."""


class Model(NamedTuple):
    """Settings to choose from, the first being the default, and ``fit(x, days, is_event, setting, seed)``."""

    settings: Sequence[Setting]
    fit: Callable[[Floats, Floats, Bools, Setting, int], Survival]


def grid_of(**values: Sequence[Any]) -> list[Setting]:
    """Every combination."""
    return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]


def fit_cox(x: Floats, days: Floats, is_event: Bools, setting: Setting, seed: int) -> Survival:
    """Cox regression with a ridge penalty and Efron's ties (scikit-survival)."""
    model = CoxPHSurvivalAnalysis(alpha=setting["penalty"] * len(x), ties="efron", n_iter=200)
    model.fit(x, Surv.from_arrays(is_event, days))

    def survival(columns: Floats, times: Floats) -> Floats:
        return _at(model.predict_survival_function(columns, return_array=True), model.unique_times_, times)

    return survival


def fit_forest(x: Floats, days: Floats, is_event: Bools, setting: Setting, seed: int) -> Survival:
    """Random survival forest (scikit-survival) of 100 trees, times rounded up to quantiles of the event times."""
    steps = np.unique(np.quantile(days[is_event], np.linspace(0, 1, N_TIMES + 1)[1:], method="inverted_cdf"))
    # An event belongs to the first step at or after it; a censored subject was seen through the last one before.
    step = np.where(is_event, np.searchsorted(steps, days, "left") + 1, np.searchsorted(steps, days, "right"))
    seen = step > 0
    model = RandomSurvivalForest(N_TREES, random_state=seed, **setting)
    model.fit(x[seen], Surv.from_arrays(is_event[seen], step[seen].astype(np.float64)))
    days_of_steps = np.concatenate([[0.0], steps])[model.unique_times_.astype(int)]

    def survival(columns: Floats, times: Floats) -> Floats:
        return _at(model.predict_survival_function(columns, return_array=True), days_of_steps, times)

    return survival


def _at(curves: Floats, steps: Floats, times: Floats) -> Floats:
    """Step functions (B, S), 1 before the first step, read at some times."""
    whole = np.column_stack([np.ones(len(curves)), curves])
    return whole[:, np.searchsorted(steps, times, side="right")]


def hazard_settings(lambda_rank: float) -> list[Setting]:
    """Eight penalties of the discrete hazards."""
    return grid_of(own_penalty=(1.0, 0.1, 0.03, 0.01), penalty=(0.003, 0.05), lambda_rank=(lambda_rank,))


MODELS = {
    "cox": Model(grid_of(penalty=(0.003, 1e-5, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0)), fit_cox),
    "random-survival-forest": Model(grid_of(min_samples_leaf=(15, 8, 30, 50), max_features=("sqrt", 0.6)), fit_forest),
    "discrete-hazards": Model(hazard_settings(0.0), fit_hazards),
    "discrete-hazards, lambda_rank .05": Model(hazard_settings(0.05), fit_hazards),
}
