"""A program run to its end in a process of its own, with what it cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

SAMPLE_SECONDS = 0.02
LAUNCHER = Path(__file__).parent / "children" / "launch.py"


@dataclass(frozen=True)
class Finished:
    """What a program printed and cost.

    Attributes
    ----------
    cpu_seconds : user and system time of the process and of all its children
    peak_mb : most resident memory at one time, of the process with all its children
    """

    exit_code: int
    output: str
    errors: str
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float

    def last_json(self) -> dict[str, Any]:
        """The JSON object on the last line that was printed."""
        if self.exit_code != 0:
            raise RuntimeError(f"a measured program ended with exit code {self.exit_code}:\n{self.errors[-3000:]}")
        answer: dict[str, Any] = json.loads(self.output.strip().splitlines()[-1])
        return answer


def python(arguments: Sequence[str], *, n_threads: int) -> Finished:
    """Run this Python with `arguments`; libraries that read their number of threads at start get `n_threads`."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(n_threads)) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        tempfile.NamedTemporaryFile() as report,
    ):
        command = [sys.executable, "-S", str(LAUNCHER), report.name, sys.executable, *arguments]
        launcher = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        tree = _TreeMemory(launcher.pid)
        launcher.wait()
        tree.stop()
        output.seek(0)
        errors.seek(0)
        cost = json.load(report)
        return Finished(
            exit_code=cost["exit_code"],
            output=output.read().decode(),
            errors=errors.read().decode(),
            wall_seconds=cost["wall_seconds"],
            cpu_seconds=cost["cpu_seconds"],
            peak_mb=max(cost["peak_bytes"], tree.peak) / 1e6,
        )


class _TreeMemory(threading.Thread):
    """Resident memory of all that a process started, together, sampled.

    ``ru_maxrss`` is exact, but of the largest process alone. Shared pages count once for each that maps them.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._root = psutil.Process(pid)
        self._is_over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            try:
                total = sum(process.memory_info().rss for process in self._root.children(recursive=True))
            except psutil.Error:  # a process ended while it was looked at
                continue
            self.peak = max(self.peak, total)

    def stop(self) -> None:
        self._is_over.set()
        self.join()
