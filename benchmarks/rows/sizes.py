"""What the three sizes cost: peak memory of a pretraining step of 4,096 tokens, and time for a million tokens.

Medians of some processes: what the allocator keeps differs between them, by a tenth and more with recomputation.
"""

from __future__ import annotations

import statistics

from benchmarks._process import python
from benchmarks._row import Measured, Row
from benchmarks._timing import Budget

ORDER = 12
BATCH_SIZE = 50  # about 4,096 tokens: what train.batch_tokens=auto takes on a CPU
N_SUBJECTS = 1_000
N_STEPS = {"small": 6, "medium": 3, "large": 2}

ROWS = tuple(
    Row(f"size-{size}-{how}", f"pretraining step of 4,096 tokens, {size}, {how}: peak memory", "MB")
    for size in N_STEPS
    for how in ("plain", "recompute")
)


def measure(name: str, budget: Budget) -> Measured:
    _, size, how = name.split("-")
    words = ["--size", size, "--objective", "mlm", "--batch", str(BATCH_SIZE), "--subjects", str(N_SUBJECTS)]
    words += ["--steps", str(N_STEPS[size])] + ["--recompute"] * (how == "recompute")
    program = ["-m", "benchmarks.children.steps", *words]
    found = [python(program, n_threads=1).last_json() for _ in range(budget.least_rounds)]
    peaks = [process["peak_mb"] for process in found]
    details: dict[str, float | str] = {
        f"{clock}_seconds_per_million_tokens": statistics.median(
            process[f"{clock}_seconds"] / process["n_tokens"] * 1e6 for process in found
        )
        for clock in ("cpu", "wall")
    }
    details |= {"lowest_peak_mb": min(peaks), "highest_peak_mb": max(peaks), "processes": float(len(found))}
    return Measured(statistics.median(peaks), details)
