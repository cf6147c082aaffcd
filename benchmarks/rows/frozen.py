"""A step of frozen fine-tuning: encoder features computed once, against computed again at every step (packed)."""

from __future__ import annotations

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, compare

ORDER = 4
BATCH_SIZE = 50  # about 4,096 tokens: what train.batch_tokens=auto takes on a CPU

ROWS = (
    Row("frozen-small", "frozen step, cached against recomputed (packed), small", "×", 30, 70),
    Row("frozen-medium", "frozen step, cached against recomputed (packed), medium", "×"),
)


def measure(name: str, budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, outcomes, token_store

    size = name.removeprefix("frozen-")
    store, labels = token_store(BATCH_SIZE, VOCABULARY_SIZES[size]), outcomes(BATCH_SIZE)
    cached = _ours.cached_frozen_training(size, VOCABULARY_SIZES[size], store, labels)
    recomputed = _ours.survival_training(size, VOCABULARY_SIZES[size], labels, strategy="frozen")
    batch, features = _ours.batch_of(store, range(BATCH_SIZE), labels), cached.batch(range(BATCH_SIZE))
    return compare(lambda: _steps(cached, features, 20), lambda: _steps(recomputed, batch, 1), budget)


def _steps(training: object, batch: object, n_steps: int) -> float:
    for _ in range(n_steps):
        training.step(batch)  # type: ignore[attr-defined]
    return float(n_steps)
