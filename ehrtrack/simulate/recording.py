"""What is written down at visits: concepts of the diseases there are, copies, noise; and in which codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Bools, Float32s, Floats, Ints
from ehrtrack.simulate.dictionary import (
    DISEASES_PER_SYSTEM,
    DRUG,
    EARLY,
    FIRST_LAB,
    FIRST_SYMPTOM,
    LATE,
    PROCEDURE,
    SYMPTOMS,
    SYSTEMS,
    Dictionary,
    concept_of,
)
from ehrtrack.simulate.life import DAYS_PER_YEAR, Diseases, People, Visits
from ehrtrack.simulate.motifs import SECONDS_PER_DAY
from ehrtrack.simulate.world import World

LATE_FACTOR = 1.8  # procedures are this much likelier in the late stage
LAB_WITHOUT_DISEASE = 0.15  # share of the laboratory probability while the system is healthy
LAB_PER_STAGE, LAB_NOISE, LAB_DRIFT_PER_YEAR = 0.7, 0.4, 0.2
PROMPT_DAYS, DELAYED_DAYS = (0.0, 60.0), (300.0, 1200.0)
NOISE = -1
"""The concept of a noise code."""


@dataclass(frozen=True)
class Events:
    """Coded events of a block, (E,) each; `concept` is NOISE for noise, `value` is nan without one."""

    row: Ints
    seconds: Ints
    concept: Ints
    code: Ints
    value: Float32s

    def take(self, chosen: Bools | Ints) -> Events:
        return Events(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def sorted(self) -> Events:
        """By subject, time and code, as they are written; the same code twice at one time is once."""
        events = self.take(np.lexsort((self.code, self.seconds, self.row)))
        again = np.zeros(len(events.row), dtype=bool)
        again[1:] = (np.diff(events.row) == 0) & (np.diff(events.seconds) == 0) & (np.diff(events.code) == 0)
        return events.take(~again)


def join_events(*parts: Events) -> Events:
    """The events of several parts, in no order."""
    return Events(*(np.concatenate([getattr(part, name) for part in parts]) for name in Events.__dataclass_fields__))


def record_visits(
    visits: Visits, people: People, diseases: Diseases, dictionary: Dictionary, rng: np.random.Generator
) -> Events:
    """Everything that is written at the visits."""
    world = dictionary.world
    stage = _stages(visits, diseases)  # (V, 30)
    visit, concept = _disease_concepts(visits, stage, diseases, world, rng)
    symptom_visit, symptom = _symptoms(stage, world, rng)
    lab_visit, lab, lab_value = _labs(visits, stage, people, world, rng)
    visit = np.concatenate([visit, symptom_visit, lab_visit])
    concept = np.concatenate([concept, symptom, lab])
    value = np.full(len(visit), np.nan, dtype=np.float32)
    value[len(visit) - len(lab_value) :] = lab_value
    code = write_codes(people.site[visits.row[visit]], concept, dictionary, rng)
    copy_visit, source = _copies(visits, visit, concept, world, rng)
    noise_visit, noise = _noise(len(visits.row), dictionary, rng)
    at = np.concatenate([visit, copy_visit, noise_visit])
    return Events(
        row=visits.row[at],
        seconds=visits.seconds[at],
        concept=np.concatenate([concept, concept[source], np.full(len(noise), NOISE)]),
        code=np.concatenate([code, code[source], noise]),
        value=np.concatenate([value, np.full(len(source) + len(noise), np.nan, dtype=np.float32)]),
    )


def write_codes(site: Ints, concept: Ints, dictionary: Dictionary, rng: np.random.Generator) -> Ints:
    """(E,) one of each concept's interchangeable codes, by the habits of the site."""
    cumulative = dictionary.habits.cumsum(axis=-1)[:, :, :-1]
    synonym = (rng.random(len(concept))[:, None] >= cumulative[site, concept]).sum(axis=1)
    return np.asarray(concept * dictionary.world.n_synonyms + synonym, dtype=np.int64)


def _stages(visits: Visits, diseases: Diseases) -> npt.NDArray[np.int8]:
    """(V, 30): 0 healthy, 1 early, 2 late."""
    days = (visits.seconds / SECONDS_PER_DAY)[:, None]
    early = (diseases.onset_days[visits.row] <= days).astype(np.int8)
    return early + (diseases.late_days[visits.row] <= days).astype(np.int8)


