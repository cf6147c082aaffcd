"""Whether what an encoder learned transfers: what its states foretell, beside what counts of codes do.

Records of training and validation subjects are cut at random (`data.cuts`), and what comes in a window after a cut is
asked of two ridge regressions. One reads the frozen states as the head of a fine-tuning does (`heads.read_record`), the
other how often and how recently each code was there, and how high values were (`models.record_columns`). Asked is, of
the codes that come most often, whether each comes where the record did not have it before, and how high on average
those values are that are measured most often.

    R^2 = mean over targets q of    1 - sum (y_q - f_q)^2 / sum (y_q - mean_q)^2,    sums over validation subjects' cuts

Regressions on the states of a frozen network are the linear probes of Alain and Bengio (2017, "Understanding
intermediate layers using linear classifier probes", arXiv:1610.01644).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import scipy.sparse
import torch
from torch.nn import functional as F

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.data.batch import Batch, Batches
from ehrtrack.data.cuts import Cuts, draw_cuts
from ehrtrack.errors import DataError
from ehrtrack.models.behrt import EhrModel
from ehrtrack.models.heads import read_record
from ehrtrack.models.record_columns import Levels, RecordColumns
from ehrtrack.models.windows import Axis, after, before, usual_window_days
from ehrtrack.runlog import PROBE, named
from ehrtrack.survival.ridge import axes_of
from ehrtrack.training.memory import CPU_BATCH_TOKENS

N_FITTED, N_SCORED = 4000, 2000
"""Cuts of training and of validation subjects, about."""
MOST_OF_A_SUBJECT = 4
MOST_ASKED = 16
"""Codes whose coming is asked, and as many whose levels are."""
LEAST_FITTED, LEAST_SCORED = 20, 5
"""Cuts after which a code must come, and as many after which it must not, to be learned from and to be scored."""
LEAST_SHARE, MOST_COLUMNS = 0.01, 1000
"""Share of the cuts whose record must have a column, and how many columns are read, those of most cuts."""
LEAST_SPREAD, MOST_SPREADS = 1e-6, 10.0
"""Spread of a column that is not the same of all, and how many spreads from the mean a value counts as no farther: what
was rare among the fitted, such as a code of this very day, would else be taken for a thousand times as much."""
CHOOSING = 0.25
"""Share of the training subjects by whom the penalty of each regression is chosen."""
N_DIGITS = 6
"""Of what is told, on which it does not depend where in memory arrays lie."""
PENALTIES = np.geomspace(1e3, 1e-3, 13)
"""Those that are tried, for each cut and in units of the columns' variance."""


