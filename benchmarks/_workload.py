"""The made-up records that rows are measured on: ragged as records are, and the same at every run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ehrtrack.data.outcomes import Outcomes
from ehrtrack.data.store import TokenStore

MEDIAN_TOKENS = 60
LENGTH_SPREAD = 0.8
"""Standard deviation of the logarithm of the length: a mean of 82 tokens, and 4 in 1,000 reach the maximum."""

MAX_TOKENS = 512
HORIZON_DAYS = 1825.0
VOCABULARY_SIZES = {"small": 1_000, "medium": 1_000, "large": 20_000}
N_STATIC, TOKENS_A_VISIT = 2, 3


def record_lengths(n_subjects: int) -> npt.NDArray[np.int64]:
    """(N,) tokens of each record with its [CLS]: the log-normal's quantiles, so that few subjects stand for many."""
    z = np.array([NormalDist().inv_cdf((i + 0.5) / n_subjects) for i in range(n_subjects)])
    lengths = np.clip(np.round(MEDIAN_TOKENS * np.exp(LENGTH_SPREAD * z)), 4, MAX_TOKENS)
    return lengths.astype(np.int64)


def token_store(n_subjects: int, vocabulary_size: int, *, seed: int = 0) -> TokenStore:
    """A tokenised population: codes by Zipf's law, a few tokens a visit, subjects in random order."""
    rng = np.random.default_rng(seed)
    counts = rng.permutation(record_lengths(n_subjects) - 1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    n_tokens = int(offsets[-1])
    place = np.arange(n_tokens) - np.repeat(offsets[:-1], counts)  # of a token in its record
    visit = np.maximum((place - N_STATIC) // TOKENS_A_VISIT + 1, 0)
    is_static = visit == 0
    first_of_visit = np.arange(n_tokens) - np.where(is_static, 0, (place - N_STATIC) % TOKENS_A_VISIT)
    gap_days = np.where(is_static | (visit == 1), 0, rng.exponential(40, n_tokens)[first_of_visit])
    birth_age = np.repeat(rng.uniform(20, 70, n_subjects), counts)
    frequency = 1 / np.arange(1, vocabulary_size - 3)
    return TokenStore(
        subject_ids=np.arange(n_subjects, dtype=np.int64),
        offsets=offsets.astype(np.int64),
        token=rng.choice(vocabulary_size - 4, n_tokens, p=frequency / frequency.sum()).astype(np.int32) + 4,
        age_years=np.where(is_static, 0, birth_age + visit * 40 / 365).astype(np.float32),
        visit=visit.astype(np.int32),
        gap_days=gap_days.astype(np.float32),
        end_age_years=rng.uniform(70, 90, n_subjects).astype(np.float32),
        end_gap_days=rng.exponential(30, n_subjects).astype(np.float32),
        fingerprint=f"made up: {n_subjects} subjects, vocabulary {vocabulary_size}, seed {seed}",
    )


def outcomes(n_subjects: int, *, event_rate: float = 0.3, seed: int = 0) -> Outcomes:
    """Follow-up up to the horizon, with about this share of events."""
    rng = np.random.default_rng(seed)
    return Outcomes(np.ceil(rng.uniform(0, HORIZON_DAYS, n_subjects)), rng.random(n_subjects) < event_rate)


def mapped(store: TokenStore, folder: Path) -> TokenStore:
    """The same store with its arrays on disk, mapped into memory as a prepared cohort's are."""
    arrays = {f.name: getattr(store, f.name) for f in fields(store) if isinstance(getattr(store, f.name), np.ndarray)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    opened = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}
    return TokenStore(**opened, fingerprint=store.fingerprint)
