"""Pretraining speed against Hugging Face's BERT on length-bucketed batches."""

from __future__ import annotations

import numpy as np

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, compare

ORDER = 2
BATCH_SIZE = 32
N_SUBJECTS = {"small": 128, "medium": 64}
"""One pass over them is a round, so that every bucket counts as often as it occurs."""

ROWS = tuple(
    Row(f"hf-{precision}-{size}", f"MLM real tokens/s against {peer}, {precision}, {size}", "×", floor, aim)
    for precision, peer, floor, aim in (
        ("f32", "bucketed Hugging Face BERT", 1.5, 2.5),
        ("bf16", "bucketed, fused, attention-dropout-free Hugging Face BERT", 1.2, 1.8),
    )
    for size in ("small", "medium")
)


def measure(name: str, budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, token_store
    from benchmarks.peers import hugging_face

    _, precision, size = name.split("-")
    store = token_store(N_SUBJECTS[size], VOCABULARY_SIZES[size])
    buckets = hugging_face.length_buckets(store, BATCH_SIZE)
    packed = list(_ours.batches_of(store, BATCH_SIZE))
    ours = _ours.mlm_training(size, VOCABULARY_SIZES[size], precision=precision)
    attention_dropout = 0.1 if precision == "f32" else 0.0
    peer = hugging_face.HuggingFaceTraining(
        size, VOCABULARY_SIZES[size], precision=precision, attention_dropout=attention_dropout
    )
    found = compare(
        lambda: sum(ours.step(batch) for batch in packed),
        lambda: sum(hugging_face.mlm_step(peer, ours, batch) for batch in buckets),
        budget,
    )
    n_padded = sum(len(batch.lengths) * max(batch.lengths) for batch in buckets)
    n_real = int(np.sum(store.n_tokens + 1))
    return Measured(found.value, found.details | {"share_of_padding_in_buckets": 1 - n_real / n_padded})
