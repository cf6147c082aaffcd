"""Processes of this machine: check whether one still runs, and end together with ``mlflow run``.

``mlflow run`` does not pass SIGTERM on to the command that it started, so that command watches it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import psutil

POLL_SECONDS = 0.5
_is_watched = threading.Event()


def is_running(process: psutil.Process) -> bool:
    """Whether a process still runs; a zombie, which has ended and was not waited for, does not.

    A process that is being killed is called a zombie as soon as its first thread has ended. While others are left, so
    are its open files and their locks.
    """
    try:
        has_ended = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        return bool(process.is_running()) and not has_ended
    except psutil.NoSuchProcess:
        return False


def is_process_running(pid: int, began: float, *, tolerance_seconds: float = 0.0) -> bool:
    """Whether the process with this id and start time still runs, since ids are reused.

    Parameters
    ----------
    began : psutil's ``create_time``, in seconds since 1970
    tolerance_seconds : how far the times may differ, as they do once the system's clock has been set

    Examples
    --------
    >>> import psutil
    >>> began = psutil.Process().create_time()
    >>> is_process_running(psutil.Process().pid, began), is_process_running(psutil.Process().pid, began - 3600)
    (True, False)
    """
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - began) <= tolerance_seconds and is_running(process)
    except psutil.NoSuchProcess:
        return False


def watch_mlflow_run() -> None:
    """Send this process SIGTERM once its ancestor ``mlflow run`` has ended; do nothing if there is none.

    A thread waits for the end of that process. It may be the parent, or have a shell in between, and a shell outlives
    it; so neither the parent's id nor the kernel's signal for a dead parent would show it.
    """
    if "MLFLOW_RUN_ID" not in os.environ or _is_watched.is_set():
        return
    above = _mlflow_run_above()
    if above is not None:
        _is_watched.set()
        threading.Thread(target=_end_with, args=(above,), name="mlflow run", daemon=True).start()


def end_mlflow_run() -> bool:
    """End the ``mlflow run`` above this process, if there is one, before it learns how this process ended.

    When its command fails, MLflow 3.17 marks the run that it was given as FAILED, whatever became of that run. A run
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


def _end_with(process: psutil.Process) -> None:
    while is_running(process):
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
