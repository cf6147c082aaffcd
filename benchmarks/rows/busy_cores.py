"""Whether a second thread does harm where the cores have other work: wall time of 1 thread against 2.

Both are measured in turn in one process, so that a round is seconds and not two starts, and there are enough of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, interleaved, set_threads

ORDER = 11
BATCH_SIZE, N_STEPS = 32, 4

ROWS = (Row("busy-cores", "speed of 2 threads against 1 while another process burns a core", "×", 1.0, 1.2),)


def measure(name: str, budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, token_store

    training = _ours.mlm_training("small", VOCABULARY_SIZES["small"])
    batch = _ours.batch_of(token_store(BATCH_SIZE, VOCABULARY_SIZES["small"]), range(BATCH_SIZE))

    def steps(n_threads: int) -> float:
        set_threads(n_threads)
        return sum(training.step(batch) for _ in range(N_STEPS))

    steps(2), steps(1)
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        two, one = interleaved(lambda: steps(2), lambda: steps(1), budget.times(4), time.perf_counter)
    finally:
        burner.kill()
        burner.wait()
    by_round = [a / b for a, b in zip(two, one, strict=True)]
    details: dict[str, float | str] = {
        "tokens_per_second_1_threads": statistics.median(one),
        "tokens_per_second_2_threads": statistics.median(two),
        "lowest_ratio": min(by_round),
        "highest_ratio": max(by_round),
        "rounds": float(len(by_round)),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }
    return Measured(statistics.median(by_round), details)
