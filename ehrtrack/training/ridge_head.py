"""Solve for the head of a frozen encoder instead of training it: a ridge regression on what the head reads of a record.

    logit_k(x) = baseline_k + s u + z v        least mean loss + lambda / 2 (share |u|^2 + |v|^2)

s are age and static facts (`models.static_effects`), z the standardised [CLS] state, mean and largest values of a
record (`HazardHead.record`, with a query of 0), and the loss is the objective's likelihood. lambda is chosen by
cross-validation over training and validation subjects. As age and static facts bear a small share of the penalty, the
strongest of those tried leaves next to nothing but them: states count for as much as subjects that were held out show.

Early stopping by a fifth of few labels is a lottery; a regression takes seconds and learns from all of them.

Where the encoder learns too, training can begin at such a head (`start_at_solved_head`): one that begins near 0 pulls
the encoder towards what suits it in the first steps (Kumar et al. 2022, LP-FT, arXiv:2202.10054).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from ehrtrack.arrays import Floats, Ints
from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import ConfigError
from ehrtrack.models.behrt import EhrModel
from ehrtrack.models.heads import HazardHead, Head
from ehrtrack.objectives.base import OutcomeObjective, Predictions
from ehrtrack.runlog import TRAINING, named
from ehrtrack.survival.hazard_regression import HazardRegression
from ehrtrack.survival.ridge import axes_of, check_divisible
from ehrtrack.training.device_facts import memory_mb
from ehrtrack.training.loop import FitResult

RANGE = (30.0, 0.03)
"""The strongest and the weakest penalty tried, as those of the baseline `ridge`."""
SHARE_OF_STATICS = 0.01
"""Of the penalty, what age and static facts have to bear. The states are many columns that tell similar things."""
LEAST_SPREAD = 1e-6
"""Of a feature that is not the same of all subjects."""


def check_solvable(head: Head, outcomes: Outcomes) -> None:
    """Make sure that a head can be solved for by cross-validation over subjects with these outcomes.

    Raises
    ------
    ConfigError
        If it is no `HazardHead`, or has an offset of codes.
    DataError
        If too few subjects have the event, or have it not.
    """
    if not isinstance(head, HazardHead) or head.codes is not None:
        raise ConfigError(
            "strategy.head=ridge solves for a hazard head without an offset, and this objective has another one: set "
            "objective.lasso=0, or strategy.head=trained"
        )
    check_divisible(outcomes.is_event)


def solve_head(model: EhrModel, objective: OutcomeObjective, *, training: Batches, validation: Batches) -> FitResult:
    """Fit the head to the training and the validation subjects, and leave the model with it.

    Parameters
    ----------
    model : with a head that can be solved for (`check_solvable`)

    Returns
    -------
    Of a single epoch. Its validation metrics, and `held_out`, are by regressions without each subject's fold.
    """
    started = time.monotonic()
    head, table, regression, penalty = _prepared(model, objective, [training, validation])
    device, scores, parts = head.query.device, [], []
    for number in range(int(regression.fold.max()) + 1):
        _set(head, regression, table, penalty, regression.without(number))
        in_fold = regression.fold[len(training.rows) :] == number
        batches = replace(validation, rows=validation.rows[in_fold])
        if len(batches.rows):
            parts.append(objective.predict(model, batches, device))
            with torch.no_grad():
                scores += [objective.score(model, batch.to(device)) for batch in batches]
    loss = _set(head, regression, table, penalty, np.arange(len(table.record)))
    seconds = time.monotonic() - started
    speed = (training.n_tokens + validation.n_tokens) / seconds
    facts = {"loss": loss, "tokens_per_second": speed, "batches": 1.0, "memory_mb": memory_mb(device)}
    metrics = named(TRAINING, facts) | objective.metrics(scores)
    said = f"solved for {_how(regression, penalty)}"
    return FitResult([metrics], 1, seconds, said, held_out=_in_order(parts, validation.rows))


def start_at_solved_head(model: EhrModel, objective: OutcomeObjective, training: Batches) -> None:
    """Fit the head to the training subjects, before the whole model learns on; validation subjects are left to choose
    the epoch.

    Parameters
    ----------
    model : with a head that can be solved for (`check_solvable`)
    """
    head, table, regression, penalty = _prepared(model, objective, [training])
    _set(head, regression, table, penalty, np.arange(len(table.record)))
    print(f"the head begins as solved for {_how(regression, penalty)}", flush=True)


def _how(regression: HazardRegression, penalty: Floats) -> str:
    return f"with a penalty of {penalty[-1]:.2g}, by {regression.fold.max() + 1}-fold cross-validation"


class _Table(NamedTuple):
    """What a head reads of N labelled subjects.

    Attributes
    ----------
    record : (N, A) standardised states on their A axes: a ridge regression is the same on them, and they are fewer
    axes : (3 D, A) their directions
    mean, scale : (3 D,) of the states
    statics : (N, S)
    """

    record: Floats
    axes: Floats
    mean: Floats
    scale: Floats
    statics: Floats
    outcomes: Outcomes

    @property
    def columns(self) -> Floats:
        """(N, S + A)"""
        return np.hstack([self.statics, self.record])

    @property
    def states(self) -> Floats:
        """(N, 3 D)"""
        states: Floats = self.record @ self.axes.T
        return states


def _prepared(
    model: EhrModel, objective: OutcomeObjective, parts: Sequence[Batches]
) -> tuple[HazardHead, _Table, HazardRegression, Floats]:
    """The head, with a query of 0 from now on, what it reads, and its regression with the penalty that was chosen."""
    head = model.head
    assert isinstance(head, HazardHead), "which head it is was checked"
    model.eval()
    torch.nn.init.zeros_(head.query)
    table = _read(model, head, parts)
    regression = HazardRegression.of(objective, table.outcomes)
    return head, table, regression, _penalty(regression, table)


def _read(model: EhrModel, head: HazardHead, parts: Sequence[Batches]) -> _Table:
    records, statics, outcomes = [], [], []
    with torch.no_grad():
        for batch in (batch.to(head.query.device) for batches in parts for batch in batches):
            assert batch.outcomes is not None, "a head is solved for subjects with outcomes"
            hidden = model.hidden(batch) if batch.hidden is None else batch.hidden
            records.append(head.record(hidden, batch).double().cpu().numpy())
            of_batch = torch.zeros(len(batch.lengths), 0) if head.statics is None else head.statics.z(batch)
            statics.append(of_batch.double().cpu().numpy())
            outcomes.append(batch.outcomes)
    record = np.concatenate(records)
    mean, scale = record.mean(axis=0), record.std(axis=0)
    scale[scale < LEAST_SPREAD] = 1.0
    z = (record - mean) / scale
    # A network that has one state for a whole record repeats it as [CLS], mean and largest value.
    axes, _ = axes_of(z)
    return _Table(z @ axes, axes, mean, scale, np.concatenate(statics), Outcomes.joined(outcomes))


def _penalty(regression: HazardRegression, table: _Table) -> Floats:
    """(S + A,) that of age and static facts first, and that of the states."""
    share = np.repeat([SHARE_OF_STATICS, 1.0], [table.statics.shape[1], table.record.shape[1]])
    return regression.chosen(table.columns, [penalty * share for penalty in regression.tried(table.states, *RANGE)])


def _set(head: HazardHead, regression: HazardRegression, table: _Table, penalty: Floats, rows: Ints) -> float:
    """Give the head the regression of some of the subjects; returns their mean loss."""
    effect = regression.fit(table.columns, penalty, rows).effect
    shift = table.columns @ effect
    baseline = regression.baseline_beside(shift, rows)
    n_statics, n_outputs = table.statics.shape[1], regression.n_outputs
    of_record = table.axes @ effect[n_statics:] / table.scale[:, None]
    logits = torch.from_numpy(shift[rows])[:, None] + baseline.reshape(1, -1, n_outputs)
    with torch.no_grad():
        head.out.weight.zero_()  # no drift
        head.out.weight[:n_outputs] = torch.from_numpy(of_record.T)
        if head.statics is not None:
            head.statics.effect.copy_(torch.from_numpy(effect[:n_statics]))
        of_mean = torch.from_numpy(table.mean @ of_record).float()
        head.baseline.copy_((baseline.reshape(-1, n_outputs) - of_mean).reshape(baseline.shape))
        return float(regression.hazards.likelihood(logits.flatten(1), table.outcomes[rows]))


def _in_order(parts: Sequence[Predictions], rows: Ints) -> Predictions:
    """The predictions of all parts, in the order of the rows."""
    found = np.concatenate([part.rows for part in parts])
    place = np.argsort(found)[np.argsort(np.argsort(rows))]
    incidence = [part.incidence for part in parts if part.incidence is not None]
    survival = np.concatenate([part.survival for part in parts])
    return Predictions(rows, survival[place], np.concatenate(incidence)[place] if incidence else None)
