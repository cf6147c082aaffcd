"""Ending together with ``mlflow run``: it does not pass SIGTERM on to the command that it started."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import psutil

POLL_SECONDS = 0.5
_is_watched = threading.Event()


def watch_mlflow_run() -> None:
    """Send this process SIGTERM once the ``mlflow run`` above it is gone; without one, do nothing.

    A thread waits for that process's end. It may be the parent, or have a shell in between, and a shell outlives it;
    so neither the parent's id nor the kernel's signal for a dead parent would tell.
    """
    if "MLFLOW_RUN_ID" not in os.environ or _is_watched.is_set():
        return
    above = _mlflow_run_above()
    if above is not None:
        _is_watched.set()
        threading.Thread(target=_end_with, args=(above,), name="mlflow run", daemon=True).start()


def end_mlflow_run() -> bool:
    """End the ``mlflow run`` above this process, if there is one, before it learns how this process ended.

    MLflow 3.17 marks the run that it was given as FAILED, whatever became of that run, when its command fails. A run
    that may not be joined has to stay as it is.

    Returns
    -------
    Whether there was one.
    """
    above = _mlflow_run_above()
    if above is None:
        return False
    with suppress(psutil.NoSuchProcess):  # it has just been ended by somebody else
        above.terminate()
    return True


def _mlflow_run_above() -> psutil.Process | None:
    return next((process for process in psutil.Process().parents() if _is_mlflow_run(process)), None)


def _is_mlflow_run(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "run" in words and any(os.path.basename(word) == "mlflow" for word in words[: words.index("run")])


def _is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that has ended and that nobody asked for its exit code does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end_with(process: psutil.Process) -> None:
    while _is_alive(process):
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
