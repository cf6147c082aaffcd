"""Batches of packed tokens: one row of real tokens with a length per subject; there is no padding anywhere.

Axis letters, fixed here for the whole package:

B   subjects of a batch
T   tokens of all subjects of a batch, one subject after the other
M   masked tokens of a batch (pretraining)
P   excerpts of a batch (pretraining): parts of its subjects' records that are shown by themselves
D   width of the encoder
K   intervals of the time grid
V   tokens of the vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ehrtrack.arrays import Bools, Float32s, Floats, Ints
from ehrtrack.data.features import FeatureStore
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.data.store import TokenStore
from ehrtrack.data.visits import MAX_AGE_YEARS, UNKNOWN_AGE
from ehrtrack.data.vocabulary import CLS
from ehrtrack.errors import DataError

GAP_EDGES_DAYS = (1 / 24, 0.25, 1, 2, 7, 14, 30, 60, 90, 180, 365, 730, 1825)
"""Edges between the classes of a time gap: under an hour, under six hours, ... five years and more."""

N_GAPS = len(GAP_EDGES_DAYS) + 2
MAX_POSITION = 1023


@dataclass(frozen=True)
class Batch:
    """Packed tokens of B subjects. Each subject's tokens end with a [CLS] token that stands at the cutoff.

    Attributes
    ----------
    rows : (B,) int64, rows of the token store
    lengths : B token counts, [CLS] included
    seed : of everything random that is done with this batch: the same at the same place of the same epoch, wherever
        and however often it is drawn
    token : (T,) int64, vocabulary indices
    age : (T,) int64, age in whole years, `UNKNOWN_AGE` where the birth is not known
    segment : (T,) int64, 0 static and [CLS], then 1 and 2 in turn by visit
    position : (T,) int64, visits counted back from the cutoff: 0 is [CLS], 1 the last visit; static facts have
        the highest
    gap : (T,) int64, class of the time since the previous visit, 0 for static facts
    days_to_end : (T,) float32, days from the token's visit to where the record or the window ends, which is where
        [CLS] stands; inf for static facts, which are of no time
    outcomes : labels of the B subjects, or None; they stay on the CPU in full precision
    target_positions, targets : (M,) int64, places in the row that are to be predicted and their tokens, or None
    hidden : (T, D) float32, the encoder's states where they were computed before
    is_first : (T,) bool, whether the subject's whole record holds the token here for the first time; False for [CLS]
    part : which of several heads is to read the states, "" where there is one
    """

    rows: Tensor
    lengths: tuple[int, ...]
    seed: int
    token: Tensor
    age: Tensor
    segment: Tensor
    position: Tensor
    gap: Tensor
    days_to_end: Tensor
    outcomes: Outcomes | None = None
    target_positions: Tensor | None = None
    targets: Tensor | None = None
    hidden: Tensor | None = None
    is_first: Tensor | None = None
    part: str = ""

    @property
    def n_tokens(self) -> int:
        """T."""
        return sum(self.lengths)

    @cached_property
    def offsets(self) -> Tensor:
        """(B + 1,) int64: subject i has the tokens `offsets[i]:offsets[i + 1]`."""
        return torch.tensor((0, *self.lengths), device=self.token.device).cumsum(0)

    @cached_property
    def subject(self) -> Tensor:
        """(T,) int64: which of the B subjects each token is of."""
        return torch.arange(len(self.lengths), device=self.token.device).repeat_interleave(self.offsets.diff())

    @property
    def cls_positions(self) -> Tensor:
        """(B,) place of each subject's [CLS] token in the row."""
        return self.offsets[1:] - 1

    def generator(self) -> torch.Generator:
        """A fresh source of random numbers for this batch."""
        return torch.Generator().manual_seed(self.seed)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device, which it may be on already."""
        if self.rows.device == device:
            return self
        tensors = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved: dict[str, Any] = {k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def collate(
    store: TokenStore,
    rows: Ints,
    *,
    max_tokens: int,
    outcomes: Outcomes | None = None,
    window_rng: np.random.Generator | None = None,
    seed: int = 0,
) -> Batch:
    """Pack the records of some subjects into one row of tokens.

    A record that is longer than `max_tokens` keeps its static facts and its most recent tokens; with `window_rng`
    (pretraining) a contiguous window instead, which ends with a random visit.

    Parameters
    ----------
    rows : (B,) rows of `store`
    max_tokens : tokens a subject may have, [CLS] included
    """
    source, counts = _windows(store, rows, max_tokens - 1, window_rng)
    subject = np.repeat(np.arange(len(rows)), counts)

    visit = store.visit[source].astype(np.int64)
    is_static = visit == 0
    last_visit = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(last_visit, subject, visit)
    position = np.where(is_static, MAX_POSITION, np.minimum(last_visit[subject] - visit + 1, MAX_POSITION - 1))
    segment = np.where(is_static, 0, 1 + (last_visit[subject] - visit) % 2)
    gap = np.where(is_static, 0, 1 + np.digitize(store.gap_days[source], GAP_EDGES_DAYS))
    age = _whole_years(store.age_years[source])

    # A random window that ends before the record does has its own end.
    is_cut = (last_visit < _last_visits(store, rows)) & (window_rng is not None)
    end = np.cumsum(counts)  # [CLS] is inserted after each subject's last token
    last_age = np.where(counts > 0, age[np.maximum(end - 1, 0)] if len(age) else 0, 0)
    end_age = np.where(is_cut, last_age, _whole_years(store.end_age_years[rows]))
    end_gap = np.where(is_cut, 1, 1 + np.digitize(store.end_gap_days[rows], GAP_EDGES_DAYS))

    days_to_end = _days_to_last_visit(store.gap_days[source], visit, subject, counts)
    days_to_end += np.where(is_cut, 0, store.end_gap_days[rows])[subject]
    days_to_end[is_static] = np.inf

    def with_cls(values: npt.NDArray[Any], cls_values: npt.NDArray[Any] | int) -> Tensor:
        return torch.from_numpy(np.insert(values, end, cls_values))

    return Batch(
        rows=torch.from_numpy(np.ascontiguousarray(rows)),
        lengths=tuple(int(count) + 1 for count in counts),
        seed=seed,
        token=with_cls(store.token[source].astype(np.int64), CLS),
        age=with_cls(age, end_age),
        segment=with_cls(segment, 0),
        position=with_cls(position, 0),
        gap=with_cls(gap, end_gap),
        days_to_end=with_cls(days_to_end.astype(np.float32), 0),
        outcomes=None if outcomes is None else outcomes[rows],
        is_first=with_cls(_is_first(store, rows, source, subject), 0),
    )


def _whole_years(years: Float32s) -> Ints:
    is_unknown = np.isnan(years)
    known = np.clip(np.where(is_unknown, 0, years), 0, MAX_AGE_YEARS).astype(np.int64)
    return np.where(is_unknown, UNKNOWN_AGE, known)


def _windows(store: TokenStore, rows: Ints, max_tokens: int, rng: np.random.Generator | None) -> tuple[Ints, Ints]:
    """Which tokens of the store the batch holds, (T,), and how many of each subject, (B,)."""
    start, stop = store.offsets[rows], store.offsets[rows + 1]
    n_static = np.zeros(len(rows), dtype=np.int64)
    last = stop.copy()
    for i in np.flatnonzero(stop - start > max_tokens):
        n_static[i] = min(int(np.searchsorted(store.visit[start[i] : stop[i]], 1)), max_tokens)
        if rng is not None:
            # A window ends with a whole visit: half a visit would say that the other half did not happen.
            end_visit = store.visit[rng.integers(start[i] + max_tokens, stop[i] + 1) - 1]
            last[i] = start[i] + np.searchsorted(store.visit[start[i] : stop[i]], end_visit, side="right")
    n_recent = np.minimum(stop - start, max_tokens) - n_static
    # Two runs of tokens a subject: its static facts where it was cut, and the most recent.
    first = np.stack([start, last - n_recent], axis=1).ravel()
    length = np.stack([n_static, n_recent], axis=1).ravel()
    before = np.cumsum(length) - length
    return np.repeat(first - before, length) + np.arange(length.sum()), n_static + n_recent


def _days_to_last_visit(
    gap_days: Float32s,
    visit: Ints,
    subject: Ints,
    counts: Ints,
) -> Floats:
    """(T,) days from the visit of each token to the last visit of its subject here."""
    is_later = np.zeros(len(visit), dtype=bool)  # begins a visit that another of the subject goes before
    is_later[1:] = (visit[1:] != visit[:-1]) & (visit[:-1] > 0) & (subject[1:] == subject[:-1])
    elapsed = np.append(0, np.cumsum(np.where(is_later, gap_days, 0), dtype=np.float64))
    days: Floats = np.repeat(elapsed[np.cumsum(counts)], counts) - elapsed[1:]
    return days


def _is_first(
    store: TokenStore,
    rows: Ints,
    source: Ints,
    subject: Ints,
) -> Bools:
    """(T,) whether a token of the batch is the first of its kind in its subject's record, seen here or not."""
    start, n_tokens = store.offsets[rows], store.n_tokens[rows]
    before = np.cumsum(n_tokens) - n_tokens
    everything = np.repeat(start - before, n_tokens) + np.arange(n_tokens.sum())
    kind = np.repeat(np.arange(len(rows)), n_tokens) << 32 | store.token[everything]
    is_first = np.zeros(len(kind), dtype=bool)
    is_first[np.unique(kind, return_index=True)[1]] = True
    first: Bools = is_first[source - (start - before)[subject]]
    return first