def _disease_concepts(
    visits: Visits, stage: npt.NDArray[np.int8], diseases: Diseases, world: World, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """(visit, concept) of diagnoses, drugs and procedures."""
    delay = _treatment_delay(diseases, world, rng)  # (n, 30) days
    visit, disease = np.nonzero(stage)
    row, is_late = visits.row[visit], stage[visit, disease] == 2
    is_treated = visits.seconds[visit] / SECONDS_PER_DAY >= diseases.onset_days[row, disease] + delay[row, disease]
    draws = rng.random((3, len(visit)))
    is_diagnosis = draws[0] < world.diagnosis_probability
    is_drug = (draws[1] < world.drug_probability) & is_treated
    is_procedure = draws[2] < world.procedure_probability * np.where(is_late, LATE_FACTOR, 1)
    return (
        np.concatenate([visit[is_diagnosis], visit[is_drug], visit[is_procedure]]),
        np.concatenate(
            [
                concept_of(disease[is_diagnosis], np.where(is_late[is_diagnosis], LATE, EARLY)),
                concept_of(disease[is_drug], DRUG),
                concept_of(disease[is_procedure], PROCEDURE),
            ]
        ),
    )


def _treatment_delay(diseases: Diseases, world: World, rng: np.random.Generator) -> Floats:
    """(n, 30) days from onset to treatment: at once, or about two years later."""
    shape = diseases.onset_days.shape
    is_prompt = rng.random(shape) < world.prompt_treatment
    return np.where(is_prompt, rng.uniform(*PROMPT_DAYS, shape), rng.uniform(*DELAYED_DAYS, shape))


def _symptoms(stage: npt.NDArray[np.int8], world: World, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """(visit, concept) of ambiguous symptoms: as likely as the diseases of their two systems are many."""
    n_active = (stage > 0).reshape(len(stage), len(SYSTEMS), DISEASES_PER_SYSTEM).sum(axis=2)
    pairs = np.array([[SYSTEMS.index(name) for name in symptom] for symptom in SYMPTOMS])
    probability = 1 - (1 - world.symptom_probability) ** n_active[:, pairs].sum(axis=2)
    visit, symptom = np.nonzero(rng.random(probability.shape) < probability)
    return visit, FIRST_SYMPTOM + symptom


def _labs(
    visits: Visits, stage: npt.NDArray[np.int8], people: People, world: World, rng: np.random.Generator
) -> tuple[Ints, Ints, Float32s]:
    """(visit, concept, value): worse with the worst stage in the system, and drifting in each subject's own way."""
    drift = rng.normal(0, LAB_DRIFT_PER_YEAR, people.frailty.shape)  # (n, 6)
    worst = stage.reshape(len(stage), len(SYSTEMS), DISEASES_PER_SYSTEM).max(axis=2)
    probability = world.lab_probability * np.where(worst > 0, 1, LAB_WITHOUT_DISEASE)
    visit, system = np.nonzero(rng.random(worst.shape) < probability)
    years = visits.seconds[visit] / SECONDS_PER_DAY / DAYS_PER_YEAR
    level = 2 + LAB_PER_STAGE * worst[visit, system] + drift[visits.row[visit], system] * years
    value = np.round(level + rng.normal(0, LAB_NOISE, len(visit)), 2)
    return visit, FIRST_LAB + system, value.astype(np.float32)


def _copies(visits: Visits, visit: Ints, concept: Ints, world: World, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """(visit, event copied): a diagnosis is carried to the next visits, a geometric number of them."""
    is_diagnosis = (concept < FIRST_LAB) & ((concept % 4 == EARLY) | (concept % 4 == LATE))
    source = np.flatnonzero(is_diagnosis)
    n_copies = rng.geometric(1 - world.copy_forward, len(source)) - 1
    ahead = np.arange(n_copies.sum()) - np.repeat(n_copies.cumsum() - n_copies, n_copies) + 1
    source = np.repeat(source, n_copies)
    copy_visit = visit[source] + ahead
    keep = copy_visit < len(visits.row)
    keep[keep] = visits.row[copy_visit[keep]] == visits.row[visit[source[keep]]]
    return copy_visit[keep], source[keep]


def _noise(n_visits: int, dictionary: Dictionary, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """(visit, code) of codes that nothing drives, by Zipf's law."""
    visit = np.repeat(np.arange(n_visits), rng.poisson(dictionary.world.noise_per_visit, n_visits))
    rank = np.searchsorted(dictionary.noise_shares.cumsum()[:-1], rng.random(len(visit)), side="right")
    return visit, dictionary.n_concept_codes + rank
