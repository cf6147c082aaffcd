"""Lasso regressions on single codes and values (`models.code_effects`): of an outcome, and of the onsets of codes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import Bounds, minimize
from scipy.sparse import csr_array, hstack
from tqdm import tqdm

from ehrtrack.arrays import Floats, Ints
from ehrtrack.data.batch import Batch
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.record_columns import Entries
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.survival.hazard_regression import Hazards, loss_of_shift
from ehrtrack.survival.ridge import Loss

LEAST_SPREAD = 0.01
"""Added to each column's standard deviation: what one subject in ten thousand has is not to weigh a hundred times."""


class Effort(NamedTuple):
    """How near to the least loss a fit is to come, in the words of `scipy.optimize.minimize`."""

    n_steps: int
    tolerance: float
    n_starts: int


OF_OUTCOMES = Effort(n_steps=1000, tolerance=1e-9, n_starts=20)
OF_ONSETS = Effort(n_steps=60, tolerance=1e-6, n_starts=1)
"""There are hundreds of onsets and many records; sixty steps take seconds each, and say as much."""

LEAST_GAIN = 1e-5

MOST_LOG_HAZARD = 30.0
"""Beyond what data say, where a search tries too long a step."""


def fit_code_effects(strength: float, facts: TrainingFacts, hazards: Hazards) -> CodeEffects | None:
    """Effects u and an intercept that minimise the mean loss of the training subjects and a lasso penalty:

        loss(baseline + intercept + X u) + lambda sum_p sd_p |u_p|,    lambda = strength sqrt(log P / N)

    with X (N, P) the columns that some subject has, and sd their standard deviations. What chance alone gives the
    largest of P slopes falls with N as lambda does (Bickel, Ritov and Tsybakov 2009, Annals of Statistics 37(4),
    theorem 7.1), so that like strengths suit few subjects and many. None where no strength is asked for.

    Where pretraining learned what single codes and values say of the onsets of codes, W (P, C), u is w + W v, and the
    penalty is that of the P + C columns (X, X W): an outcome that follows what some of these onsets follow takes few v
    where it would take many w. What was learned of many unlabelled records so serves few labels. Where these are the
    same subjects, their onsets were learned of too, and X W fits them better than others.

    Parameters
    ----------
    facts : with the training subjects' records and their outcomes, the levels of values, and W (`onsets`)
    """
    if not strength:
        return None
    assert facts.records is not None, "effects are fitted to records"
    assert facts.records.outcomes is not None, "records to fit effects to have outcomes"
    n_outputs = hazards.baseline_logits()[0].numel()
    reader = _reader(facts)
    table = read_table(reader, facts.records)
    loss = loss_of_shift(hazards, facts.records.outcomes[facts.records.rows])
    onsets = np.zeros((table.shape[1], 0)) if facts.onsets is None else facts.onsets.effect.double().numpy()
    both = _Standardised.of(csr_array(hstack([table, csr_array(table @ onsets)])))
    effect, intercept = _fit(both, loss, np.full(n_outputs, strength), OF_OUTCOMES)
    own, of_onsets = np.split(effect, [table.shape[1]])
    return reader.with_effects(torch.from_numpy(own + onsets @ of_onsets).float(), torch.from_numpy(intercept).float())


def fit_onset_effects(
    strength: float, facts: TrainingFacts, histories: Iterable[Batch], expected: Floats, came: Floats
) -> CodeEffects:
    """Effects of what a history holds on the log-hazards of C onsets after it, each a regression by itself:

        mean of exp(x) expected - came x,    x = intercept + X u,    and a penalty as in `fit_code_effects`

    which is the negative log-likelihood of hazards that are proportional to the baseline (Holford 1980, Biometrics
    36:299-305). The penalty of an onset is times the square root of the share that have it, as chance's slopes are. One
    that never came has no effects.

    Parameters
    ----------
    histories : N of them together; several of a subject are counted as if they were of several
    expected : (N, C) what the baseline hazards add up to while at risk
    came : (N, C) 1 where it came while at risk
    """
    reader = _reader(facts)
    table = _Standardised.of(read_table(reader, histories))
    effects = np.zeros((table.n_columns, came.shape[1]), dtype=np.float32)
    intercepts = np.zeros(came.shape[1], dtype=np.float32)
    for number in tqdm(np.flatnonzero(came.any(axis=0)), desc="onsets", leave=False, delay=3, disable=None):
        h, d = expected[:, [number]], came[:, [number]]

        def loss(shift: Floats, h: Floats = h, d: Floats = d) -> tuple[float, Floats]:
            hazard = np.exp(np.minimum(shift, MOST_LOG_HAZARD)) * h
            return float((hazard - d * shift).sum()) / len(d), (hazard - d) / len(d)

        effect, intercept = _fit(table, loss, strength * np.sqrt(d.mean(axis=0)), OF_ONSETS)
        effects[:, number], intercepts[number] = effect[:, 0], intercept[0]
    return reader.with_effects(torch.from_numpy(effects), torch.from_numpy(intercepts))


