"""Pretraining speed against Hugging Face's BERT on length-bucketed batches."""

from __future__ import annotations

import numpy as np

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, compare

ORDER = 2
BATCH_SIZE = 32
N_SUBJECTS = 2048
N_BUCKETS = {"small": 6, "medium": 3}
"""One pass over these buckets is a round; ours goes over the same subjects in random order."""

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
    store = token_store(N_SUBJECTS, VOCABULARY_SIZES[size])
    buckets = hugging_face.length_buckets(store, BATCH_SIZE, N_BUCKETS[size])
    rows = np.random.default_rng(0).permutation(np.concatenate([batch.rows.numpy() for batch in buckets]))
    packed = [_ours.batch_of(store, part) for part in np.array_split(rows, len(buckets))]
    ours = _ours.mlm_training(size, VOCABULARY_SIZES[size], precision=precision)
    attention_dropout = 0.1 if precision == "f32" else 0.0
    peer = hugging_face.HuggingFaceTraining(
        size, VOCABULARY_SIZES[size], precision=precision, attention_dropout=attention_dropout
    )
    found = compare(
        lambda: sum(ours.step(batch) for batch in packed),
        lambda: sum(hugging_face.mlm_step(peer, ours, batch) for batch in buckets),
        budget.times(3),  # a round is seconds, and its ratio varies by a tenth: five would not tell 1.45 from 1.55
    )
    n_padded = sum(len(batch.lengths) * max(batch.lengths) for batch in buckets)
    n_real = sum(len(batch.token) for batch in buckets)
    return Measured(found.value, found.details | {"share_of_padding_in_buckets": 1 - n_real / n_padded})
