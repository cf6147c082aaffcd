"""Pods for tests: real processes that run the command line, and may be told at which point to be killed.

They are forked from a server process that has imported everything once, so that a pod starts in no time.
"""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Protocol

from undrawn import undrawn

START_SECONDS = 300
SUBJECT_SECRET = "of all pods, so that they log subjects under the same hashes"
AFTERWARDS = 3600.0
"""More seconds than any call takes: right after it."""

IMPORTED_ONCE = [
    *(
        "ehrtrack.cli",
        "ehrtrack.recipes.resume",
        "ehrtrack.tracking.doctor",
        "ehrtrack.recipes.finetune",
        "ehrtrack.recipes.baseline",
        "ehrtrack.recipes.pretrain",
        "ehrtrack.recipes.study",
        "ehrtrack.recipes.sweep",
        "ehrtrack.recipes.work",
        "ehrtrack.baselines.cox",
        "ehrtrack.objectives.mlm",
        "ehrtrack.strategies.full",
        "mlflow.tracking",
        "matplotlib.backends.backend_agg",
        "statsmodels.stats.multitest",
    ),
    "torch._dynamo",  # by torch's first optimiser: otherwise up to two thirds of what a killed pod computes
]
_FORK = multiprocessing.get_context("forkserver")

POINTS = {
    "step": ("ehrtrack.training.loop", "Training", "take_step"),
    "checkpoint": ("ehrtrack.training.snapshots", "CheckpointWriter", "_write"),
    "validation": ("ehrtrack.training.loop", "Training", "end_epoch"),
    "upload": ("ehrtrack.tracking.outbox.delivery", "Delivery", "_send_artifact"),
    "drain": ("ehrtrack.tracking.outbox.delivery", "Delivery", "_send_metrics"),
    "end": ("ehrtrack.tracking.outbox.delivery", "Delivery", "_send_end"),
}
"""Where a pod can be killed: around and within the n-th call of a method."""


class Planted(Protocol):
    """Something that a pod does beside its work."""

    def plant(self) -> None:
        """Change this process so that it does it."""


@dataclass(frozen=True)
class Clock:
    """A machine whose clock is wrong by so many minutes; those who measure how long something takes are right."""

    minutes: float = 0.0

    def plant(self) -> None:
        """Shift what this process takes for the time of day."""
        if not self.minutes:
            return
        now, shift = time.time, timedelta(minutes=self.minutes)

        class Shifted(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) + shift

        time.time = lambda: now() + shift.total_seconds()
        for name, module in list(sys.modules.items()):
            if name.startswith("ehrtrack") and getattr(module, "datetime", None) is datetime:
                module.datetime = Shifted  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Fault:
    """A signal at the n-th time that a pod comes to a point.

    Attributes
    ----------
    seconds : after the method was called: 0 is before it does anything; when it returns sooner, it is signalled then
    clock_minutes : by which the pod's clock is wrong
    is_ready : the pod waits at the point until this is so, and is signalled then
    """

    point: str
    call: int
    number: int = signal.SIGKILL
    seconds: float = 0.0
    clock_minutes: float = 0.0
    is_ready: Callable[[], bool] | None = None

    def plant(self) -> None:
        """Have this process signalled at that point."""
        Clock(self.clock_minutes).plant()
        module, owner, name = POINTS[self.point]
        kind = getattr(importlib.import_module(module), owner)
        method, n_calls, lock = getattr(kind, name), 0, threading.Lock()

        def counted(*arguments: Any) -> Any:
            nonlocal n_calls
            with lock:
                n_calls += 1
                is_now = n_calls == self.call
            if not is_now:
                return method(*arguments)
            if self.is_ready is not None:
                wait_until(self.is_ready, folder=Path())
            with self._signalled():
                return method(*arguments)

        setattr(kind, name, counted)

    @contextmanager
    def _signalled(self) -> Iterator[None]:
        """Signal this process once: in time while inside, or else at the end."""
        is_left, is_signalled = threading.Event(), threading.Event()

        def send() -> None:
            is_left.wait(self.seconds)
            if self.number == signal.SIGSTOP:
                signal.raise_signal(self.number)  # to this thread, which gets no further; another might for a moment
            else:
                os.kill(os.getpid(), self.number)
            is_signalled.set()

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        if not self.seconds:
            is_signalled.wait()
        try:
            yield
        finally:
            is_left.set()
            is_signalled.wait()


def _run(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], fault: Planted | None, draws: bool
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    log = os.open(folder / "pod.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
    faulthandler.enable(file=2)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests that run in the background inherit that it is ignored
    import torch

    from ehrtrack.cli import main

    torch.set_num_threads(1)
    if fault is not None:
        fault.plant()
    with nullcontext() if draws else undrawn():
        main(words)


def begin_to_import() -> None:
    """Start the process that pods are forked from, if there is none, and return while it imports."""
    _FORK.set_forkserver_preload(IMPORTED_ONCE)
    forkserver.ensure_running()


def start(
    *words: str, folder: Path, server: str, fault: Planted | None = None, draws: bool = True, **environment: str
) -> multiprocessing.process.BaseProcess:
    """A pod that runs one command in its own folder; `draws` as in `undrawn`."""
    folder.mkdir(parents=True, exist_ok=True)
    begin_to_import()
    given = {"MLFLOW_TRACKING_URI": server, "OMP_NUM_THREADS": "1", "EHRTRACK_DRAIN_SECONDS": "30"}
    given |= {"EHRTRACK_SUBJECT_SECRET": SUBJECT_SECRET, **environment}
    process = _FORK.Process(target=_run, args=(words, folder, given, fault, draws))
    process.start()
    return process


def run(
    *words: str, folder: Path, server: str, fault: Planted | None = None, draws: bool = True, **environment: str
) -> int:
    """Run a pod to its end; returns its exit code, which is minus the signal's number where one killed it."""
    process = start(*words, folder=folder, server=server, fault=fault, draws=draws, **environment)
    process.join(START_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the pod hangs:\n{log_of(folder)}")
    return int(process.exitcode)


def wait_until(is_so: Callable[[], bool], *, folder: Path) -> None:
    """Look until something is so; the pod of the folder is shown if it never is."""
    deadline = time.monotonic() + START_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"it never became so:\n{log_of(folder)}"
        time.sleep(0.1)


def log_of(folder: Path) -> str:
    """What the pods of a folder said."""
    return (folder / "pod.log").read_text()