def _reader(facts: TrainingFacts) -> CodeEffects:
    """The columns, with effects on nothing."""
    assert facts.levels is not None, "effects are of the levels of values"
    return CodeEffects.nothing(facts.levels, facts.scales_days, n_outputs=0, mean_age=facts.mean_age)


def read_table(reader: CodeEffects, batches: Iterable[Batch]) -> csr_array:
    """(N, P) the columns of all subjects of the batches, in their order."""
    parts: list[Entries] = []
    n_read = 0
    for batch in batches:
        entries = reader.entries(batch)
        parts.append(entries._replace(subject=entries.subject + n_read))
        n_read += len(batch.lengths)
    subject, column, value = (torch.cat(arrays).numpy() for arrays in zip(*parts, strict=True))
    table = csr_array((value.astype(np.float64), (subject, column)), shape=(n_read, len(reader.effect)))
    table.eliminate_zeros()  # the logarithm of one
    return table


class _Standardised(NamedTuple):
    """A table made ready to be fitted to, once for all outputs.

    Attributes
    ----------
    rows, columns : the columns that some subject has over their spread, and the same transposed
    used, spread : which of the P columns these are, and their spread
    n_columns : P
    """

    rows: csr_array
    columns: csr_array
    used: Ints
    spread: Floats
    n_columns: int

    @classmethod
    def of(cls, table: csr_array) -> _Standardised:
        used = np.flatnonzero(np.diff(table.tocsc().indptr))
        mean, mean_square = np.asarray(table.mean(axis=0)), np.asarray((table**2).mean(axis=0))
        spread = np.sqrt(np.maximum(mean_square - mean**2, 0))[used] + LEAST_SPREAD
        rows = (table[:, used] / spread).tocsr()
        return cls(rows, rows.T.tocsr(), used, spread, table.shape[1])


def _fit(table: _Standardised, loss: Loss, strengths: Floats, effort: Effort) -> tuple[Floats, Floats]:
    """(P, R) effects and (R,) intercepts of the least loss and penalty; 0 of columns that nobody has."""
    n_rows, n_used = table.rows.shape
    penalties = strengths * math.sqrt(math.log(max(n_used, 2)) / max(n_rows, 1))
    found, intercept = _minimise(table, loss, penalties, effort)
    effect = np.zeros((table.n_columns, len(strengths)))
    effect[table.used] = found / table.spread[:, None]
    return effect, intercept


def _minimise(table: _Standardised, loss: Loss, penalties: Floats, effort: Effort) -> tuple[Floats, Floats]:
    """Effects of the standardised columns, and intercepts. By L-BFGS-B, an effect being the difference of two parts
    that are not negative."""
    n_outputs = len(penalties)
    n_effects = table.rows.shape[1] * n_outputs
    penalty = np.tile(penalties, table.rows.shape[1])  # effects lie output beside output

    def value_and_slope(x: Floats) -> tuple[float, Floats]:
        up, down, intercept = np.split(x, [n_effects, 2 * n_effects])
        mean, slope = loss(table.rows @ (up - down).reshape(-1, n_outputs) + intercept)
        of_effect = (table.columns @ slope).ravel()
        gradient = np.concatenate([of_effect + penalty, penalty - of_effect, slope.sum(axis=0)])
        return mean + float(penalty @ (up + down)), gradient

    lowest = np.concatenate([np.zeros(2 * n_effects), np.full(n_outputs, -np.inf)])
    bounds, at, before = Bounds(lowest, np.inf), np.zeros(2 * n_effects + n_outputs), np.inf
    options = {"maxiter": effort.n_steps, "maxcor": 20, "ftol": effort.tolerance}
    for _ in range(effort.n_starts):  # a single short step ends the method, and one of ten ends far from the least
        found = minimize(value_and_slope, at, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        at, now = found.x, float(found.fun)
        if before - now < LEAST_GAIN * abs(now):
            break
        before = now
    up, down, intercept = np.split(at, [n_effects, 2 * n_effects])
    return (up - down).reshape(-1, n_outputs), intercept
