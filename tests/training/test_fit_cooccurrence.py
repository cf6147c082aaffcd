from __future__ import annotations

import numpy as np
import pytest
from simulated import History, Visit, random_store, store_of

from ehrtrack.data.store import TokenStore
from ehrtrack.errors import DataError
from ehrtrack.training.cooccurrence import SMOOTHING, fit_cooccurrence

FEVER, COUGH, FLU, COLD, FRACTURE, PLASTER = range(4, 10)
N_CODES = 10


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def fit(store: TokenStore, rows: np.ndarray | None = None, *, width: int = N_CODES) -> np.ndarray:
    rows = np.arange(len(store)) if rows is None else rows
    return fit_cooccurrence(store, rows, n_codes=N_CODES, width=width)


def test_codes_that_are_written_for_one_another_lie_near_each_other_though_no_record_has_both() -> None:
    """Flu and cold never meet, and neither shares a visit with anything; both come years before fever or cough."""
    pairs = [(FLU, FEVER), (FLU, COUGH), (COLD, FEVER), (COLD, COUGH), (FRACTURE, PLASTER)]
    records = [History([Visit([pairs[i % 5][0]], 40.0), Visit([pairs[i % 5][1]], 45.0, 1800.0)]) for i in range(50)]
    vectors = fit(store_of(records), width=4)
    assert cosine(vectors[FLU], vectors[COLD]) > 0.95
    assert cosine(vectors[FLU], vectors[FRACTURE]) < 0.3


def test_inner_products_are_the_mutual_information_of_the_formula() -> None:
    """With as many singular vectors as codes nothing is cut off; products do not tell the vectors' signs."""
    store = random_store(60, vocabulary_size=N_CODES, seed=2)
    has = np.zeros((60, N_CODES))
    has[np.repeat(np.arange(60), store.n_tokens), store.token] = 1
    has[:, :4] = 0  # special tokens
    both = has.T @ has
    np.fill_diagonal(both, 0)
    total = both.sum(axis=1)
    share = total**SMOOTHING / (total**SMOOTHING).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        ppmi = np.nan_to_num(np.maximum(np.log(both / total[:, None] / share[None]), 0), neginf=0)
    u, s, _ = np.linalg.svd(ppmi)
    vectors = fit(store)
    np.testing.assert_allclose(vectors @ vectors.T, (u * s) @ u.T, atol=1e-4)
    assert not vectors[:4].any()


def test_other_subjects_of_the_store_and_codes_written_again_change_nothing() -> None:
    one = [History([Visit([FLU, FEVER], 40.0)]), History([Visit([FLU, COUGH], 40.0)])] * 5
    again = [History([Visit([FLU, FEVER], 40.0), Visit([FEVER], 41.0, 300.0)]), *one[1:]]
    others = [History([Visit([FRACTURE, PLASTER], 40.0)])] * 30
    alone = fit(store_of(one))
    np.testing.assert_array_equal(alone, fit(store_of([*others, *again]), np.arange(30, 40)))
    assert not np.array_equal(alone, fit(store_of([*others, *one])))


def test_vectors_wider_than_there_are_codes_end_with_zeros() -> None:
    vectors = fit(random_store(60, vocabulary_size=N_CODES, seed=2), width=16)
    assert vectors.shape == (N_CODES, 16)
    assert not vectors[:, N_CODES:].any()


def test_records_of_one_code_each_have_nothing_to_embed() -> None:
    store = store_of([History([Visit([FLU, FLU], 40.0)]), History([Visit([COLD], 40.0)])])
    with pytest.raises(DataError, match="no two different codes occur in one record, in 2 subjects"):
        fit(store)
