"""Import and tokenising of an event table in parquet: CPU time and peak memory of a process that does just that."""

from __future__ import annotations

import statistics
import tempfile
from functools import cache
from pathlib import Path

from benchmarks._process import Finished, python
from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, rounds

ORDER = 5
FEW, MANY = 5_000_000, 50_000_000

ROWS = (
    Row("prepare-cpu", "import + tokenise 5 M event rows, parquet in: CPU time", "s", 6, 3, is_lower_better=True),
    Row("prepare-memory", "import + tokenise 5 M event rows: peak memory", "MB", 1000, 600, is_lower_better=True),
    Row("prepare-pandas", "import + tokenise 5 M event rows: CPU time of pandas against ours", "×"),
    Row("grow-time", "50 M event rows against 5 M: time", "×", 11, 10, is_lower_better=True, is_large=True),
    Row("grow-memory", "50 M event rows against 5 M: peak memory", "×", 1.3, 1.1, is_lower_better=True, is_large=True),
)


def measure(name: str, budget: Budget) -> Measured:
    if name.startswith("grow-"):
        few, many = _costs("ours", FEW, 1, 2, budget), _costs("ours", MANY, 1, 2, budget)
        key = "peak_mb" if name == "grow-memory" else "cpu_seconds"
        return Measured(many[key] / few[key], {f"5M_{key}": few[key], f"50M_{key}": many[key]})
    ours = _costs("ours", FEW, budget.least_rounds, 1, budget)
    if name == "prepare-pandas":
        peer = _costs("pandas", FEW, budget.least_rounds, 1, budget)
        return Measured(peer["cpu_seconds"] / ours["cpu_seconds"], {f"pandas_{key}": v for key, v in peer.items()})
    wide = _costs("ours", FEW, 1, 2, budget)
    if name == "prepare-cpu":
        return Measured(ours["cpu_seconds"], {**ours, "wall_seconds_2_threads": wide["wall_seconds"]})
    peak = max(ours["peak_mb"], wide["peak_mb"])
    return Measured(peak, {"peak_mb_1_thread": ours["peak_mb"], "peak_mb_2_threads": wide["peak_mb"]})


@cache
def _costs(side: str, n_rows: int, n_rounds: int, n_threads: int, budget: Budget) -> dict[str, float]:
    """Medians over rounds; the rows of this module share them."""
    finished: list[Finished] = []
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        written = python(["-c", _WRITE, str(raw), str(n_rows)], n_threads=2)
        if written.exit_code != 0:
            raise RuntimeError(f"the event table could not be written:\n{written.errors[-3000:]}")
        for number in rounds(Budget(n_rounds, n_rounds, budget.seconds)):
            work = Path(folder) / str(number)
            work.mkdir()
            words = ["-m", "benchmarks.children.prepare", side, str(raw), str(work)]
            finished.append(python(words, n_threads=n_threads))
            finished[-1].last_json()
    return {
        "cpu_seconds": statistics.median(done.cpu_seconds for done in finished),
        "wall_seconds": statistics.median(done.wall_seconds for done in finished),
        "peak_mb": statistics.median(done.peak_mb for done in finished),
        "start_cpu_seconds": statistics.median(done.last_json()["start_cpu_seconds"] for done in finished),
        "n_tokens": finished[0].last_json()["n_tokens"],
        "rounds": float(len(finished)),
    }


_WRITE = (
    "import sys, pathlib; from benchmarks._events import write_events; "
    "write_events(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
)
