"""The log hazard of the outcome: a function of the recorded history up to the index date, and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ehrtrack.arrays import Bools, Float32s, Floats, Ints
from ehrtrack.simulate.dictionary import (
    DRUG,
    EARLY,
    FIRST_LAB,
    LATE,
    N_CONCEPTS,
    SYSTEMS,
    concept_of,
    disease,
)
from ehrtrack.simulate.world import World

SECONDS_PER_DAY = 86_400
REFERENCE_AGE_YEARS = 62.0

LOG_HAZARD_PER_DECADE = float(np.log(1.45))
"""Age: relative risk of death 1.45 per point, one point a decade (Charlson et al. 1994, J Clin Epidemiol 47)."""
LOG_HAZARD_MALE = 0.20
HEART_FAILURE, STROKE, DIABETES = 0.85, 0.35, 0.41
"""Men, prevalent heart failure, prevalent stroke, diabetes: 5-year mortality equation of the Cardiovascular Health
Study (Bansal et al. 2015, Clin J Am Soc Nephrol 10, Table 3, bias-corrected coefficients)."""


@dataclass(frozen=True)
class History:
    """What n records say up to a moment, one row a subject; days are counted from that moment, so they are <= 0.

    Attributes
    ----------
    first_days, last_days : (n, N_CONCEPTS) first and last time of each concept; nan where it is not recorded
    first_lab, last_lab : (n, 6) first and last value of each system's laboratory test; nan without one
    """

    first_days: Floats
    last_days: Floats
    first_lab: Floats
    last_lab: Floats

    def first_diagnosis(self, name: str) -> Floats:
        """(n,) day of the first diagnosis of a disease in any stage; nan without one."""
        return np.fmin(self.first_days[:, concept(name, EARLY)], self.first_days[:, concept(name, LATE)])

    def last_diagnosis(self, name: str) -> Floats:
        """(n,) day of the last diagnosis of a disease in any stage; nan without one."""
        return np.fmax(self.last_days[:, concept(name, EARLY)], self.last_days[:, concept(name, LATE)])

    def is_diagnosed(self, name: str) -> Bools:
        """(n,) whether the disease is recorded in any stage."""
        return np.isfinite(self.first_diagnosis(name))


def concept(name: str, part: int) -> int:
    """Index of a concept such as ("heart-2", DRUG)."""
    return int(concept_of(disease(name), part))


class Term(Protocol):
    """One term of the log hazard."""

    def value(self, history: History) -> Floats:
        """(n,) what the term adds."""
        ...


@dataclass(frozen=True)
class Stage:
    """`early` once the disease is recorded, `late` on top once its late stage is."""

    name: str
    early: float
    late: float

    def value(self, history: History) -> Floats:
        is_late = np.isfinite(history.last_days[:, concept(self.name, LATE)])
        return self.early * history.is_diagnosed(self.name) + self.late * is_late


@dataclass(frozen=True)
class Order:
    """+weight if `before` was diagnosed before `after`, -weight if after it; 0 unless both are, at different times."""

    before: str
    after: str
    weight: float

    def value(self, history: History) -> Floats:
        gap = history.first_diagnosis(self.after) - history.first_diagnosis(self.before)
        return np.asarray(self.weight * np.nan_to_num(np.sign(gap)), dtype=np.float64)


@dataclass(frozen=True)
class TreatmentTiming:
    """-weight if the disease's drug comes within `within_days` of its first diagnosis, +weight if later or never."""

    name: str
    weight: float
    within_days: float = 180.0

    def value(self, history: History) -> Floats:
        gap = history.first_days[:, concept(self.name, DRUG)] - history.first_diagnosis(self.name)
        sign = np.where(np.abs(gap) <= self.within_days, -1.0, 1.0) * history.is_diagnosed(self.name)
        return np.asarray(self.weight * sign, dtype=np.float64)


@dataclass(frozen=True)
class Recency:
    """weight x (2 exp(-days since the disease was last diagnosed / scale_days) - 1): active or quiet; 0 without it."""

    name: str
    weight: float
    scale_days: float = 330.0

    def value(self, history: History) -> Floats:
        activity = 2 * np.exp(history.last_diagnosis(self.name) / self.scale_days) - 1
        return np.asarray(self.weight * np.nan_to_num(activity), dtype=np.float64)


@dataclass(frozen=True)
class LabTrend:
    """weight x (last - first value of the system's laboratory test), the difference held within +-`limit`."""

    system: str
    weight: float
    limit: float = 2.0

    def value(self, history: History) -> Floats:
        lab = SYSTEMS.index(self.system)
        change = history.last_lab[:, lab] - history.first_lab[:, lab]
        return np.asarray(self.weight * np.clip(np.nan_to_num(change), -self.limit, self.limit), dtype=np.float64)


