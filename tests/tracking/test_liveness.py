"""Whether a process still runs; and a command of ``mlflow run`` ends with it, although mlflow passes no signal on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil

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
