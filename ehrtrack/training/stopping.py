"""SIGTERM while training: what a rented machine sends shortly before it goes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether training was told to stop.

    Attributes
    ----------
    is_asked : this process got the signal
    is_agreed : one of the processes that train together got it, and all of them know
    """

    is_asked: bool = False
    is_agreed: bool = False
    is_obeyed: bool = False

    def obey(self) -> None:
        """Have the signal do what it would have done without `sigterm_waits`."""
        self.is_obeyed = True
        if self.is_asked:
            signal.raise_signal(signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM)  # another rank got the signal, or its handler did nothing


@contextmanager
def sigterm_waits() -> Iterator[StopRequest]:
    """While inside, the first SIGTERM is noted for training to obey after its step; a second one acts at once.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        stop.is_asked = True
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
        if stop.is_asked and not stop.is_obeyed:  # it came too late for the last step
            stop.obey()
