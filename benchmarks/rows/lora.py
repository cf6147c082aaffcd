"""What a LoRA step costs against a step of full fine-tuning, both ours: time, and peak memory.

Memory counts weights, gradients and the optimiser's state too, of which LoRA has fewer.
"""

from __future__ import annotations

import statistics

from benchmarks._process import python
from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, compare, rounds

ORDER = 9
BATCH_SIZES = {"small": 32, "medium": 16}
TOKENS_4096 = 50
"""Subjects of a batch of about 4,096 tokens."""

ROWS = (
    *(
        Row(f"lora-{size}", f"speed of a LoRA step against a step of full fine-tuning, {size}", "×")
        for size in BATCH_SIZES
    ),
    *(
        Row(f"lora-memory-{size}", f"peak memory of a LoRA step against one of full fine-tuning, {size}", "×")
        for size in BATCH_SIZES
    ),
)


def measure(name: str, budget: Budget) -> Measured:
    *_, size = name.split("-")
    return _memory(size, budget) if "memory" in name else _time(size, budget)


def _time(size: str, budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, outcomes, token_store

    n = BATCH_SIZES[size]
    labels = outcomes(n)
    batch = _ours.batch_of(token_store(n, VOCABULARY_SIZES[size]), range(n), labels)
    lora, full = (
        _ours.survival_training(size, VOCABULARY_SIZES[size], labels, strategy=strategy)
        for strategy in ("lora", "full")
    )
    return compare(lambda: lora.step(batch), lambda: full.step(batch), budget)


def _memory(size: str, budget: Budget) -> Measured:
    found: dict[str, list[float]] = {"lora": [], "full": []}
    fewer = Budget(least_rounds=min(2, budget.least_rounds), most_rounds=3, seconds=budget.seconds)
    for _ in rounds(fewer):
        for strategy, peaks in found.items():
            words = ["--strategy", strategy, "--size", size, "--batch", str(TOKENS_4096), "--subjects", "100"]
            program = ["-m", "benchmarks.children.steps", *words, "--steps", "2", "--whole"]
            peaks.append(python(program, n_threads=1).last_json()["peak_mb"])
    lora, full = (statistics.median(peaks) for peaks in found.values())
    return Measured(lora / full, {"lora_peak_mb": lora, "full_peak_mb": full})
