"""Batches of packed tokens: one row of real tokens with a length per subject; there is no padding anywhere.

Axis letters, fixed here for the whole package:

B   subjects of a batch
T   tokens of all subjects of a batch, one subject after the other
M   masked tokens of a batch (pretraining)
D   width of the encoder
K   intervals of the time grid
V   tokens of the vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ehrtrack.data.store import TokenStore
from ehrtrack.data.vocabulary import CLS

GAP_EDGES_DAYS = (1 / 24, 0.25, 1, 2, 7, 14, 30, 60, 90, 180, 365, 730, 1825)
"""Edges between the classes of a time gap: under an hour, under six hours, ... five years and more."""

N_GAPS = len(GAP_EDGES_DAYS) + 2
MAX_AGE_YEARS = 120
MAX_POSITION = 1023


@dataclass(frozen=True)
class Outcomes:
    """Time-to-event labels of the subjects of a store, row for row.

    Attributes
    ----------
    follow_up_days : (N,) float64, days from the index date to the outcome or to censoring
    is_event : (N,) bool, whether the follow-up ended with the outcome
    """

    follow_up_days: npt.NDArray[np.float64]
    is_event: npt.NDArray[np.bool_]

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Outcomes:
        return Outcomes(self.follow_up_days[rows], self.is_event[rows])


@dataclass(frozen=True)
class Batch:
    """Packed tokens of B subjects. Each subject's tokens end with a [CLS] token that stands at the cutoff.

    Attributes
    ----------
    rows : (B,) int64, rows of the token store
    lengths : B token counts, [CLS] included
    token : (T,) int64, vocabulary indices
    age : (T,) int64, age in whole years
    segment : (T,) int64, 0 static and [CLS], then 1 and 2 in turn by visit
    position : (T,) int64, visits counted back from the cutoff: 0 is [CLS], 1 the last visit; static facts have
        the highest
    gap : (T,) int64, class of the time since the previous visit, 0 for static facts
    outcomes : labels of the B subjects, or None; they stay on the CPU in full precision
    target_positions, targets : (M,) int64, places in the row that are to be predicted and their tokens, or None
    """

    rows: Tensor
    lengths: tuple[int, ...]
    token: Tensor
    age: Tensor
    segment: Tensor
    position: Tensor
    gap: Tensor
    outcomes: Outcomes | None = None
    target_positions: Tensor | None = None
    targets: Tensor | None = None

    @property
    def cls_positions(self) -> Tensor:
        """(B,) place of each subject's [CLS] token in the row."""
        return torch.tensor(self.lengths, device=self.token.device).cumsum(0) - 1

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate(
    store: TokenStore,
    rows: npt.NDArray[np.int64],
    *,
    max_tokens: int,
    outcomes: Outcomes | None = None,
    window_rng: np.random.Generator | None = None,
) -> Batch:
    """Pack the records of some subjects into one row of tokens.

    A record that is longer than `max_tokens` keeps its static facts and its most recent tokens; with `window_rng`
    (pretraining) a contiguous window at a random place instead.

    Parameters
    ----------
    rows : (B,) rows of `store`
    max_tokens : tokens a subject may have, [CLS] included
    """
    pieces = [_window(store, int(row), max_tokens - 1, window_rng) for row in rows]
    counts = np.array([len(piece) for piece in pieces], dtype=np.int64)
    source = np.concatenate(pieces)
    subject = np.repeat(np.arange(len(rows)), counts)

    visit = store.visit[source].astype(np.int64)
    is_static = visit == 0
    last_visit = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(last_visit, subject, visit)
    position = np.where(is_static, MAX_POSITION, np.minimum(last_visit[subject] - visit + 1, MAX_POSITION - 1))
    segment = np.where(is_static, 0, 1 + (last_visit[subject] - visit) % 2)
    gap = np.where(is_static, 0, 1 + np.digitize(store.gap_days[source], GAP_EDGES_DAYS))
    age = np.clip(store.age_years[source], 0, MAX_AGE_YEARS).astype(np.int64)

    # A random window that ends before the record does has its own end.
    is_cut = (last_visit < _last_visits(store, rows)) & (window_rng is not None)
    end = np.cumsum(counts)  # [CLS] is inserted after each subject's last token
    last_age = np.where(counts > 0, age[np.maximum(end - 1, 0)] if len(age) else 0, 0)
    end_age = np.where(is_cut, last_age, np.clip(store.end_age_years[rows], 0, MAX_AGE_YEARS).astype(np.int64))
    end_gap = np.where(is_cut, 1, 1 + np.digitize(store.end_gap_days[rows], GAP_EDGES_DAYS))

    def with_cls(values: npt.NDArray[np.int64], cls_values: npt.NDArray[np.int64] | int) -> Tensor:
        return torch.from_numpy(np.insert(values, end, cls_values))

    return Batch(
        rows=torch.from_numpy(np.ascontiguousarray(rows)),
        lengths=tuple(int(count) + 1 for count in counts),
        token=with_cls(store.token[source].astype(np.int64), CLS),
        age=with_cls(age, end_age),
        segment=with_cls(segment, 0),
        position=with_cls(position, 0),
        gap=with_cls(gap, end_gap),
        outcomes=None if outcomes is None else outcomes[rows],
    )


def _window(store: TokenStore, row: int, max_tokens: int, rng: np.random.Generator | None) -> npt.NDArray[np.int64]:
    start, stop = int(store.offsets[row]), int(store.offsets[row + 1])
    if stop - start <= max_tokens:
        return np.arange(start, stop)
    n_static = int(np.searchsorted(store.visit[start:stop], 1))
    n_kept = max(max_tokens - n_static, 0)
    last = stop if rng is None else int(rng.integers(start + n_static + n_kept, stop + 1))
    static = np.arange(start, start + min(n_static, max_tokens))
    return np.concatenate([static, np.arange(last - n_kept, last)])


def _last_visits(store: TokenStore, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    stop = store.offsets[rows + 1]
    is_empty = stop == store.offsets[rows]
    return np.where(is_empty, 0, store.visit[np.maximum(stop - 1, 0)]).astype(np.int64)


@dataclass(frozen=True)
class Batches:
    """Batches of a fixed set of subjects; iterating twice gives the same batches.

    Attributes
    ----------
    rows : (N,) rows of `store`
    shuffle_seed : None keeps the order of `rows`
    has_random_windows : take a random window of long records (pretraining) instead of the most recent tokens
    """

    store: TokenStore
    rows: npt.NDArray[np.int64]
    batch_size: int
    max_tokens: int
    outcomes: Outcomes | None = None
    shuffle_seed: int | None = None
    has_random_windows: bool = False

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        rng = np.random.default_rng(self.shuffle_seed)
        rows = self.rows if self.shuffle_seed is None else rng.permutation(self.rows)
        for start in range(0, len(rows), self.batch_size):
            yield collate(
                self.store,
                rows[start : start + self.batch_size],
                max_tokens=self.max_tokens,
                outcomes=self.outcomes,
                window_rng=rng if self.has_random_windows else None,
            )
