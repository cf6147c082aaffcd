"""Whether a second thread does harm where the cores have other work: wall time of 1 thread against 2."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from benchmarks._process import python
from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, rounds

ORDER = 11
N_STEPS = 12

ROWS = (Row("busy-cores", "speed of 2 threads against 1 while another process burns a core", "×", 1.0, 1.2),)


def measure(name: str, budget: Budget) -> Measured:
    wait_policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    found: dict[int, list[float]] = {1: [], 2: []}
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for _ in rounds(budget):
            for n_threads, speeds in found.items():
                words = ["--objective", "mlm", "--batch", "32", "--subjects", "512", "--steps", str(N_STEPS)]
                command = ["-m", "benchmarks.children.steps", *words, "--threads", str(n_threads)]
                cost = python(command, n_threads=n_threads).last_json()
                speeds.append(cost["n_tokens"] / cost["wall_seconds"])
    finally:
        burner.kill()
        burner.wait()
    ratio = statistics.median(two / one for one, two in zip(found[1], found[2], strict=True))
    speeds_by_threads = {f"tokens_per_second_{n}_threads": statistics.median(speeds) for n, speeds in found.items()}
    return Measured(ratio, {**speeds_by_threads, "wait_policy": wait_policy})
