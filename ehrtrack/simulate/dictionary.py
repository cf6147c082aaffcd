"""What can be written in a record: diseases, concepts, the interchangeable codes of each, and sites' habits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Floats, Ints
from ehrtrack.simulate.world import World

SYSTEMS = ("heart", "kidney", "lung", "liver", "brain", "metabolism")
DISEASES_PER_SYSTEM = 5
DISEASES = tuple(f"{system}-{k}" for system in SYSTEMS for k in range(1, DISEASES_PER_SYSTEM + 1))
SYSTEM_OF = np.repeat(np.arange(len(SYSTEMS)), DISEASES_PER_SYSTEM)  # (30,) system of each disease

SYMPTOMS = (("heart", "lung"), ("kidney", "metabolism"), ("liver", "metabolism"), ("brain", "heart"))
"""Ambiguous concepts: each is written for the diseases of two systems."""

N_COMPLICATIONS = 4

EARLY, LATE, DRUG, PROCEDURE = range(4)
_KINDS_OF_DISEASE = (("early", "DX"), ("late", "DX"), ("drug", "RX"), ("procedure", "PROC"))

CONCEPTS: tuple[tuple[str, str], ...] = (
    *((f"{disease}/{name}", kind) for disease in DISEASES for name, kind in _KINDS_OF_DISEASE),
    *((f"{system}/lab", "LAB") for system in SYSTEMS),
    *((f"symptom/{a}-{b}", "DX") for a, b in SYMPTOMS),
    *((f"complication-{k + 1}", "DX") for k in range(N_COMPLICATIONS)),
    ("outcome", "DX"),
)
"""Name and kind of every concept, by index."""

N_CONCEPTS = len(CONCEPTS)
FIRST_LAB = len(_KINDS_OF_DISEASE) * len(DISEASES)
FIRST_SYMPTOM = FIRST_LAB + len(SYSTEMS)
FIRST_COMPLICATION = FIRST_SYMPTOM + len(SYMPTOMS)
OUTCOME = FIRST_COMPLICATION + N_COMPLICATIONS


def disease(name: str) -> int:
    """Index of a disease such as ``"heart-2"``."""
    return DISEASES.index(name)


def concept_of(disease_index: npt.ArrayLike, part: npt.ArrayLike) -> Ints:
    """Index of a disease's concept; `part` is EARLY, LATE, DRUG or PROCEDURE."""
    return np.asarray(disease_index, dtype=np.int64) * len(_KINDS_OF_DISEASE) + np.asarray(part, dtype=np.int64)


@dataclass(frozen=True)
class Dictionary:
    """The codes of a world. Worlds with the same `n_synonyms` share the codes of every concept.

    Code ``concept * n_synonyms + k`` is the k-th way to write a concept; noise codes come after them all.
    """

    world: World

    @property
    def n_concept_codes(self) -> int:
        return N_CONCEPTS * self.world.n_synonyms

    @property
    def n_codes(self) -> int:
        return self.n_concept_codes + self.world.n_noise_codes

    @cached_property
    def code_names(self) -> tuple[str, ...]:
        """The name of each code: its kind and a number that says nothing of the concept."""
        return tuple(f"{self._kind(code)}//{10_000 + code * 7_919 % 89_989}" for code in range(self.n_codes))

    @cached_property
    def parents(self) -> tuple[str | None, ...]:
        """The concept of each code, null for noise."""
        names = [f"CONCEPT//{name}" for name, _ in CONCEPTS]
        return (
            *(names[code // self.world.n_synonyms] for code in range(self.n_concept_codes)),
            *[None] * self.world.n_noise_codes,
        )

    @cached_property
    def habits(self) -> Floats:
        """(n_sites, N_CONCEPTS, n_synonyms) share of each synonym: rank^-habit_zipf in an order of the site's own."""
        rng = world_generator(self.world, "habits")
        shape = (self.world.n_sites, N_CONCEPTS, self.world.n_synonyms)
        rank = 1.0 + np.argsort(rng.random(shape), axis=-1)
        share = rank**-self.world.habit_zipf
        return np.asarray(share / share.sum(axis=-1, keepdims=True), dtype=np.float64)

    @cached_property
    def noise_shares(self) -> Floats:
        """(n_noise_codes,) Zipf."""
        share = np.arange(1, self.world.n_noise_codes + 1, dtype=np.float64) ** -self.world.noise_zipf
        return np.asarray(share / share.sum(), dtype=np.float64)

    def _kind(self, code: int) -> str:
        if code < self.n_concept_codes:
            return CONCEPTS[code // self.world.n_synonyms][1]
        return ("DX", "RX", "PROC")[code % 3]


def world_generator(world: World, purpose: str) -> np.random.Generator:
    """The stream for what is fixed in a world, whatever the seed of the population."""
    return generator(f"{world.name}:{purpose}")


def generator(key: str) -> np.random.Generator:
    """A counter-based stream of its own for each key (Philox, keyed by 128 bits of BLAKE2b)."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
