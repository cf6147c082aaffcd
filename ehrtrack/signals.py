"""Ctrl-C and SIGTERM: the first ends a command in good order, and a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class TerminatedBySignal(SystemExit):
    """SIGTERM, raised where the program stood, so that files and runs are closed; exit code 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


INTERRUPTIONS = (KeyboardInterrupt, TerminatedBySignal)
"""What the two signals are, once they are raised."""

SOON = 0.05
"""Seconds after which an interruption that was lost comes again."""

_received: list[int] = []
_handler_of: dict[int, Any] = {}
"""What handled each signal when it came."""
_is_command = False


def received() -> int | None:
    """The signal that ends the command that runs in `signals_end_the_command`, once it has come."""
    return _received[0] if _is_command and _received else None


def raise_for(number: int) -> None:
    """Raise what a signal stands for."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise TerminatedBySignal


def second_is_at_once() -> None:
    """Now that the command is ending: another SIGTERM must not cut that off, and another Ctrl-C does.

    In a notebook, whose process has to live on, Ctrl-C raises KeyboardInterrupt again.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL if _is_command else signal.default_int_handler)


def end_here(number: int, frame: FrameType | None) -> None:
    """The handler of both signals in a command: it is ended where it stands."""
    _received.append(number)
    _handler_of[number] = signal.getsignal(number)
    second_is_at_once()
    raise_for(number)


@contextmanager
def raised_again() -> Iterator[None]:
    """While inside, an interruption that nobody saw is raised once more.

    Python calls handlers between any two steps of a program, and so also in a finaliser or the callback of a weak
    reference, in which it prints what is raised and goes on: the command would never end.
    """
    before = sys.unraisablehook

    def see(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, INTERRUPTIONS):
            before(unraisable)
            return
        number = signal.SIGINT if isinstance(unraisable.exc_value, KeyboardInterrupt) else signal.SIGTERM
        if number in _handler_of and threading.current_thread() is threading.main_thread():
            signal.signal(number, _handler_of[number])
            threading.Timer(SOON, os.kill, (os.getpid(), number)).start()  # when the finaliser is over

    sys.unraisablehook = see
    try:
        yield
    finally:
        sys.unraisablehook = before


def may_handle(number: int) -> bool:
    """Whether nobody else handles this signal, and this is the main thread: Python allows handlers there alone."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, end_here)


@contextmanager
def signals_end_the_command() -> Iterator[None]:
    """While inside, the first Ctrl-C or SIGTERM raises where the program stands; for the process of a command alone."""
    global _is_command
    ours = [number for number in STOPPING if may_handle(number)]
    before = {number: signal.getsignal(number) for number in ours}
    _received.clear()
    for number in ours:
        signal.signal(number, end_here)
    _is_command = True
    try:
        with raised_again():
            yield
    finally:
        _is_command = False
        for number in ours:
            signal.signal(number, before[number])
