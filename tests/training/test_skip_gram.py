from __future__ import annotations

import numpy as np
import pytest
from simulated import History, Visit, random_store, store_of

from ehrtrack.errors import DataError
from ehrtrack.training.settings import SkipGramConfig
from ehrtrack.training.skip_gram import fit_skip_gram, visit_windows

FEVER, COUGH, FLU, COLD, FRACTURE, PLASTER = range(4, 10)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("window_visits", [0, 1, 2])
def test_the_context_of_a_token_is_its_visit_and_its_neighbours_within_the_subject(window_visits: int) -> None:
    store = random_store(30, vocabulary_size=20, seed=3)
    rows = np.array([4, 2, 9, 0, 17])
    windows = visit_windows(store, rows, window_visits=window_visits)
    place = 0
    for row in rows:
        tokens = slice(store.offsets[row], store.offsets[row + 1])
        visits = store.visit[tokens]
        numbers = np.unique(visits, return_inverse=True)[1]
        for own in numbers:
            near = np.flatnonzero(abs(numbers - own) <= window_visits)
            expected = store.token[tokens][near]
            np.testing.assert_array_equal(windows.token[windows.start[place] : windows.end[place]], expected)
            place += 1
    assert place == len(windows.token)


def test_codes_that_are_written_for_one_another_lie_near_each_other() -> None:
    """Flu and cold never meet, but both come with fever and cough."""
    pairs = [(FLU, FEVER), (FLU, COUGH), (COLD, FEVER), (COLD, COUGH), (FRACTURE, PLASTER)]
    store = store_of([History([Visit(list(pairs[i % 5]), 40.0)]) for i in range(400)])
    vectors = fit_skip_gram(store, np.arange(400), n_codes=10, width=8, config=SkipGramConfig())
    vectors -= vectors[4:].mean(axis=0)  # as a model that starts from them does
    assert cosine(vectors[FLU], vectors[COLD]) > 0.8
    assert cosine(vectors[FLU], vectors[FRACTURE]) < 0.3


def test_other_subjects_of_the_store_change_nothing() -> None:
    one = [History([Visit([FLU, FEVER], 40.0), Visit([COLD], 41.0, 300.0)]) for _ in range(20)]
    others = [History([Visit([FRACTURE, PLASTER], 40.0)])] * 30
    alone = fit_skip_gram(store_of(one), np.arange(20), n_codes=10, width=4, config=SkipGramConfig())
    beside = fit_skip_gram(store_of([*others, *one]), np.arange(30, 50), n_codes=10, width=4, config=SkipGramConfig())
    np.testing.assert_array_equal(alone, beside)


def test_a_code_on_its_own_or_written_twice_is_no_pair() -> None:
    store = store_of([History([Visit([FLU, FLU], 40.0)]), History([Visit([COLD], 40.0)])])
    with pytest.raises(DataError, match="no two different codes occur in one visit or in neighbouring ones"):
        fit_skip_gram(store, np.arange(2), n_codes=10, width=4, config=SkipGramConfig())
