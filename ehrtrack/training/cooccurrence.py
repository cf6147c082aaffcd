"""Code embeddings from which codes share records: the singular vectors of their mutual information.

Two codes are near each other where subjects with the one tend to have what subjects with the other have, whether or
not they were ever written for one subject. The matrix is that of cui2vec (Beam et al. 2020, Pac Symp Biocomput 25,
section 2.2, with a whole record as the window), which skip-gram with negative sampling factorises by small steps (Levy
and Goldberg 2014, NIPS 27, eq. 11); for C_ij subjects who have both i and j,

    PPMI_ij = max(0, log(C_ij / (C_i. q_j))),    q_j = C_.j^0.75 / sum_k C_.k^0.75

and vectors are U S^(1/2) of its truncated singular value decomposition (Levy et al. 2015, TACL 3, sections 3.2, 3.3).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

from ehrtrack.arrays import Float32s, Ints
from ehrtrack.data.store import TokenStore
from ehrtrack.data.vocabulary import SPECIAL_TOKENS
from ehrtrack.errors import DataError

SMOOTHING = 0.75
"""Exponent of the context's frequency: rare codes would be thought of as telling too much."""


def fit_cooccurrence(store: TokenStore, rows: Ints, *, n_codes: int, width: int, seed: int = 0) -> Float32s:
    """(V, D) a vector for each of the V tokens, from the records of some subjects, which are the training ones.

    Tokens that share no record with another are 0.

    Raises
    ------
    DataError
        If no two codes occur in one record.
    """
    ones = np.ones(len(store.token), dtype=np.float64)
    has = scipy.sparse.csr_array((ones, store.token, store.offsets), shape=(len(store), n_codes))[rows]
    has.sum_duplicates()
    has.data[:] = 1
    both = (has.T @ has).tocoo()
    is_pair = (both.row != both.col) & (np.minimum(both.row, both.col) >= len(SPECIAL_TOKENS))
    i, j, n_both = both.row[is_pair], both.col[is_pair], both.data[is_pair]
    if not len(n_both):
        raise DataError(
            f"no two different codes occur in one record, in {len(rows)} subjects: there is nothing to embed; check "
            "data.vocabulary and the cohort"
        )
    total = np.bincount(i, weights=n_both, minlength=n_codes)  # the matrix is symmetric
    share = total**SMOOTHING / (total**SMOOTHING).sum()
    ppmi = scipy.sparse.csr_array((np.maximum(np.log(n_both / (total[i] * share[j])), 0), (i, j)), shape=both.shape)
    width_there = min(width, n_codes)
    u, s, _ = randomized_svd(ppmi, width_there, random_state=seed)
    vectors = np.zeros((n_codes, width), dtype=np.float32)
    vectors[:, :width_there] = u * np.sqrt(s)
    vectors[total == 0] = 0  # not quite, out of the decomposition
    return vectors