def _last_visits(store: TokenStore, rows: Ints) -> Ints:
    stop = store.offsets[rows + 1]
    is_empty = stop == store.offsets[rows]
    return np.where(is_empty, 0, store.visit[np.maximum(stop - 1, 0)]).astype(np.int64)


@dataclass(frozen=True)
class Batches:
    """Batches of a fixed set of subjects, filled up to a budget of tokens; iterating twice gives the same batches.

    Attributes
    ----------
    rows : (N,) rows of `store`
    batch_tokens : tokens a batch may have; a record that is longer by itself is a batch of its own, whole
    max_tokens : tokens a subject may have, [CLS] included; no budget changes it, as it is a property of the model
    shuffle_seed : None keeps the order of `rows`
    has_random_windows : take a random window of long records (pretraining) instead of the most recent tokens
    features : the encoder's states of the same subjects, where they were computed before
    rank, n_ranks : of `n_ranks` processes this is the `rank`-th; each gets batches of its own, and all equally many
    start : batches of this rank that are passed over, as they were done before
    """

    store: TokenStore
    rows: Ints
    batch_tokens: int
    max_tokens: int
    outcomes: Outcomes | None = None
    shuffle_seed: int | None = None
    has_random_windows: bool = False
    features: FeatureStore | None = None
    rank: int = 0
    n_ranks: int = 1
    start: int = 0

    def __len__(self) -> int:
        """Batches of this rank, those passed over included."""
        return len(self._plan) // self.n_ranks

    def __iter__(self) -> Iterator[Batch]:
        numbers = range(self.rank + self.start * self.n_ranks, len(self._plan), self.n_ranks)
        return _one_ahead([partial(self._collate, number) for number in numbers])

    def numbered(self, rank: int, n_ranks: int) -> Iterator[tuple[int, Batch]]:
        """Every `n_ranks`-th batch with its number, from the `rank`-th on: shares that need not be equal."""
        numbers = range(rank, len(self._plan), n_ranks)
        return zip(numbers, _one_ahead([partial(self._collate, number) for number in numbers]), strict=True)

    @property
    def n_truncated(self) -> int:
        """Subjects whose record is longer than what is kept of it."""
        return int((self.store.n_tokens[self.rows] + 1 > self.max_tokens).sum())

    @property
    def n_over_budget(self) -> int:
        """Subjects whose record makes a batch of its own that is larger than the budget."""
        return int((self.lengths_of(self.rows) > self.batch_tokens).sum())

    @property
    def n_tokens(self) -> int:
        """Of all batches and ranks."""
        return int(self.lengths_of(self.rows).sum())

    def lengths_of(self, rows: Ints) -> Ints:
        """Tokens that these rows of the store have in a batch, [CLS] included."""
        return np.minimum(self.store.n_tokens[rows] + 1, self.max_tokens)

    @cached_property
    def _plan(self) -> list[Ints]:
        """Rows of each batch, for all ranks."""
        rows = self.rows
        if self.shuffle_seed is not None:
            rows = np.random.default_rng(self.shuffle_seed).permutation(rows)
        return _equal_shares(_fill(rows, self.lengths_of(rows), self.batch_tokens), self.n_ranks)

    def _collate(self, number: int) -> Batch:
        rows = self._plan[number]
        rng = np.random.default_rng((self.shuffle_seed or 0, number))
        seed = int(rng.integers(2**63))
        batch = collate(
            self.store,
            rows,
            max_tokens=self.max_tokens,
            outcomes=self.outcomes,
            window_rng=rng if self.has_random_windows else None,
            seed=seed,
        )
        if self.features is None:
            return batch
        return replace(batch, hidden=torch.from_numpy(self.features.hidden_of(rows)))