@dataclass(frozen=True)
class Pair:
    """weight if both diseases are recorded."""

    one: str
    other: str
    weight: float

    def value(self, history: History) -> Floats:
        has_both = history.is_diagnosed(self.one) & history.is_diagnosed(self.other)
        return np.where(has_both, self.weight, 0.0)


STAGES: tuple[Term, ...] = (
    Stage("heart-1", HEART_FAILURE, 0.3),
    Stage("brain-1", STROKE, 0.3),
    Stage("metabolism-1", DIABETES, 0.3),
)
MOTIFS: tuple[Term, ...] = (
    Order("heart-2", "heart-3", 0.7),
    Order("kidney-2", "kidney-3", 0.7),
    TreatmentTiming("lung-2", 0.7),
    TreatmentTiming("brain-2", 0.7),
    Recency("kidney-1", 1.3),
    Recency("lung-1", 1.3),
    Recency("liver-1", 1.3),
    LabTrend("kidney", 0.6),
    LabTrend("liver", 0.6),
    Pair("heart-4", "lung-3", 0.8),
    Pair("metabolism-3", "brain-3", 0.8),
)
NAMED_BY_STAGES = ("heart-1", "brain-1", "metabolism-1")
NAMED_BY_MOTIFS = (
    *("heart-2", "heart-3", "kidney-2", "kidney-3", "liver-2", "metabolism-2", "lung-2", "brain-2"),
    *("kidney-1", "lung-1", "liver-1", "heart-4", "lung-3", "metabolism-3", "brain-3"),
)
"""The diseases that the hazard names; they are common, the others are rarer (see `life`)."""


def log_hazard(history: History, age_years: Floats, is_male: Bools, world: World) -> Floats:
    """(n,) eta: log hazard ratio to a woman of 62 with an empty record."""
    demographics = LOG_HAZARD_PER_DECADE * (age_years - REFERENCE_AGE_YEARS) / 10 + LOG_HAZARD_MALE * is_male
    motifs = _total(MOTIFS, history) * world.motif_weight
    return world.signal * (demographics + _total(STAGES, history) + motifs)


def _total(terms: Sequence[Term], history: History) -> Floats:
    return np.asarray(sum(term.value(history) for term in terms), dtype=np.float64)


def summarise_history(
    row: Ints,
    seconds: Ints,
    concepts: Ints,
    values: Float32s,
    *,
    n_subjects: int,
    until_seconds: int = 0,
) -> History:
    """The history that events at or before `until_seconds` make.

    Parameters
    ----------
    row, seconds, concepts, values : (E,) events sorted by row and seconds: subject 0..n_subjects-1, time from the
        index date, concept (-1 for noise), value (nan without one)
    until_seconds : the moment of the summary, from the index date
    """
    keep = (seconds <= until_seconds) & (concepts >= 0)
    row, concepts, values = row[keep], concepts[keep], values[keep]
    days = (seconds[keep] - until_seconds) / SECONDS_PER_DAY
    first, last = _first_and_last(row * N_CONCEPTS + concepts)
    first_days = _spread(row[first], concepts[first], days[first], (n_subjects, N_CONCEPTS))
    last_days = _spread(row[last], concepts[last], days[last], (n_subjects, N_CONCEPTS))
    is_lab = (concepts >= FIRST_LAB) & (concepts < FIRST_LAB + len(SYSTEMS))
    lab_row, lab, lab_values = row[is_lab], concepts[is_lab] - FIRST_LAB, values[is_lab].astype(np.float64)
    first, last = _first_and_last(lab_row * len(SYSTEMS) + lab)
    return History(
        first_days=first_days,
        last_days=last_days,
        first_lab=_spread(lab_row[first], lab[first], lab_values[first], (n_subjects, len(SYSTEMS))),
        last_lab=_spread(lab_row[last], lab[last], lab_values[last], (n_subjects, len(SYSTEMS))),
    )


def _first_and_last(key: Ints) -> tuple[Ints, Ints]:
    """Places of the first and of the last occurrence of each key, both in the order of the keys."""
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    return order[np.diff(ordered, prepend=-1) != 0], order[np.diff(ordered, append=-1) != 0]


def _spread(row: Ints, column: Ints, values: Floats, shape: tuple[int, int]) -> Floats:
    table = np.full(shape, np.nan)
    table[row, column] = values
    return table
