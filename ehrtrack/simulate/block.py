"""A block of 1,000 subjects: the unit of randomness, so that a subject is the same however many there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehrtrack.arrays import Floats, Ints
from ehrtrack.simulate.dictionary import Dictionary, generator
from ehrtrack.simulate.life import People, draw_diseases, draw_people, draw_visits
from ehrtrack.simulate.outcome import (
    Outcomes,
    censoring_rates,
    draw_complications,
    draw_outcomes,
    outcome_events,
    visits_in_last_year,
)
from ehrtrack.simulate.recording import Events, join_events, record_visits

SUBJECTS_PER_BLOCK = 1000


@dataclass(frozen=True)
class Block:
    """Subjects `number` * 1,000 onwards: who they are, what is recorded (sorted, cut at the record's end), truth."""

    number: int
    people: People
    events: Events
    outcomes: Outcomes
    eta: Floats
    censoring_rate: Floats

    @property
    def subject_ids(self) -> Ints:
        return np.arange(SUBJECTS_PER_BLOCK, dtype=np.int64) + self.number * SUBJECTS_PER_BLOCK


def draw_block(dictionary: Dictionary, seed: int, number: int) -> Block:
    """The block's subjects; they depend on the world, the seed and the number of the block alone."""
    world = dictionary.world
    rng = generator(f"{world.name}:{seed}:{number}")
    people = draw_people(SUBJECTS_PER_BLOCK, world, rng)
    diseases = draw_diseases(people, world, rng)
    visits = draw_visits(people, diseases, world, rng)
    recorded = record_visits(visits, people, diseases, dictionary, rng).sorted()
    complications, eta = draw_complications(recorded, people, dictionary, rng)
    events = join_events(recorded, complications).sorted()
    n_visits = visits_in_last_year(events.row, events.seconds, SUBJECTS_PER_BLOCK)
    rate = censoring_rates(people.age_years, people.is_male, n_visits, world)
    outcomes = draw_outcomes(eta, rate, world, rng)
    events = join_events(events, outcome_events(outcomes, people, dictionary, rng)).sorted()
    events = events.take(events.seconds <= outcomes.record_end_seconds[events.row])
    return Block(number, people, events, outcomes, eta, rate)
