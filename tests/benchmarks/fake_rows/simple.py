"""Rows that are met, under their floor, not there yet, and shown."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks._row import Measured, NotMeasured, NotThereYet, Row
from benchmarks._timing import Budget

ORDER = 1
ROWS = (
    Row("fast", "more is better", "×", 2, 4),
    Row("slow", "less is better", "s", 0.5, 0.1, is_lower_better=True),
    Row("absent", "nobody wrote it", "×", 1, 1),
    Row("elsewhere", "of a device that is not here", "×", 1, 1),
    Row("shown", "not judged", "×"),
    Row("huge", "only when asked for", "×", 1, 1, is_large=True),
)


def measure(name: str, budget: Budget) -> Measured:
    with Path(os.environ["FAKE_ROWS_LOG"]).open("a") as log:
        log.write(f"{name} {budget.least_rounds}\n")
    print("what a library prints is no result")
    if name == "absent":
        raise NotThereYet("the absent part")
    if name == "elsewhere":
        raise NotMeasured("there is no such device")
    return Measured({"fast": 3.0, "slow": 0.7, "shown": 0.01, "huge": 1.0}[name], {"ours": 1.0, "how": "made up"})
