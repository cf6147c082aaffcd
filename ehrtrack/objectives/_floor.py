"""Where a hazard head begins: at a ridge regression on age and static facts, below which no model should be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ehrtrack.arrays import Floats
from ehrtrack.data.batch import Batches
from ehrtrack.models.static_effects import StaticEffects, columns, is_static
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.survival.hazard_regression import HazardRegression, Hazards

LEAST_SUBJECTS = 5
"""Who have a static fact, and who have it not, for it to have an effect."""
RANGE = (3.0, 0.003)
"""The strongest and the weakest penalty tried, in units of the largest slope where all effects are 0: a tenth of those
of the baseline `ridge`, of whose penalty age and sex bear a tenth."""


class Floor(NamedTuple):
    """Where a head begins.

    Attributes
    ----------
    baseline : (K,) or (K, R) logits
    statics : what is added to them; None adds nothing
    """

    baseline: Tensor
    statics: StaticEffects | None


def fit_floor(facts: TrainingFacts, hazards: Hazards, *, has_statics: bool) -> Floor:
    """The population's hazards, and where statics are asked for, the effects of age and static facts on them.

    The effects are those of a ridge regression on the training subjects by the objective's own likelihood, whose
    penalty is chosen by cross-validation among them; of effects that tell nothing the strongest is left, which is next
    to none. The baseline is then the one of the greatest likelihood beside them.

    There are no statics without records to read them from, or where fewer than two training subjects have the event, or
    have it not, and nothing can be cross-validated.
    """
    if not has_statics or facts.records is None or facts.records.outcomes is None:
        return Floor(hazards.baseline_logits(), None)
    outcomes = facts.records.outcomes[facts.records.rows]
    n_events = int(outcomes.is_event.sum())
    if min(n_events, len(outcomes.is_event) - n_events) < 2:
        return Floor(hazards.baseline_logits(), None)
    mean_age = None if facts.mean_age is None else torch.tensor(facts.mean_age)
    token, x = _table(facts.records, mean_age)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-6] = 1.0  # a column that is the same of all, which then has no effect
    z, everybody = (x - mean) / scale, np.arange(len(x))
    regression = HazardRegression.of(hazards, outcomes)
    penalty = regression.chosen(z, [np.full(z.shape[1], tried) for tried in regression.tried(z, *RANGE)])
    effect = regression.fit(z, penalty, everybody).effect
    mean_of, scale_of, effect_of = (torch.from_numpy(numbers).float() for numbers in (mean, scale, effect))
    statics = StaticEffects(token, mean_of, scale_of, effect_of, mean_age)
    return Floor(regression.baseline_beside(z @ effect, everybody), statics)


def _table(records: Batches, mean_age: Tensor | None) -> tuple[Tensor, Floats]:
    """(S,) the static facts that enough subjects have and enough have not, and (N, P) the columns of all subjects."""
    every = torch.unique(torch.cat([batch.token[is_static(batch)] for batch in records]))  # which rise
    table = torch.cat([columns(batch, every, mean_age) for batch in records]).double().numpy()
    n_of_age = table.shape[1] - len(every)
    n_with = table[:, n_of_age:].sum(axis=0)
    kept = np.flatnonzero(np.minimum(n_with, len(table) - n_with) >= LEAST_SUBJECTS)
    return every[kept], table[:, [*range(n_of_age), *(n_of_age + kept)]]
