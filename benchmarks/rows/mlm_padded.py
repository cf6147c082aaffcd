"""Pretraining speed against the same model padded to 512."""

from __future__ import annotations

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, compare

ORDER = 1
BATCH_SIZES = {"small": 32, "medium": 16, "large": 8}
"""Subjects a batch, the same on both sides: the padded large model takes seconds for each of them."""

ROWS = tuple(
    Row(f"mlm-{size}", f"MLM real tokens/s against padded-512, f32, {size}", "×", floor, aim)
    for size, floor, aim in (("small", 20, 36), ("medium", 18, 32), ("large", 11, 18))
)


def measure(name: str, budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, token_store
    from benchmarks.peers import padded

    size = name.removeprefix("mlm-")
    batch_size, vocabulary_size = BATCH_SIZES[size], VOCABULARY_SIZES[size]
    batch = _ours.batch_of(token_store(batch_size, vocabulary_size), range(batch_size))
    ours = _ours.mlm_training(size, vocabulary_size)
    peer = padded.PaddedTraining(ours, size)
    return compare(lambda: ours.step(batch), lambda: padded.mlm_step(peer, ours, batch), budget)