def _fill(rows: Ints, n_tokens: Ints, budget: int) -> list[Ints]:
    """Cut subjects, in their order, into batches of at most `budget` tokens, or of one subject that has more."""
    end = np.cumsum(n_tokens)
    cuts = [0]
    while cuts[-1] < len(rows):
        used = end[cuts[-1] - 1] if cuts[-1] else 0
        full = int(np.searchsorted(end, used + budget, side="right"))
        cuts.append(max(full, cuts[-1] + 1))
    return [rows[a:b] for a, b in pairwise(cuts)]


def _equal_shares(batches: list[Ints], n_ranks: int) -> list[Ints]:
    """The same subjects in a number of batches that the ranks can share equally: the last ones are halved for it."""
    batches = list(batches)
    while len(batches) % n_ranks:
        number = max(range(len(batches)), key=lambda i: (len(batches[i]), i))
        if len(batches[number]) < 2:
            raise DataError(f"{len(batches)} subjects cannot be shared by {n_ranks} processes; start fewer")
        half = len(batches[number]) // 2
        batches[number : number + 1] = [batches[number][:half], batches[number][half:]]
    return batches


def _one_ahead(jobs: list[Callable[[], Batch]]) -> Iterator[Batch]:
    """The batches in order, each made in a thread while the one before is being used."""
    if len(jobs) == 1:  # nothing to make meanwhile, and a thread costs more than a small batch
        yield jobs[0]()
        return
    with ThreadPoolExecutor(1, thread_name_prefix="collate") as pool:
        ahead: Future[Batch] | None = None
        for job in jobs:
            current, ahead = ahead, pool.submit(job)
            if current is not None:
                yield current.result()
        if ahead is not None:
            yield ahead.result()
