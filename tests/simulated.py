"""A small seeded population with a known truth, as a MEDS dataset: made for tests, in a fraction of a second.

Each subject has one of a few diseases, and every visit records two of that disease's codes (``DISEASE//3//0`` and
``DISEASE//3//4``), so that codes tell each other.
Each of the codes ``RISK//0 .. RISK//2`` that a history holds multiplies the hazard of ``OUTCOME`` after ``INDEX``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.config import RunConfig, parse_config
from ehrtrack.data.events import EVENT_SCHEMA, MedsDataset, open_dataset
from ehrtrack.data.store import TokenStore

N_DISEASES = 4
N_CODES = 5
N_RISKS = 3
HORIZON_DAYS = 365.0

Event = tuple[int, datetime | None, str]


@dataclass(frozen=True)
class Population:
    """What is true of the subjects.

    Attributes
    ----------
    hazard_ratio : by which each risk code multiplies the hazard; 1 plants no signal
    has_leak : a code before the index date tells when the outcome will come
    prefix : of every code, so that two populations can share none
    first_subject : the subjects' ids count from it
    """

    n_subjects: int = 300
    seed: int = 0
    hazard_ratio: float = 5.0
    has_leak: bool = False
    prefix: str = ""
    first_subject: int = 1


def write_dataset(folder: Path, population: Population = Population()) -> MedsDataset:
    """The population's records as a MEDS dataset of one shard."""
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(population.seed)
    subjects = range(population.first_subject, population.first_subject + population.n_subjects)
    rows = [event for subject in subjects for event in _history(subject, population, rng)]
    frame = pl.DataFrame(
        {"subject_id": [r[0] for r in rows], "time": [r[1] for r in rows], "code": [r[2] for r in rows]},
        schema={name: EVENT_SCHEMA[name] for name in ("subject_id", "time", "code")},
    )
    frame.sort("subject_id", "time", nulls_last=False, maintain_order=True).write_parquet(folder / "data" / "0.parquet")
    return open_dataset(folder)


def _history(subject: int, population: Population, rng: np.random.Generator) -> Iterator[Event]:
    index = datetime(2015, 1, 1) + timedelta(days=int(rng.integers(0, 1000)))
    disease = int(rng.integers(N_DISEASES))
    risks = [k for k in range(N_RISKS) if rng.random() < 0.5]
    rate_per_day = population.hazard_ratio ** (len(risks) - 1) / 1200
    outcome_days = 1 + rng.exponential(1 / rate_per_day)
    last_contact_days = rng.uniform(150, 600)

    def event(time: datetime | None, code: str) -> Event:
        return subject, time, code if code.startswith("MEDS_") else population.prefix + code

    yield event(None, f"GENDER//{rng.choice(['F', 'M'])}")
    yield event(index - timedelta(days=float(rng.uniform(30, 80)) * 365.25), "MEDS_BIRTH")
    for _ in range(int(rng.integers(3, 8))):
        visit = index - timedelta(days=float(rng.uniform(2, 900)))
        for code in rng.choice(N_CODES, 2, replace=False):
            yield event(visit, f"DISEASE//{disease}//{code}")
    for risk in risks:
        yield event(index - timedelta(days=float(rng.uniform(2, 300))), f"RISK//{risk}")
    if population.has_leak:
        yield event(index - timedelta(days=1), f"LEAK//{min(int(outcome_days / HORIZON_DAYS * 8), 8)}")
    yield event(index, "INDEX")
    if outcome_days < last_contact_days:
        yield event(index + timedelta(days=float(outcome_days)), "OUTCOME")
    yield event(index + timedelta(days=float(last_contact_days)), "CONTACT")


def study_values(data: Path, cache: Path, **sections: Any) -> dict[str, Any]:
    """A configuration for the population, as plain values; whole sections can be given anew."""
    return {
        "study": "simulated",
        "data": {"path": str(data), "max_tokens": 64, "vocabulary": {"min_subjects": 2}},
        "cohort": {
            "horizon_days": HORIZON_DAYS,
            "index": {"rule": "first_code", "codes": ["INDEX$"]},
            "outcome": {"codes": ["OUTCOME$"]},
        },
        "model": {"size": "tiny"},
        "train": {"epochs": 3, "batch_tokens": 512, "lr": 3e-3},
        "runtime": {"cache": str(cache), "device": "cpu"},
    } | sections


def study(data: Path, cache: Path, **sections: Any) -> RunConfig:
    """A configuration for the population."""
    return parse_config(study_values(data, cache, **sections))


@dataclass(frozen=True)
class Visit:
    """Tokens of a visit; a visit without age is the static facts."""

    tokens: Sequence[int]
    age_years: float = 0.0
    gap_days: float = 0.0
    is_static: bool = False


@dataclass(frozen=True)
class History:
    """Visits of a subject up to its cutoff."""

    visits: Sequence[Visit]
    end_age_years: float = 50.0
    end_gap_days: float = 1.0


def store_of(histories: Sequence[History]) -> TokenStore:
    """A token store in memory, from visits written out by hand."""
    token, age, visit, gap, offsets = [], [], [], [], [0]
    for history in histories:
        number = 0
        for v in history.visits:
            number += not v.is_static
            token += list(v.tokens)
            age += [v.age_years] * len(v.tokens)
            visit += [0 if v.is_static else number] * len(v.tokens)
            gap += [v.gap_days] * len(v.tokens)
        offsets.append(len(token))
    return TokenStore(
        subject_ids=np.arange(len(histories), dtype=np.int64),
        offsets=np.array(offsets, dtype=np.int64),
        token=np.array(token, dtype=np.int32),
        age_years=np.array(age, dtype=np.float32),
        visit=np.array(visit, dtype=np.int32),
        gap_days=np.array(gap, dtype=np.float32),
        end_age_years=np.array([h.end_age_years for h in histories], dtype=np.float32),
        end_gap_days=np.array([h.end_gap_days for h in histories], dtype=np.float32),
        fingerprint="by hand",
    )


def random_store(n_subjects: int, vocabulary_size: int, seed: int = 0, longest: int = 12) -> TokenStore:
    """A token store of random visits; some subjects have none at all."""
    rng = np.random.default_rng(seed)

    def tokens(n: int) -> list[int]:
        picked: npt.NDArray[np.int64] = rng.integers(4, vocabulary_size, n)
        return [int(token) for token in picked]

    return store_of(
        [
            History(
                [Visit(tokens(1), is_static=True)]
                + [
                    Visit(tokens(int(rng.integers(1, 4))), float(rng.uniform(20, 80)), float(rng.exponential(60)))
                    for _ in range(int(rng.integers(0, longest)))
                ],
                float(rng.uniform(40, 90)),
                float(rng.exponential(30)),
            )
            if subject % 7
            else History([])
            for subject in range(n_subjects)
        ]
    )
