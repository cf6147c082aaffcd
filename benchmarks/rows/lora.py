"""What peft's wrapping costs: a LoRA step against a step of full fine-tuning, both ours."""

from __future__ import annotations

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, compare

ORDER = 9
BATCH_SIZE = 32

ROWS = (Row("lora-small", "speed of a LoRA step (peft) against a step of full fine-tuning, small", "×"),)


def measure(name: str, budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, outcomes, token_store

    labels = outcomes(BATCH_SIZE)
    batch = _ours.batch_of(token_store(BATCH_SIZE, VOCABULARY_SIZES["small"]), range(BATCH_SIZE), labels)
    lora, full = (
        _ours.survival_training("small", VOCABULARY_SIZES["small"], labels, strategy=strategy)
        for strategy in ("lora", "full")
    )
    return compare(lambda: lora.step(batch), lambda: full.step(batch), budget)
