from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from simulated import random_store
from torch import nn

from ehrtrack.baselines.base import Labelled, TokenHistories
from ehrtrack.baselines.sequence import Sequence
from ehrtrack.baselines.settings import MeanPoolConfig
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.models.code_embeddings import CodeEmbeddings
from ehrtrack.training.settings import SkipGramConfig
from ehrtrack.training.skip_gram import fit_skip_gram

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, *(f"CODE//{k}" for k in range(12))), {})


def subjects(rows: np.ndarray, embeddings: CodeEmbeddings | None = None) -> Labelled[TokenHistories]:
    rng = np.random.default_rng(1)
    days, is_event = rng.uniform(1, 300, 120), rng.random(120) < 0.6
    histories = TokenHistories(random_store(120, len(VOCABULARY)), VOCABULARY, np.arange(120), 32)
    return Labelled(replace(histories, embeddings=embeddings)[rows], days[rows], is_event[rows])


def fit(embeddings: CodeEmbeddings | None, *, trains: bool) -> torch.Tensor:
    config = MeanPoolConfig(n_candidates=1, epochs=2, batch_tokens=256, widths=(8,), trains_embeddings=(trains,))
    train, validation = subjects(np.arange(60), embeddings), subjects(np.arange(60, 120), embeddings)
    model = Sequence(config).fit(train, validation)
    return model.network.encoder.embeddings.code.weight.detach()


def given(width: int = 16) -> CodeEmbeddings:
    vectors = np.random.default_rng(0).normal(size=(len(VOCABULARY), width)).astype(np.float32)
    return CodeEmbeddings(VOCABULARY, vectors, {})


def test_embeddings_that_are_not_trained_are_as_they_were_given() -> None:
    ours = fit(given(), trains=False)
    codes, vectors = ours[4:], torch.from_numpy(given().vectors)[4:]
    expected = vectors - vectors.mean(dim=0)
    assert codes.shape == (12, 16)  # the width of what was given, not that of the config
    ratio = codes / expected
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-3, atol=0)


def test_embeddings_that_are_trained_move() -> None:
    assert not torch.equal(fit(given(), trains=True), fit(given(), trains=False))


def test_without_embeddings_given_they_are_those_of_the_training_subjects() -> None:
    store = random_store(120, len(VOCABULARY))
    vectors = fit_skip_gram(store, np.arange(60), n_codes=len(VOCABULARY), width=8, config=SkipGramConfig())
    reference = nn.Embedding(len(VOCABULARY), 8)
    CodeEmbeddings(VOCABULARY, vectors, {}).initialise(reference, VOCABULARY)
    ours = fit(None, trains=False)
    centred = reference.weight.detach()[4:] / reference.weight.detach()[4:].std()
    torch.testing.assert_close(ours[4:] / ours[4:].std(), centred, rtol=1e-3, atol=1e-4)
