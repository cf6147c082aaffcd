"""Ending together with ``mlflow run``: it does not pass SIGTERM on to the command that it started."""

from __future__ import annotations

import os
import signal
import threading
import time

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
    above = next((process for process in psutil.Process().parents() if _is_mlflow_run(process)), None)
    if above is not None:
        _is_watched.set()
        threading.Thread(target=_end_with, args=(above,), name="mlflow run", daemon=True).start()


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
