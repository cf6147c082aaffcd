"""Code embeddings by skip-gram over visits, after Med2Vec.

Codes of one visit have no order, so the context of a code is its visit and the neighbouring ones (Choi et al. 2016,
Med2Vec, KDD, eqs. 2 and 4). Each is distinguished from codes drawn at random (Mikolov et al. 2013, arXiv:1310.4546,
eq. 4): for a code c with context o and k codes n drawn by the 3/4th power of their frequency

    -log sigmoid(u_o v_c) - sum_n log sigmoid(-u_n v_c)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ehrtrack.arrays import Float32s, Ints
from ehrtrack.data.store import TokenStore
from ehrtrack.data.vocabulary import SPECIAL_TOKENS
from ehrtrack.errors import DataError
from ehrtrack.training.settings import SkipGramConfig

N_DRAWN = 256
"""Random codes a batch; all of its pairs share them, weighted so that each pair has `negatives` of them."""


class Windows(NamedTuple):
    """The tokens of some subjects, and for each token its context: the tokens `start:end`."""

    token: Ints  # (T,)
    start: Ints  # (T,)
    end: Ints  # (T,)


def fit_skip_gram(
    store: TokenStore, rows: Ints, *, n_codes: int, width: int, config: SkipGramConfig, seed: int = 0
) -> Float32s:
    """(V, D) a vector for each of the V tokens, from the histories of some subjects, which are the training ones.

    Tokens that never occur keep the random start.

    Raises
    ------
    DataError
        If no two codes occur together.
    """
    windows = visit_windows(store, rows, window_visits=config.window_visits)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    frequency = np.bincount(windows.token, minlength=n_codes).astype(np.float64)
    frequency[: len(SPECIAL_TOKENS)] = 0
    center = ((torch.rand(n_codes, width, generator=generator) - 0.5) / width).requires_grad_()
    context = torch.zeros(n_codes, width, requires_grad=True)
    optimizer = torch.optim.Adam([center, context], lr=config.lr, fused=True)
    noise = torch.from_numpy(frequency**0.75)
    # where a code stands that has others in its context
    places = np.flatnonzero((windows.end - windows.start > 1) & (windows.token >= len(SPECIAL_TOKENS)))
    steps_an_epoch = config.contexts * -(-len(places) // config.batch_pairs)
    n_steps = epoch = 0
    while epoch < config.epochs or 0 < n_steps < config.min_steps:
        epoch += 1
        with tqdm(total=steps_an_epoch, desc=f"skip-gram epoch {epoch}", disable=None) as bar:
            for pairs in _pairs(windows, places, config, rng):
                drawn = torch.multinomial(noise, N_DRAWN, replacement=True, generator=generator)
                loss = _loss(center, context, torch.from_numpy(pairs), drawn, config.negatives)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                n_steps += 1
                bar.update()
    if not n_steps:
        raise DataError(
            f"no two different codes occur in one visit or in neighbouring ones, in {len(rows)} subjects: "
            "there is nothing to embed; check data.visits.unit and data.vocabulary"
        )
    return center.detach().numpy()


def visit_windows(store: TokenStore, rows: Ints, *, window_visits: int) -> Windows:
    """Each token's visit with the `window_visits` before and after it, within its subject."""
    counts = store.n_tokens[rows]
    source = np.repeat(store.offsets[rows] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    token, visit = store.token[source].astype(np.int64), store.visit[source]
    subject = np.repeat(np.arange(len(rows)), counts)
    is_new = np.ones(len(token), dtype=bool)
    is_new[1:] = (subject[1:] != subject[:-1]) | (visit[1:] != visit[:-1])
    edges = np.append(np.flatnonzero(is_new), len(token))  # where each visit begins
    group = np.cumsum(is_new) - 1  # (T,) number of the visit among all
    subject_of_group = subject[edges[:-1]]
    first = np.searchsorted(subject_of_group, subject_of_group, side="left")
    last = np.searchsorted(subject_of_group, subject_of_group, side="right") - 1
    number = np.arange(len(subject_of_group))
    start = edges[np.maximum(number - window_visits, first)]
    end = edges[np.minimum(number + window_visits, last) + 1]
    return Windows(token, start[group], end[group])


def _pairs(windows: Windows, places: Ints, config: SkipGramConfig, rng: np.random.Generator) -> Iterator[Ints]:
    """(P, 2) a code at one of the places and one of its context, until each has been drawn `contexts` times.

    A special token is no code, and a code that is written again says nothing of its meaning.
    """
    others = windows.end - windows.start - 1
    for _ in range(config.contexts):
        order = rng.permutation(places)
        for begin in range(0, len(order), config.batch_pairs):
            place = order[begin : begin + config.batch_pairs]
            other = windows.start[place] + rng.integers(0, others[place])
            other += other >= place  # all but itself
            pairs = np.column_stack([windows.token[place], windows.token[other]])
            keep = (pairs[:, 0] != pairs[:, 1]) & (pairs[:, 1] >= len(SPECIAL_TOKENS))
            if keep.any():
                yield pairs[keep]


def _loss(center: Tensor, context: Tensor, pairs: Tensor, drawn: Tensor, negatives: float) -> Tensor:
    """Mean over the P pairs (P, 2); `drawn` (N,) stand for `negatives` codes a pair."""
    v = center[pairs[:, 0]]  # (P, D)
    told = F.logsigmoid((v * context[pairs[:, 1]]).sum(dim=1))
    against = F.logsigmoid(-(v @ context[drawn].T)).mean(dim=1)
    return -(told + negatives * against).mean()
