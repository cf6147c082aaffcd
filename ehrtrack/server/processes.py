"""Starting and ending the processes of a server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from ehrtrack.errors import TrackingError
from ehrtrack.server.logins import write_private
from ehrtrack.tracking.recovery.liveness import is_process_running

END_SECONDS = 10
NOTED = "processes.json"
"""What was started in a folder: process ids, and when each began, since ids are used again."""
_SAME_BEGIN_SECONDS = 60  # the system's clock may have been set since; an id is not used again as soon as that
MLFLOW_SERVER = "ehrtrack.server.guard"


def start(
    command: Sequence[str],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C reaches it only through us, in the right order.

    It is recorded in the folder, so that `end_orphans` finds it if we are killed before we could end it.
    """
    log.touch(mode=0o600)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
    _note(folder, [*_noted(folder), process.pid])
    return process


def end_orphans(folder: Path, tell: Callable[[str], object]) -> None:
    """End the processes that a killed server of this folder left behind, the last started first.

    The caller must hold the folder's lock: otherwise they could be the processes of a running server.
    """
    for pid in reversed(_noted(folder)):
        with contextlib.suppress(psutil.NoSuchProcess):
            _end_orphan(psutil.Process(pid), tell)
    _note(folder, [])


def _end_orphan(orphan: psutil.Process, tell: Callable[[str], object]) -> None:
    tell(f"ending {orphan.name()} (process {orphan.pid}), left by a server of this folder that was killed")
    family = [orphan, *orphan.children(recursive=True)]
    orphan.send_signal(signal.SIGINT)  # both mlflow's and PostgreSQL's word for: now, and in good order
    _, left = psutil.wait_procs(family, timeout=END_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=END_SECONDS)


def _note(folder: Path, pids: Sequence[int]) -> None:
    begun = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            begun[pid] = psutil.Process(pid).create_time()
    write_private(folder / NOTED, json.dumps(begun) + "\n")


def _noted(folder: Path) -> list[int]:
    """The recorded processes that still run, in the order of their start."""
    file = folder / NOTED
    begun = json.loads(file.read_text()) if file.is_file() else {}
    return [
        int(pid)
        for pid, when in begun.items()
        if is_process_running(int(pid), float(when), tolerance_seconds=_SAME_BEGIN_SECONDS)
    ]


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM, *, is_group: bool = True) -> None:
    """Ask a process and its group to end, and kill the group if it still runs after 10 s."""
    if process.poll() is None:
        # mlflow's first process ends at once; its workers take a moment to answer what they were asked.
        workers = psutil.Process(process.pid).children(recursive=True) if is_group else []
        _send(process, how, is_group=is_group)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        psutil.wait_procs(workers, timeout=END_SECONDS)
    _send(process, signal.SIGKILL, is_group=True)
    process.wait()


def wait_until(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], *, seconds: float, log: Path) -> None:
    """Wait until a process is ready.

    Raises
    ------
    TrackingError
        If it ends before, or is not ready in time; the message has the end of its log.
    """
    deadline = time.monotonic() + seconds
    while not is_ready():
        if process.poll() is not None:
            raise TrackingError(f"{_name(process)} ended with exit code {process.returncode}: {tail(log)}")
        if time.monotonic() > deadline:
            raise TrackingError(f"{_name(process)} was not ready after {seconds:.0f} s: {tail(log)}")
        time.sleep(0.1)


def tail(log: Path, n_lines: int = 12) -> str:
    """The last lines of a log, for a message."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([f"the end of {log}:", *lines[-n_lines:]])


def free_port() -> int:
    """A port on the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on this port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # as servers do, so that connections that are still closing do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _send(process: subprocess.Popen[bytes], how: signal.Signals, *, is_group: bool) -> None:
    try:
        if is_group:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
    except ProcessLookupError:
        pass  # it ended by itself


def _name(process: subprocess.Popen[bytes]) -> str:
    words = process.args if isinstance(process.args, list) else [process.args]
    return "mlflow server" if MLFLOW_SERVER in words else Path(str(words[0])).name
