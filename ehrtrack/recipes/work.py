"""A worker of a study or a sweep: on any machine that sees its database, until nothing is left for it to do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ehrtrack.config import Override, load_config
from ehrtrack.recipes._notified import end_is_told
from ehrtrack.recipes.study import open_queue, take_part
from ehrtrack.recipes.sweep import sweep
from ehrtrack.signals import TerminatedBySignal
from ehrtrack.study.results import StudyResults
from ehrtrack.study_file import asks_question

TASKS = (
    ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
    ("SLURM_JOB_ID", "SLURM_PROCID"),
    ("HOSTNAME", "JOB_COMPLETION_INDEX"),  # of an indexed job of Kubernetes, which calls a host JOB-INDEX
    ("SKYPILOT_TASK_ID", "SKYPILOT_NODE_RANK"),
)
"""Variables by which a scheduler tells a task apart, and that are the same when it starts the task again."""


def task_key(environment: Mapping[str, str] | None = None) -> str:
    """The key of the task that a scheduler started this process as; empty where none did.

    >>> task_key({"SLURM_ARRAY_JOB_ID": "417", "SLURM_ARRAY_TASK_ID": "3", "HOSTNAME": "node-9"})
    '417 3'
    >>> task_key({"HOSTNAME": "laptop"})
    ''
    """
    given = os.environ if environment is None else environment
    found = (names for names in TASKS if all(given.get(name) for name in names))
    return " ".join(given[name] for name in next(found, ()))


def work(
    path: Path, overrides: Sequence[Override] = (), *, key: str | None = None, max_hours: float | None = None
) -> None:
    """Run cells of a study, or trials of a sweep, until none is left that no other worker runs, or the time is over.

    The worker that comes first keeps the record (`study`, `sweep`), and stays until all is done. One that is told to
    stop leaves what it runs to another, with its last snapshot.

    Parameters
    ----------
    path : a study's file, which asks a question; any other is the configuration of a sweep
    overrides : dotted paths under ``runtime``, of this machine; of a sweep any, which all of its workers must be given
    key : of the task that this worker is: what a worker with the same key held is taken over at once, and not only when
        its claims lapse. `task_key` if None; none if empty
    max_hours : after which it ends as if it was told to stop, and well

    Raises
    ------
    EhrtrackError
        If the study, the data or the tracking server cannot be used, or cells have failed.
    """

    own = task_key() if key is None else key

    def take_part_in_it() -> StudyResults | None:
        if not asks_question(path):
            sweep(load_config(path, overrides, kind="outcome"), key=own)
            return None
        queue = open_queue(path, overrides, key=own)
        with queue.claims.renewed():
            return take_part(queue)

    at_most(max_hours, lambda: end_is_told(path, take_part_in_it))


def at_most(hours: float | None, function: Callable[[], object]) -> None:
    """Call a function; once the time is over this process is told to stop, which is then no failure."""
    if hours is None:
        function()
        return
    is_over = threading.Event()

    def stop() -> None:
        is_over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(hours * 3600, stop)
    timer.daemon = True
    try:
        timer.start()  # the signal may come before this returns
        function()
    except TerminatedBySignal:
        if not is_over.is_set():
            raise
        print(f"{hours:g} hours are over: the next worker continues what was begun", flush=True)
    finally:
        timer.cancel()
