"""A row whose process dies."""

from __future__ import annotations

import os

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget

ORDER = 2
ROWS = (Row("dies", "its process ends before it answers", "×", 1, 1),)


def measure(name: str, budget: Budget) -> Measured:
    os._exit(7)
