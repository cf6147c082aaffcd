"""A peer is worth measuring only if it does the same work: equal losses, equal tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import _ours
from benchmarks._events import write_events
from benchmarks._workload import outcomes, token_store
from benchmarks.peers import padded

N_SUBJECTS, VOCABULARY_SIZE = 6, 200


def test_padded_and_packed_pretraining_have_the_same_loss_and_gradients() -> None:
    ours = _ours.mlm_training("small", VOCABULARY_SIZE, dropout=0.0)
    peer = padded.PaddedTraining(ours, "small", dropout=0.0)
    batch = _ours.masked(ours, _ours.batch_of(token_store(N_SUBJECTS, VOCABULARY_SIZE), range(N_SUBJECTS)), seed=3)
    logits = ours.model(batch)
    loss = torch.nn.functional.cross_entropy(logits, batch.targets)
    other = peer.loss(padded.pad(batch), batch)
    assert loss.item() == pytest.approx(other.item(), abs=1e-5)
    loss.backward()
    other.backward()
    for (name, a), b in zip(ours.model.named_parameters(), peer.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_padded_and_packed_survival_have_the_same_loss() -> None:
    labels = outcomes(N_SUBJECTS, event_rate=0.7)
    ours = _ours.survival_training("small", VOCABULARY_SIZE, labels, dropout=0.0)
    peer = padded.PaddedTraining(ours, "small", dropout=0.0)
    batch = _ours.batch_of(token_store(N_SUBJECTS, VOCABULARY_SIZE), range(N_SUBJECTS), labels)
    loss = _ours.objective_loss(ours.objective, ours.model, batch)
    assert loss.item() == pytest.approx(peer.loss(padded.pad(batch), batch).item(), abs=1e-5)


def test_steps_of_both_sides_count_real_tokens_and_learn() -> None:
    ours = _ours.mlm_training("small", VOCABULARY_SIZE)
    peer = padded.PaddedTraining(ours, "small")
    batch = _ours.batch_of(token_store(2, VOCABULARY_SIZE), range(2))
    before = {name: p.detach().clone() for name, p in peer.model.named_parameters()}
    assert ours.step(batch) == padded.mlm_step(peer, ours, batch) == len(batch.token)
    changed = {name for name, p in peer.model.named_parameters() if p.dim() > 1 and not torch.equal(p, before[name])}
    of_cls_alone = {name for name in before if name.startswith("encoder.readout.")}  # which masked loss does not read
    assert changed | of_cls_alone == {name for name, p in before.items() if p.dim() > 1} | of_cls_alone


def test_hugging_face_sees_no_padding_and_is_asked_for_the_same_targets() -> None:
    hugging_face = pytest.importorskip("benchmarks.peers.hugging_face")
    ours = _ours.mlm_training("small", VOCABULARY_SIZE)
    peer = hugging_face.HuggingFaceTraining("small", VOCABULARY_SIZE, precision="f32", attention_dropout=0.0)
    peer.model.eval()
    batch = _ours.masked(ours, _ours.batch_of(token_store(3, VOCABULARY_SIZE), range(3)), seed=0)
    short, long = (peer.loss(padded.pad(batch, length)) for length in (max(batch.lengths), 512))
    assert short.item() == pytest.approx(long.item(), abs=1e-5)
    targets = padded.pad(batch, max(batch.lengths)).targets
    assert torch.equal(targets[targets != padded.IGNORED], batch.targets)


def test_buckets_are_of_like_length_and_span_the_store() -> None:
    hugging_face = pytest.importorskip("benchmarks.peers.hugging_face")
    store = token_store(400, VOCABULARY_SIZE)
    buckets = hugging_face.length_buckets(store, batch_size=10, n_buckets=4)
    spans = [(min(bucket.lengths), max(bucket.lengths)) for bucket in buckets]
    assert all(low <= high < later for (low, high), (later, _) in itertools.pairwise(spans))
    assert all(high <= 1.3 * low for low, high in spans)


def test_pandas_makes_the_same_tokens_as_import_and_tokeniser(tmp_path: Path) -> None:
    from benchmarks.peers.pandas_preparation import tokenise
    from ehrtrack.data.events import open_dataset
    from ehrtrack.data.fitting import fit_vocabulary
    from ehrtrack.data.importing import import_dataset
    from ehrtrack.data.record_ends import record_cutoffs
    from ehrtrack.data.settings import VisitConfig, VocabularyConfig
    from ehrtrack.data.shards import ShardWork
    from ehrtrack.data.split_settings import SplitConfig
    from ehrtrack.data.store import build_store

    raw = write_events(tmp_path / "raw", 20_000)
    import_dataset("meds", raw, tmp_path / "meds", progress=lambda line: None)
    dataset = open_dataset(tmp_path / "meds")
    work = ShardWork(tmp_path / "cache")
    cutoffs = record_cutoffs(dataset, SplitConfig(), work)
    vocabulary = fit_vocabulary(dataset, cutoffs, VocabularyConfig(), work)
    store = build_store(dataset, cutoffs, vocabulary, VisitConfig(), tmp_path / "stores")
    subjects = np.repeat(store.subject_ids, store.n_tokens)
    ours = pd.DataFrame({"subject_id": subjects, "visit": store.visit, "token": store.token})
    ours = ours.sort_values(["subject_id", "visit", "token"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(tokenise(raw).reset_index(drop=True), ours, check_dtype=False)
