"""The lasso regression on single codes and values that a hazard head may start from (`models.code_effects`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import Bounds, minimize
from scipy.sparse import csr_array
from torch import Tensor

from ehrtrack.data.batch import Batches, Outcomes
from ehrtrack.models.code_effects import CodeEffects, Entries
from ehrtrack.objectives._protocol import TrainingFacts

Floats = npt.NDArray[np.float64]

LEAST_SPREAD = 0.01
"""Added to each column's standard deviation: what one subject in ten thousand has is not to weigh a hundred times."""


STEPS = {"maxiter": 1000, "maxcor": 20, "ftol": 1e-9}
MOST_STARTS, LEAST_GAIN = 20, 1e-5


class Hazards(Protocol):
    """What an objective tells of the hazards that effects are added to."""

    def baseline_logits(self) -> Tensor:
        """(K,) or (K, R) of the population."""

    def likelihood(self, logits: Tensor, outcomes: Outcomes) -> Tensor:
        """Mean loss of logits (N, K R)."""


def fit_code_effects(strength: float, facts: TrainingFacts, hazards: Hazards) -> CodeEffects | None:
    """Effects u and an intercept that minimise the mean loss of the training subjects and a lasso penalty:

        loss(baseline + intercept + X u) + lambda sum_p sd_p |u_p|,    lambda = strength sqrt(log P / N)

    with X (N, P) the columns that some subject has, and sd their standard deviations. What chance alone gives the
    largest of P slopes falls with N as lambda does (Bickel, Ritov and Tsybakov 2009, Annals of Statistics 37(4),
    theorem 7.1), so that like strengths suit few subjects and many. By L-BFGS-B, u being the difference of two parts
    that are not negative. None where no strength is asked for.

    Parameters
    ----------
    facts : with the training subjects' records and their outcomes, and the levels of values
    """
    if not strength:
        return None
    assert facts.records is not None, "effects are fitted to records"
    assert facts.levels is not None, "effects are of the levels of values"
    baseline = hazards.baseline_logits()
    n_outputs = baseline[0].numel()
    nothing = torch.zeros(CodeEffects.n_columns(facts.levels), n_outputs)
    table, outcomes = _read(CodeEffects(facts.levels, nothing, torch.zeros(n_outputs)), facts.records)
    used = np.flatnonzero(np.diff(table.tocsc().indptr))
    table = table[:, used]
    mean, mean_square = np.asarray(table.mean(axis=0)), np.asarray((table**2).mean(axis=0))
    spread = np.sqrt(np.maximum(mean_square - mean**2, 0)) + LEAST_SPREAD
    penalty = strength * math.sqrt(math.log(max(len(used), 2)) / max(table.shape[0], 1))
    standardised = (table / spread).tocsr()
    effect, intercept = _minimise(standardised, baseline, lambda x: hazards.likelihood(x, outcomes), penalty)
    nothing[used] = torch.from_numpy(effect / spread[:, None]).float()
    return CodeEffects(facts.levels, nothing, torch.from_numpy(intercept).float())


def _read(reader: CodeEffects, records: Batches) -> tuple[csr_array, Outcomes]:
    """The table (N, P) of the records' columns, in their order, and their outcomes."""
    parts: list[Entries] = []
    n_read = 0
    for batch in records:
        entries = reader.entries(batch)
        parts.append(entries._replace(subject=entries.subject + n_read))
        n_read += len(batch.lengths)
    subject, column, value = (torch.cat(arrays).numpy() for arrays in zip(*parts, strict=True))
    assert records.outcomes is not None, "records to fit effects to have outcomes"
    table = csr_array((value.astype(np.float64), (subject, column)), shape=(n_read, len(reader.effect)))
    table.eliminate_zeros()  # the logarithm of one
    return table, records.outcomes[records.rows]


def _minimise(
    table: csr_array, baseline: Tensor, loss: Callable[[Tensor], Tensor], penalty: float
) -> tuple[Floats, Floats]:
    """(P, R) and (R,) effects of standardised columns, and intercept."""
    n_outputs = baseline[0].numel()
    n_effects = table.shape[1] * n_outputs
    transposed = table.T.tocsr()

    def value_and_slope(x: Floats) -> tuple[float, Floats]:
        up, down, intercept = np.split(x, [n_effects, 2 * n_effects])
        of_subject = table @ (up - down).reshape(-1, n_outputs) + intercept  # (N, R)
        shift = torch.from_numpy(of_subject).requires_grad_()
        logits = shift[:, None] + baseline.double().reshape(1, -1, n_outputs)  # (N, K, R)
        mean = loss(logits.flatten(1))
        (slope,) = torch.autograd.grad(mean, shift)
        of_effect = (transposed @ slope.numpy()).ravel()
        gradient = np.concatenate([of_effect + penalty, penalty - of_effect, slope.sum(dim=0).numpy()])
        return mean.item() + penalty * float(up.sum() + down.sum()), gradient

    lowest = np.concatenate([np.zeros(2 * n_effects), np.full(n_outputs, -np.inf)])
    bounds, at, before = Bounds(lowest, np.inf), np.zeros(2 * n_effects + n_outputs), np.inf
    for _ in range(MOST_STARTS):  # a single short step ends the method, and one of ten starts some way from the least
        found = minimize(value_and_slope, at, jac=True, method="L-BFGS-B", bounds=bounds, options=STEPS)
        at, now = found.x, float(found.fun)
        if before - now < LEAST_GAIN * now:
            break
        before = now
    up, down, intercept = np.split(at, [n_effects, 2 * n_effects])
    return (up - down).reshape(-1, n_outputs), intercept
