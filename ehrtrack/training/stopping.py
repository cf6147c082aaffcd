"""Ctrl-C, and SIGTERM as a rented machine sends it shortly before it goes: training finishes its step first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ehrtrack.signals import STOPPING

CTRL_C_TEXT = b"\nthe step under way is finished and kept first; Ctrl-C once more ends it now\n"


class TrainingStopped(Exception):
    """Raised by `on_epoch` of `loop.fit` to end training early, as a sweep does with a trial that lags behind."""


@dataclass
class StopRequest:
    """Whether a signal has asked the training to stop.

    Attributes
    ----------
    asked : the first signal that this process received
    is_agreed : whether one of the processes of the distributed training received a signal, and all of them know of it
    """

    asked: int | None = None
    is_agreed: bool = False
    is_obeyed: bool = False

    @property
    def is_asked(self) -> bool:
        """Whether this process got a signal."""
        return self.asked is not None

    def obey(self) -> None:
        """Have the signal do what it would have done without `signals_wait`."""
        self.is_obeyed = True
        if self.asked is not None:
            signal.raise_signal(self.asked)
        raise SystemExit(128 + signal.SIGTERM)  # another rank got the signal, or its handler did nothing


@contextmanager
def signals_wait() -> Iterator[StopRequest]:
    """While inside, the first Ctrl-C and the first SIGTERM are noted for training to obey after its step.

    A second one of the same kind acts at once; one of the other kind does not, since ``mlflow run`` answers Ctrl-C,
    which reaches the training too, with a SIGTERM of its own. Outside the main thread, where Python allows no
    handlers, nothing changes.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in STOPPING}

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        if number == signal.SIGINT and stop.asked is None:
            os.write(2, CTRL_C_TEXT)  # a print that the signal came in the middle of would refuse another
        stop.asked = stop.asked or number

    noted = [number for number in STOPPING if before[number] != signal.SIG_IGN or number == signal.SIGTERM]
    for number in noted:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number in noted:
            signal.signal(number, before[number])
        if stop.is_asked and not stop.is_obeyed:  # it came too late for the last step
            stop.obey()
