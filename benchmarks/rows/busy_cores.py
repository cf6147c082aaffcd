"""Whether the threads that a run takes by itself do harm where another process burns a core: speed against 1 thread.

All is measured in turn in one process, so that a round is seconds and not two starts, and there are enough of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, interleaved, set_threads

ORDER = 11
BATCH_SIZE, N_STEPS = 32, 4

ROWS = (Row("busy-cores", "speed of the threads that a run takes against 1 beside a burning process", "×", 1.0, 1.2),)


def measure(name: str, budget: Budget) -> Measured:
    from benchmarks import _ours
    from benchmarks._workload import VOCABULARY_SIZES, token_store
    from ehrtrack.training.threads import free_threads

    training = _ours.mlm_training("small", VOCABULARY_SIZES["small"])
    batch = _ours.batch_of(token_store(BATCH_SIZE, VOCABULARY_SIZES["small"]), range(BATCH_SIZE))

    def steps(n_threads: int) -> float:
        set_threads(n_threads)
        return sum(training.step(batch) for _ in range(N_STEPS))

    def against_one(n_threads: int, budget: Budget) -> tuple[list[float], dict[str, float | str]]:
        """The ratio of each round, and the speeds of both sides."""
        many, one = interleaved(lambda: steps(n_threads), lambda: steps(1), budget, time.perf_counter)
        speeds: dict[str, float | str] = {
            "tokens_per_second_1_threads": statistics.median(one),
            f"tokens_per_second_{n_threads}_threads": statistics.median(many),
        }
        return [a / b for a, b in zip(many, one, strict=True)], speeds

    with _burner():
        chosen = free_threads()  # before `steps` sets a number: of all threads that there are
        steps(2), steps(1)
        of_two, details = against_one(2, budget.times(4))
        of_chosen = [1.0] if chosen == 1 else of_two
        if chosen > 2:
            of_chosen, _ = against_one(chosen, budget.times(4))
    of_two_quiet, quiet_speeds = against_one(2, budget)
    details |= {
        "threads_chosen": float(chosen),
        "value_is": "1 by construction: one thread was chosen" if chosen == 1 else f"of {chosen} threads",
        "ratio_of_2_threads": statistics.median(of_two),
        "lowest_ratio_of_2_threads": min(of_two),
        "highest_ratio_of_2_threads": max(of_two),
        "rounds": float(len(of_two)),
        "quiet_ratio_of_2_threads": statistics.median(of_two_quiet),
        "quiet_rounds": float(len(of_two_quiet)),
        **{f"quiet_{name}": value for name, value in quiet_speeds.items()},
        "spin_count": os.environ.get("GOMP_SPINCOUNT", "not set"),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }
    return Measured(statistics.median(of_chosen), details)


@contextmanager
def _burner() -> Iterator[None]:
    """Another process that burns a core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
