"""Whether a process still runs; and a command of ``mlflow run`` ends with it, although mlflow passes no signal on."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import psutil
import pytest

from ehrtrack.tracking.recovery.liveness import is_process_running

CHILD = """
import os, signal, sys, threading
from ehrtrack.tracking.recovery.liveness import watch_mlflow_run
def told(*_):
    os.write(1, b"told to stop\\n")  # print may be what the signal came into
    sys.exit(143)
signal.signal(signal.SIGTERM, told)
watch_mlflow_run()
print("training", flush=True)
threading.Event().wait(120)
"""

# Its first thread ends alone, as the first of many may while a process is being killed; the other goes on to read.
HALF_ENDED = """
import ctypes, os, platform, threading
def outlives():
    while state() != "Z":
        pass
    os.write(1, b"alone\\n")
    os.read(0, 1)
    os._exit(0)
def state():
    with open(f"/proc/{os.getpid()}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]
threading.Thread(target=outlives).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # exit, of this thread
"""

# As mlflow does it: a shell that runs the command. What follows keeps the shell from becoming the command itself.
ABOVE = "import subprocess, sys; subprocess.run(['bash', '-c', sys.executable + ' -c \"$CHILD\"; true'])"


def test_sigterm_to_mlflow_run_alone_reaches_the_training_behind_a_shell() -> None:
    above = subprocess.Popen(
        [sys.executable, "-c", ABOVE, "mlflow", "run"],
        env=os.environ | {"MLFLOW_RUN_ID": "1" * 32, "CHILD": CHILD},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert above.stdout is not None
    with above, above.stdout as lines:
        assert lines.readline() == "training\n"
        above.send_signal(signal.SIGTERM)
        assert lines.readline() == "told to stop\n"


def test_a_process_that_ended_does_not_run_whoever_has_its_number_by_now() -> None:
    ours = psutil.Process()
    began = ours.create_time()
    assert is_process_running(ours.pid, began)
    assert not is_process_running(ours.pid, began - 59)  # the number is used again
    assert is_process_running(ours.pid, began - 59, tolerance_seconds=60)  # the clock was set meanwhile
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = psutil.Process(child.pid).create_time()
    assert is_process_running(child.pid, began)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody asked for its exit code
    assert psutil.pid_exists(child.pid)
    assert not is_process_running(child.pid, began)
    child.wait()
    assert not is_process_running(child.pid, began)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64") or sys.platform != "linux", reason="needs Linux")
def test_a_process_that_lost_its_first_thread_alone_still_runs() -> None:
    """Its locks are its own until the last thread is gone, and who takes its work over would find them held."""
    child = subprocess.Popen([sys.executable, "-c", HALF_ENDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdout as lines:
        assert lines.readline() == b"alone\n"
        process = psutil.Process(child.pid)
        assert process.status() == psutil.STATUS_ZOMBIE
        assert is_process_running(child.pid, process.create_time())
        child.stdin.close()
        assert lines.read() == b""  # all of it has ended
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_process_running(child.pid, process.create_time())
    child.wait()
