"""Cross-validation: every model on the same folds, its setting chosen by the same number of fits on inner folds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold

from benchmarks.public_tables.models import MODELS, Model, Setting
from benchmarks.public_tables.tables import Table, fit_preprocessing
from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.files import written_aside
from ehrtrack.survival.metrics import evaluation_times, integrated_brier_score

N_FOLDS = 5
N_INNER_FOLDS = 3
ENOUGH_SUBJECTS = 2_000
"""Training subjects from which one inner fold of the three tells settings apart, and the others are not fitted."""
MAX_PAIRED_SUBJECTS = 1_000
"""Training subjects up to which the ranking loss, which compares all pairs at each step, is fitted."""


@dataclass(frozen=True)
class Scored:
    """A model on the B subjects of a test fold.

    Attributes
    ----------
    rows : (B,) of the table
    train_rows : rows of the other folds
    times : (M,) days at which survival was read
    survival : (B, M)
    setting : the one that inner folds chose
    """

    rows: Ints
    train_rows: Ints
    times: Floats
    survival: Floats
    setting: Setting


def folds(is_event: Bools, n_folds: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Rows to train on and rows left out; each fold has its share of the events."""
    yield from StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(is_event, is_event)


def fit_and_predict(
    table: Table, model: Model, setting: Setting, train: Ints, test: Ints, seed: int
) -> tuple[Floats, Floats]:
    """Evaluation times (M,) and survival (B, M) of the test rows; nothing is fitted on them."""
    prepare = fit_preprocessing(table.columns.iloc[train])
    predict = model.fit(prepare(table.columns.iloc[train]), table.days[train], table.is_event[train], setting, seed)
    times = evaluation_times(table.days[train], table.is_event[train], table.days[test])
    return times, predict(prepare(table.columns.iloc[test]), times)


def choose_setting(table: Table, model: Model, train: Ints, seed: int) -> Setting:
    """The setting with the lowest mean integrated Brier score on inner folds of the training rows."""
    if len(model.settings) == 1:
        return model.settings[0]
    n_fitted = 1 if len(train) >= ENOUGH_SUBJECTS else N_INNER_FOLDS
    inner_folds = list(folds(table.is_event[train], N_INNER_FOLDS, seed))[:n_fitted]
    scores = []
    for setting in model.settings:
        of_setting = []
        for inner, left_out in inner_folds:
            fitted, scored = train[inner], train[left_out]
            times, survival = fit_and_predict(table, model, setting, fitted, scored, seed)
            outcomes = (table.days[fitted], table.is_event[fitted], table.days[scored], table.is_event[scored])
            of_setting.append(integrated_brier_score(*outcomes, survival, times))
        scores.append(np.mean(of_setting))
    return model.settings[int(np.argmin(scores))]


def score_fold(table: Table, name: str, fold: int, cache: Path, *, n_settings: int = 8, seed: int = 0) -> Scored:
    """A model on one fold: from the cache, or chosen among its first settings, fitted and kept there."""
    train, test = list(folds(table.is_event, N_FOLDS, seed))[fold]
    file = cache / code_fingerprint() / f"{table.name}_{name.replace(' ', '')}_{n_settings}_{seed}_{fold}.npz"
    if not file.exists():
        model = MODELS[name]._replace(settings=MODELS[name].settings[:n_settings])
        setting = choose_setting(table, model, train, seed)
        times, survival = fit_and_predict(table, model, setting, train, test, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(file) as aside:
            np.savez(aside, times=times, survival=survival, setting=json.dumps(dict(setting)))
    with np.load(file) as kept:
        return Scored(test, train, kept["times"], kept["survival"], json.loads(str(kept["setting"])))


def is_fitted(table: Table, name: str) -> bool:
    """Whether the model can be fitted to a table of this size."""
    return not name.endswith("lambda_rank .05") or len(table) <= MAX_PAIRED_SUBJECTS


def code_fingerprint() -> str:
    """Of what decides the numbers here: results of other code are not taken up."""
    files = [Path(__file__).with_name(name) for name in ("tables.py", "models.py", "hazard_head.py", "study.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
