"""What a terminal shows while a study or a sweep runs: one table that is kept up to date; prints go to logs."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Protocol, TextIO

import optuna
import sqlalchemy.exc
from rich.console import Console
from rich.live import Live

from ehrtrack.errors import EhrtrackError
from ehrtrack.recipes._progress_table import HowFar, Output, ProgressTable

LOGS = "logs"
"""Folder of the cache with what was printed while a terminal showed the table."""
READ_SECONDS = 3.0
"""Between two looks at how far it is."""
TAIL_LINES = 3
TAIL_BYTES = 4096
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f]")

LogOf = Callable[[str, str], AbstractContextManager[None]]
"""Of what something is called and the key that it is known by: within it is run, and what it prints is its own."""


class Watched(Protocol):
    """What a terminal shows: something of many parts, which others may work on too."""

    name: str

    @property
    def log(self) -> Path:
        """Where it goes what is printed beside the parts; their own logs lie next to it."""

    def read(self) -> HowFar:
        """See how far it is."""


@contextmanager
def watched(source: Watched) -> Iterator[LogOf]:
    """While inside, a terminal shows how far it is; what is printed goes to logs, one for each part.

    Where stdout is no terminal, as in the log of a job, everything is printed as it comes.
    """
    with _terminal() as terminal:
        console = None if terminal is None else Console(file=terminal, highlight=False)
        if terminal is None or console is None or not console.is_interactive:  # such as TERM=dumb
            yield lambda label, key: nullcontext()
            return
        screen = _Screen(source, console, terminal)
        with screen.shown():
            yield screen.log_of


@contextmanager
def _terminal() -> Iterator[TextIO | None]:
    """The terminal that stdout is, to be written to whatever becomes of stdout; None if it is none."""
    if not sys.stdout.isatty():
        yield None
        return
    own = os.dup(sys.stdout.fileno())
    with open(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors) as terminal:
        yield terminal


class _Screen:
    """The table in a terminal, and the logs of this worker."""

    def __init__(self, source: Watched, console: Console, terminal: TextIO) -> None:
        self._source, self._console, self._terminal = source, console, terminal
        self._log_begins = _size(source.log)
        self._streams = [number for number in (1, 2) if os.isatty(number)]
        self._here: tuple[str, Path, int] | None = None
        self._reading = threading.Lock()
        self._far = HowFar(source.name)
        self._as_of, self._trouble, self._is_over = "", "", False

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While inside, the table is on the screen; it stays there as it is in the end."""
        self._read()
        over = threading.Event()
        reader = threading.Thread(target=self._read_until, args=(over,), name="progress", daemon=True)
        live = Live(
            console=self._console,
            get_renderable=self._table,
            refresh_per_second=1,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with printed_to(self._source.log, self._streams), live:
            self._console.show_cursor(True)  # which would be hidden for good if this process is killed
            live.refresh()
            reader.start()
            try:
                yield
                self._read()
            finally:
                over.set()
                self._is_over = True

    @contextmanager
    def log_of(self, label: str, key: str) -> Iterator[None]:
        """While inside, what is printed goes to a log of its own, whose end is on the screen."""
        file = self._source.log.parent / log_name(label, key)
        self._here = label, file, _size(file)
        try:
            with printed_to(file, self._streams):
                yield
        finally:
            self._here = None

    def _read_until(self, over: threading.Event) -> None:
        while not over.wait(READ_SECONDS):
            self._read()

    def _read(self) -> None:
        with self._reading:
            try:
                self._far = self._source.read()
                self._as_of, self._trouble = _now(), ""
            except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, EhrtrackError) as error:
                self._trouble = str(error).splitlines()[0]  # the worker itself says what is to be done

    def _table(self) -> ProgressTable:
        columns, lines = os.get_terminal_size(self._terminal.fileno())
        if columns and lines:  # the standard streams, which rich would ask, may be files now
            self._console.size = columns, lines
        log, here = self._source.log, self._here
        outputs = [Output("printed beside the runs", log, tail(log, self._log_begins))]
        if here is not None and not self._is_over:
            label, file, begins = here
            outputs = [Output(f"{label}, here", file, tail(file, begins)), *outputs]
        return ProgressTable(self._far, self._as_of, self._trouble, outputs, self._is_over)


def log_name(label: str, key: str) -> str:
    """The file name of a part's log, by what it is called and the key that it is known by.

    >>> log_name("lora r8 · seed 2", "ab12")
    'lora-r8-seed-2-ab12.log'
    """
    called = re.sub(r"[^\w.=+-]+", "-", label)[:100]
    return f"{called}-{key}.log"


def _now() -> str:
    return f"{datetime.now():%H:%M:%S}"


@contextmanager
def printed_to(file: Path, streams: Sequence[int]) -> Iterator[None]:
    """While inside, what this process and those that it starts print goes to the end of a file.

    That holds for whoever prints: Python, a library, or a command that is started.

    Parameters
    ----------
    streams : numbers of the files that are meant, 1 for stdout and 2 for stderr
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    before = {number: os.dup(number) for number in streams}
    try:
        with file.open("ab") as log:
            for number in streams:
                os.dup2(log.fileno(), number)
        yield
    finally:
        _flush()
        for number, kept in before.items():
            os.dup2(kept, number)
            os.close(kept)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def tail(file: Path, begins: int) -> list[str]:
    """The last lines that a file has got since it had so many bytes; of a line that is written over, its last state.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "cell.log"
    ...     _ = file.write_bytes(b"before\\nepoch 1/2\\n 10 %\\r 90 %\\r\\x1b[32mdone\\x1b[0m\\n")
    ...     tail(file, len(b"before\\n"))
    ['epoch 1/2', 'done']
    """
    if not file.exists():
        return []
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(begins, size - TAIL_BYTES))
        text = opened.read().decode(errors="replace")
    lines = (_CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in text.split("\n"))
    return [line for line in lines if line][-TAIL_LINES:]
