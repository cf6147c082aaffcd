"""A step of full fine-tuning to a time-to-event outcome: time and peak memory against padded-512."""

from __future__ import annotations

import statistics

from benchmarks._process import python
from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, compare, rounds

ORDER = 3
BATCH_SIZES = {"small": 32, "medium": 16}

ROWS = tuple(
    Row(f"survival-{kind}-{size}", f"full survival fine-tune step against padded-512, {size}: {what}", "×", floor, aim)
    for size in BATCH_SIZES
    for kind, what, floor, aim in (("time", "time", 10, 15), ("memory", "peak memory (8 = one eighth)", 8, 12))
)


def measure(name: str, budget: Budget) -> Measured:
    _, kind, size = name.split("-")
    return _memory(size, budget) if kind == "memory" else _time(size, budget)


def _time(size: str, budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, outcomes, token_store
    from benchmarks.peers import padded

    batch_size, vocabulary_size = BATCH_SIZES[size], VOCABULARY_SIZES[size]
    labels = outcomes(batch_size)
    batch = _ours.batch_of(token_store(batch_size, vocabulary_size), range(batch_size), labels)
    ours = _ours.survival_training(size, vocabulary_size, labels)
    peer = padded.PaddedTraining(ours, size)
    return compare(lambda: ours.step(batch), lambda: peer.step(padded.pad(batch), batch), budget)


def _memory(size: str, budget: Budget) -> Measured:
    found: dict[str, list[float]] = {"ours": [], "padded": []}
    fewer = Budget(least_rounds=min(2, budget.least_rounds), most_rounds=3, seconds=budget.seconds)
    for _ in rounds(fewer):
        for side, peaks in found.items():
            batch = str(BATCH_SIZES[size])
            words = ["--side", side, "--size", size, "--batch", batch, "--subjects", batch, "--steps", "2"]
            peaks.append(python(["-m", "benchmarks.children.steps", *words], n_threads=1).last_json()["peak_mb"])
    ours, peer = (statistics.median(peaks) for peaks in found.values())
    return Measured(peer / ours, {"ours_peak_mb": ours, "peer_peak_mb": peer})
