"""A program in a real pseudo-terminal: what it writes there, what a person sees in the end, and keys to press."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence

BEGIN = (
    "import fcntl, os, signal, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""Make stdin the terminal that the command belongs to, so that Ctrl-C reaches it, and become the command.

A shell starts what it runs in the background with Ctrl-C ignored, and tests with it."""
LONGEST_SECONDS = 300.0
ESCAPE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


class Terminal:
    """A Python program in a terminal.

    Parameters
    ----------
    words : that python is started with
    environment : beside that of this process
    """

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str] | None = None, *, columns: int = 120, lines: int = 40
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        given = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=given | {"TERM": "xterm-256color"} | dict(environment or {}),
        )
        os.close(theirs)
        self.written = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def read_until(self, text: str) -> None:
        """Wait until a text has been written."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while text not in self.written:
            assert self._read(deadline), f"it ended without {text!r}; it wrote:\n{self.written}"

    def press(self, keys: bytes) -> None:
        """Type something."""
        os.write(self._ours, keys)

    def end(self) -> int:
        """Wait until the program ends; its exit code, as a shell has it."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while self._read(deadline):
            pass
        os.close(self._ours)
        code = self.process.wait()
        return code if code >= 0 else 128 - code

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
        if not ready or time.monotonic() > deadline:  # a table that is kept up to date writes for ever
            self.process.kill()
            raise AssertionError(f"it did not end within {LONGEST_SECONDS:.0f} s; it wrote:\n{self.written}")
        try:
            read = os.read(self._ours, 65536)
        except OSError:  # the last one who had the terminal open is gone
            return False
        self.written += self._decoder.decode(read)
        return bool(read)

    @property
    def screen(self) -> list[str]:
        """The lines that stand there after all was written, without those at the end that are empty."""
        return seen(self.written)


def seen(written: str) -> list[str]:
    """What a terminal shows of a text: lines are written over where the cursor goes back to them.

    >>> seen("one\\r\\ntwo\\r\\x1b[2K\\x1b[1A\\x1b[2Kother\\r\\n")
    ['other']
    """
    lines, row, column, place = [""], 0, 0, 0
    while place < len(written):
        if escape := ESCAPE.match(written, place):
            place = escape.end()
            if escape[2] == "A":
                row -= int(escape[1] or 1)
            elif escape[2] == "K":
                lines[row] = ""
            continue
        sign = written[place]
        place += 1
        if sign == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif sign == "\r":
            column = 0
        elif sign >= " ":
            lines[row] = lines[row][:column].ljust(column) + sign + lines[row][column + 1 :]
            column += 1
    stripped = [line.rstrip() for line in lines]
    while stripped and not stripped[-1]:
        stripped.pop()
    return stripped