class Probe:
    """The questions, and what a regression on counts answers; called with a model, what one on its states does.

    Attributes
    ----------
    window_days : how long after a cut is asked of
    n_targets : Q
    counts_r2 : of the regression on the record's columns

    Parameters
    ----------
    training, validation : the subjects whose records are cut
    levels, scales_days, mean_age : of the record's columns, as `TrainingFacts` has them
    seed : of the subjects and cuts; no other source of random numbers is touched

    Raises
    ------
    DataError
        If records are too short to be cut, or too little comes after the cuts.
    """

    def __init__(
        self,
        training: Batches,
        validation: Batches,
        *,
        levels: Levels,
        scales_days: tuple[float, ...],
        mean_age: float | None = None,
        seed: int = 0,
    ) -> None:
        self._training, self._validation = _some(training, N_FITTED, seed), _some(validation, N_SCORED, seed)
        self._seed = seed
        days = usual_window_days(self._training, 1)
        if not days:
            raise DataError("no training subject has visits on two days within data.max_tokens")
        self.window_days = days
        self._targets, self._subject = self._asked(Axis.of(levels))
        self.n_targets = self._targets.shape[1]
        self._errors_of_counts = self._errors(self._columns(levels, scales_days, mean_age))
        self.counts_r2 = _r2(self._errors_of_counts)

    def __call__(self, model: EhrModel) -> dict[str, float]:
        """R^2 of both, the standard error of the difference, by validation subjects, and the number of targets."""
        errors = self._errors(self._states(model))
        subject = self._subject[self._parts[2]]
        better = np.bincount(subject, (self._errors_of_counts - errors).mean(axis=1))[np.unique(subject)]
        values = {
            "states_r2": _r2(errors),
            "counts_r2": self.counts_r2,
            "difference_error": round(float(np.sqrt(len(better)) * better.std()), N_DIGITS),
            "targets": float(self.n_targets),
        }
        return named(PROBE, values)

    @property
    def _parts(self) -> tuple[Bools, Bools, Bools]:
        """(P,) which cuts are fitted to, by which penalties are chosen, and which are scored."""
        rows = self._training.rows
        is_choosing = np.isin(self._subject, rows[: math.ceil(CHOOSING * len(rows))])
        is_scored = np.isin(self._subject, self._validation.rows)
        return ~(is_choosing | is_scored), is_choosing, is_scored

    def _cuts(self) -> Iterator[tuple[Batch, Cuts]]:
        """The same ones each time, those of training subjects first."""
        generator = torch.Generator().manual_seed(self._seed)
        for batches, most in ((self._training, N_FITTED), (self._validation, N_SCORED)):
            n_cuts = min(math.ceil(most / max(len(batches.rows), 1)), MOST_OF_A_SUBJECT)
            for batch in batches:
                cuts = draw_cuts(batch, n_cuts, generator, least_days=self.window_days)
                if cuts is not None:
                    yield batch, cuts

    def _asked(self, axis: Axis) -> tuple[Floats, Ints]:
        """The targets (P, Q), NaN where nothing is asked, and whose cut each is (P,)."""
        subject, comes, level = [], [], []
        for batch, cuts in self._cuts():
            subject.append(cuts.history.rows.numpy())
            numbers = after(batch, cuts, axis, self.window_days)
            had = before(batch, cuts, axis, math.inf)[:, : axis.n_counted] > 0
            comes.append((numbers[:, : axis.n_counted] > 0).to(torch.int8).masked_fill(had, -1).numpy())
            level.append(numbers[:, axis.n_counted : axis.n_counted + axis.n_codes].numpy())
        if not subject:
            raise DataError(f"no subject has a visit that {self.window_days:g} days of its record follow")
        self._subject = np.concatenate(subject)
        onsets, levels = np.concatenate(comes), np.concatenate(level)
        is_fitted, _, is_scored = self._parts
        of_onsets = _often(is_fitted, is_scored, onsets == 1, onsets == 0)
        of_levels = [
            n for n in _often(is_fitted, is_scored, ~np.isnan(levels)) if np.nanstd(levels[:, n]) > LEAST_SPREAD
        ]
        asked = onsets[:, of_onsets].astype(np.float64)
        targets = np.hstack([np.where(asked < 0, np.nan, asked), levels[:, of_levels].astype(np.float64)])
        if not targets.shape[1]:
            raise DataError(
                f"nothing new comes within {self.window_days:g} days of {LEAST_FITTED} cuts of training records and of "
                f"{LEAST_SCORED} of validation records"
            )
        return targets, self._subject

    def _columns(self, levels: Levels, scales_days: tuple[float, ...], mean_age: float | None) -> Floats:
        """(P, F) of the records up to the cuts, those that enough of them have."""
        age = None if mean_age is None else torch.tensor(mean_age)
        reader = RecordColumns(levels, torch.tensor(scales_days), age)
        n_columns = RecordColumns.n_columns(levels, len(scales_days), may_lack_age=age is not None)
        parts = []
        for _, cuts in self._cuts():
            subject, column, value = (numbers.numpy() for numbers in reader.entries(cuts.history))
            shape = (len(cuts), n_columns)
            parts.append(scipy.sparse.csr_array((value.astype(np.float64), (subject, column)), shape=shape))
        table = scipy.sparse.vstack(parts).tocsr()
        is_fitted = self._parts[0]
        n_there = np.bincount(table[is_fitted].nonzero()[1], minlength=n_columns)
        often = np.argsort(-n_there, kind="stable")[:MOST_COLUMNS]
        columns: Floats = table[:, often[n_there[often] >= LEAST_SHARE * is_fitted.sum()]].toarray()
        return columns

    def _states(self, model: EhrModel) -> Floats:
        """(P, 3 D) what a head reads of the records up to the cuts."""
        model.eval()
        code = model.encoder.embeddings.code.weight
        query, states = code.new_zeros(model.encoder.width), []
        with torch.no_grad():
            for _, cuts in self._cuts():
                history = cuts.history.to(code.device)
                read = read_record(model.hidden(history), history, query)
                states.append(F.layer_norm(read, read.shape[1:]).double().cpu().numpy())
        return np.concatenate(states)

    def _errors(self, columns: Floats) -> Floats:
        """(N, Q) at N scored cuts: squared errors of regressions on columns (P, F), as shares of a target's total.

        They are 0 where nothing is asked.
        """
        parts = self._parts
        mean, spread = columns[parts[0]].mean(axis=0), columns[parts[0]].std(axis=0)
        columns = (columns - mean)[:, spread > LEAST_SPREAD] / spread[spread > LEAST_SPREAD]
        columns = columns.clip(-MOST_SPREADS, MOST_SPREADS)
        errors = np.zeros((parts[2].sum(), self.n_targets))
        for number, target in enumerate(self._targets.T):
            is_asked = ~np.isnan(target)
            fit, choose, score = (part & is_asked for part in parts)
            regress = _ridge(columns[fit], target[fit])
            best = np.square(regress(columns[choose]) - target[choose, None]).sum(axis=0).argmin()
            squared = np.square(regress(columns[score])[:, best] - target[score])
            total = np.square(target[score] - target[fit].mean()).sum()
            errors[is_asked[parts[2]], number] = squared / max(total, LEAST_SPREAD)
        return errors


def _some(batches: Batches, most: int, seed: int) -> Batches:
    """Of so many subjects at most, drawn at random, in batches that no setting changes."""
    rows = np.random.default_rng(seed).permutation(batches.rows)[:most]
    return replace(batches, rows=rows, batch_tokens=CPU_BATCH_TOKENS, shuffle_seed=None, has_random_windows=False)


def _often(is_fitted: Bools, is_scored: Bools, *there: Bools) -> list[int]:
    """Numbers of the columns (P, N) that the first of `there` has most often, and each has often enough."""
    n_fitted, n_scored = (np.stack([part[rows].sum(axis=0) for part in there]) for rows in (is_fitted, is_scored))
    is_enough = (n_fitted.min(axis=0) >= LEAST_FITTED) & (n_scored.min(axis=0) >= LEAST_SCORED)
    return [int(n) for n in np.argsort(-n_fitted[0], kind="stable") if is_enough[n]][:MOST_ASKED]


def _ridge(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    """Regressions of y (N,) on x (N, F), one a penalty; what they say of others: (M, F) -> (M, penalties)."""
    mean_x, mean_y, penalty = x.mean(axis=0), y.mean(), PENALTIES * len(x)
    x, y = x - mean_x, y - mean_y
    axes, square = axes_of(x)
    effect = axes @ ((axes.T @ (x.T @ y))[:, None] / (square[:, None] + penalty))
    return lambda others: (others - mean_x) @ effect + mean_y


def _r2(errors: Floats) -> float:
    return round(float(1 - errors.sum(axis=0).mean()), N_DIGITS)
