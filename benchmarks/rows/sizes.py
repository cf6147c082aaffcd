"""What the three sizes cost: peak memory of a pretraining step of 4,096 tokens, and time for a million tokens."""

from __future__ import annotations

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
    found = python(["-m", "benchmarks.children.steps", *words], n_threads=1).last_json()
    per_million = {
        f"{clock}_seconds_per_million_tokens": found[f"{clock}_seconds"] / found["n_tokens"] * 1e6
        for clock in ("cpu", "wall")
    }
    return Measured(found["peak_mb"], per_million)
