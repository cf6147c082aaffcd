"""A table of plain features for the baselines: age, length of history, visits with each token."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import sparse

from ehrtrack.arrays import Bools, Float32s, Ints
from ehrtrack.data.store import TokenStore
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary


def count_features(store: TokenStore, vocabulary: Vocabulary) -> pl.DataFrame:
    """One row a subject, or where the store has several cutoffs of it one a cutoff, in the order of the store.

    Returns
    -------
    subject_id i64, age_years f32 (at the cutoff), n_visits f32, history_days f32 (first visit to cutoff),
    then one f32 column a token (specials left out): the number of visits with it, 0 or 1 for static facts.
    """
    n_subjects = len(store)
    row = np.repeat(np.arange(n_subjects), store.n_tokens)  # (T,)
    ones = np.ones(len(row), dtype=np.float32)
    counts = sparse.csc_array(
        sparse.coo_array((ones, (row, store.token)), shape=(n_subjects, len(vocabulary)))
    )  # (N, V)
    n_visits = np.zeros(n_subjects, dtype=np.float32)
    np.maximum.at(n_visits, row, store.visit)
    columns = {
        "subject_id": store.subject_ids,
        "age_years": store.end_age_years,
        "n_visits": n_visits,
        "history_days": _gap_sums(store, row) + store.end_gap_days,
    }
    for index in range(len(SPECIAL_TOKENS), len(vocabulary)):
        column = np.zeros(n_subjects, dtype=np.float32)
        entries = slice(counts.indptr[index], counts.indptr[index + 1])
        column[counts.indices[entries]] = counts.data[entries]
        columns[vocabulary.tokens[index]] = column
    return pl.DataFrame(columns)


def opens_visit(store: TokenStore, row: Ints) -> Bools:
    """(T,) whether a token is the first of its visit.

    Parameters
    ----------
    row : (T,) the subject of each token
    """
    is_first_token = np.ones(len(row), dtype=bool)
    is_first_token[1:] = (row[1:] != row[:-1]) | (store.visit[1:] != store.visit[:-1])
    return is_first_token


def _gap_sums(store: TokenStore, row: Ints) -> Float32s:
    """(N,) f32 days from the first visit to the last: each visit's gap once, whatever its tokens."""
    gaps = np.where(opens_visit(store, row), store.gap_days, 0)
    return np.bincount(row, weights=gaps, minlength=len(store)).astype(np.float32)
