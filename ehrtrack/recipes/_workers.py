"""More workers of a study on this machine, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ehrtrack.config import Override

COMMAND = (sys.executable, "-m", "ehrtrack", "work", "--key", "")
END_SECONDS = 60.0
"""That a worker has to leave its cell to another once it is told to stop."""


def sharing_cores(n_workers: int, overrides: Sequence[Override]) -> list[Override]:
    """The overrides of each of several workers: their threads are its share of the cores, unless a number is given.

    >>> sharing_cores(1, [("runtime.device", "cpu")])
    [('runtime.device', 'cpu')]
    >>> sharing_cores(2, [("runtime.threads", "3")])
    [('runtime.threads', '3')]
    """
    if n_workers == 1 or any(name == "runtime.threads" for name, _ in overrides):
        return list(overrides)
    return [("runtime.threads", str(max(1, n_cores() // n_workers))), *overrides]


def n_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def helped(n_helpers: int, path: Path, overrides: Sequence[Override], logs: Path) -> Iterator[None]:
    """Have other processes run cells of a study while inside; whatever they still do then is ended.

    Parameters
    ----------
    path : the study's file
    overrides : of each
    logs : folder for ``worker-2.log`` and so on, with what each says
    """
    words = [word for name, value in overrides for word in (f"--{name}", value)]
    with ExitStack() as ending:
        for number in range(2, 2 + n_helpers):
            log = logs / f"worker-{number}.log"
            said = ending.enter_context(log.open("w"))
            process = subprocess.Popen([*COMMAND, str(path), *words], stdout=said, stderr=subprocess.STDOUT)
            ending.callback(_end, process, log)
            print(f"worker {number} runs cells too; it says in {log} how it gets on", flush=True)
        yield


def _end(process: subprocess.Popen[bytes], log: Path) -> None:
    """End a worker; one that ended by itself with an error is told, as its cells were left to others."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    elif process.returncode:
        print(f"a worker had ended with exit code {process.returncode}: the end of {log} says why", flush=True)
