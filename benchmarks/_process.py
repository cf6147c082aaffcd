"""A program run to its end in a process of its own, with what it cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

SAMPLE_SECONDS = 0.02


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


def python(arguments: Sequence[str], *, n_threads: int, variables: Mapping[str, str] | None = None) -> Finished:
    """Run this Python with `arguments`; libraries that read their number of threads at start get `n_threads`."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(n_threads)) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *arguments], env=environment | dict(variables or {}), stdout=output, stderr=errors
        )
        tree = _TreeMemory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        tree.stop()
        output.seek(0)
        errors.seek(0)
        return Finished(
            exit_code=process.returncode,
            output=output.read().decode(),
            errors=errors.read().decode(),
            wall_seconds=wall_seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_mb=max(usage.ru_maxrss * 1024, tree.peak) / 1e6,
        )


class _TreeMemory(threading.Thread):
    """Resident memory of a process and its children together, sampled.

    ``ru_maxrss`` is exact, but of the largest process alone, and no lower than the memory of the process that
    started it: rows that measure memory start their programs before they import anything large.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._root = psutil.Process(pid)
        self._is_over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            total = 0
            try:
                for process in (self._root, *self._root.children(recursive=True)):
                    total += process.memory_info().rss
            except psutil.Error:  # a process ended while it was looked at
                continue
            self.peak = max(self.peak, total)

    def stop(self) -> None:
        self._is_over.set()
        self.join()
