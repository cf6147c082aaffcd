"""`ehrtrack server` as a user starts it: a process, a folder, a port."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ehrtrack.server import postgres
from ehrtrack.server.processes import free_port

READY_SECONDS = 330

HAS_LOGIN = importlib.util.find_spec("flask_wtf") is not None
needs_login = pytest.mark.skipif(not HAS_LOGIN, reason="mlflow's login needs Flask-WTF: pip install 'mlflow[auth]'")
needs_postgres = pytest.mark.skipif(bool(postgres.why_not()), reason=f"PostgreSQL: {postgres.why_not()}")


@dataclass
class RunningServer:
    """A server that is ready, and what it said."""

    process: subprocess.Popen[str]
    folder: Path
    port: int
    said: list[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def password(self, user: str) -> str:
        kept = json.loads((self.folder / "secrets.json").read_text())
        return str(kept["admin_password"] if user == "admin" else kept["users"][user])

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


@dataclass
class FirstLife:
    """What was seen when the folder's first server ended."""

    folder: Path
    exit_code: int
    n_processes: int
    left_running: list[psutil.Process]


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


@contextmanager
def running(folder: Path, *options: str, port: int | None = None) -> Iterator[RunningServer]:
    """Start `ehrtrack server`, on a free port unless one is given, and wait until it says that it is ready."""
    port = port or free_port()
    command = [sys.executable, "-m", "ehrtrack", "server", "--folder", str(folder), "--port", str(port), *options]
    process = subprocess.Popen(
        command,
        env=clean_environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while not (said and said[-1].startswith("  it listens on this machine only")):
            line = lines.get(timeout=READY_SECONDS)
            if line is None:
                pytest.fail("ehrtrack server ended:\n" + "\n".join(said))
            said.append(line)
        yield RunningServer(process, folder, port, said)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def passable_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's account can get to, which pytest's own (mode 700) is not when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="ehrtrack-server-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
