"""The predictor that counts pairs: it knows which codes go together, and no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretraining import TRAIN, VALIDATION, V, dealt_out, diseases, objective_for
from scipy import sparse
from simulated import History, Visit, store_of

from ehrtrack.data.batch import Batch, Batches, collate
from ehrtrack.data.store import TokenStore
from ehrtrack.objectives import _cooccurrence
from ehrtrack.objectives._cooccurrence import WEIGHTS, CoOccurrence, _pairs
from ehrtrack.objectives.mlm import MaskedTokens, mask_tokens


def fitted(store: TokenStore) -> CoOccurrence:
    counts = np.bincount(store.token, minlength=V) + 1.0
    return CoOccurrence(Batches(store, TRAIN, 4096, 64), torch.from_numpy(np.log(counts / counts.sum())))


def losses(store: TokenStore) -> tuple[float, float]:
    """Of the pairs and of the unigrams, on validation subjects."""
    objective = objective_for(store, "mlm")
    assert isinstance(objective, MaskedTokens)
    assert objective.cooccurrence is not None
    by_pairs = by_unigram = 0.0
    for batch in Batches(store, VALIDATION, 210, 64):
        masked = mask_tokens(batch, 0.15, V, batch.generator())
        assert masked.targets is not None
        by_pairs += objective.cooccurrence.loss(masked, masked.targets)
        by_unigram -= float(objective.unigram_log_probability[masked.targets].sum())
    return by_pairs, by_unigram


def test_where_codes_tell_each_other_pairs_are_far_better_than_unigrams() -> None:
    """A code's disease has six codes of 24 and no code twice: all that is left to guess is one of those not shown."""
    by_pairs, by_unigram = losses(diseases())
    assert by_pairs < 0.5 * by_unigram


def test_where_they_do_not_pairs_are_no_better() -> None:
    by_pairs, by_unigram = losses(dealt_out(diseases()))
    assert by_pairs == pytest.approx(by_unigram, rel=0.03)


def test_probabilities_of_all_codes_add_up_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cooccurrence, "N_SINGLE", 10)  # so that most codes share a class
    store = diseases()
    predictor = fitted(store)
    batch = replace(collate(store, np.array([300, 301]), max_tokens=64), target_positions=torch.tensor([2]))
    total = sum(np.exp(-predictor.loss(batch, torch.tensor([code]))) for code in range(V))
    assert total == pytest.approx(1, abs=1e-5)


def test_what_is_shown_at_a_hidden_place_is_not_looked_at() -> None:
    store = diseases()
    predictor = fitted(store)
    batch = replace(collate(store, np.array([300]), max_tokens=64), target_positions=torch.tensor([1]))
    target = batch.token[[1]]

    def loss(shown: int, place: int) -> float:
        changed = batch.token.index_copy(0, torch.tensor([place]), torch.tensor([shown]))
        return predictor.loss(replace(batch, token=changed), target)

    assert {loss(code, 1) for code in range(4, V)} == {predictor.loss(batch, target)}
    assert len({loss(code, 2) for code in range(4, V)}) > 1


def test_a_record_that_shows_nothing_has_nearly_the_unigrams() -> None:
    store = store_of([History([Visit([4 + k % 20], 50.0)]) for k in range(400)])
    predictor = fitted(store)
    alone: Batch = replace(collate(store, np.array([300]), max_tokens=8), target_positions=torch.tensor([0]))
    expected = -float(predictor.log_share[predictor.class_of[4]] + predictor.log_within[4])
    assert predictor.loss(alone, torch.tensor([4])) == pytest.approx(expected, abs=1e-6)


def test_a_place_makes_no_pair_with_itself_and_weighs_one_however_long_its_record() -> None:
    counts = sparse.csr_array(np.array([[2, 1, 0], [0, 1, 1], [1, 0, 0]], dtype=np.float32))
    # first record: three places, each seen beside two others; second: two; third: nobody beside it
    expected = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(_pairs(counts), expected)


def test_the_weight_is_chosen_on_records_that_were_not_counted() -> None:
    assert fitted(diseases()).weight == WEIGHTS[-1]
    assert fitted(dealt_out(diseases())).weight < WEIGHTS[2]
