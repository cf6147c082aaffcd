"""Share of an epoch's wall time that training spends in tracking calls, to a real MLflow server over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks._row import Measured, Row
from benchmarks._timing import Budget

ORDER = 7
N_EVENTS = 100_000
N_EPOCHS = {True: 2, False: 4}  # by whether it is quick
SERVER_START_SECONDS = 120

ROWS = (
    Row(
        "tracking",
        "time in tracking calls, share of the epochs' wall time, server on loopback",
        "%",
        3,
        1,
        is_lower_better=True,
    ),
)


def measure(name: str, budget: Budget) -> Measured:
    """The first epoch is left out: the window runs from the end of its report to the end of the last one's."""
    from benchmarks._events import write_events

    n_epochs = N_EPOCHS[budget.least_rounds == 1]
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        raw = write_events(folder / "raw", N_EVENTS)
        with mlflow_server(folder) as address:
            os.environ["MLFLOW_TRACKING_URI"] = address
            calls = _timed_study(raw, folder, n_epochs + 1)
    reports = [end for _, end, call in calls if call == "log_metrics:epoch"]
    window = [(start, end) for start, end, _ in calls if start >= reports[0] and end <= reports[-1]]
    seconds, whole = sum(end - start for start, end in window), reports[-1] - reports[0]
    return Measured(
        100 * seconds / whole,
        {
            "epoch_seconds": whole / (len(reports) - 1),
            "tracking_seconds_an_epoch": seconds / (len(reports) - 1),
            "calls_an_epoch": len(window) / (len(reports) - 1),
            "epochs": float(len(reports) - 1),
        },
    )


def _timed_study(raw: Path, folder: Path, n_epochs: int) -> list[tuple[float, float, str]]:
    """Start, end and name of each tracking call of a fine-tuning run of a small model."""
    from ehrtrack.config import parse_config
    from ehrtrack.recipes.finetune import finetune
    from ehrtrack.tracking.logger import TrackedRun

    calls: list[tuple[float, float, str]] = []
    for method in ("log_metrics", "log_params", "set_tags", "log_text", "log_json", "log_table", "log_folder"):
        setattr(TrackedRun, method, _timed(getattr(TrackedRun, method), calls))
    finetune(
        parse_config(
            {
                "study": "benchmark",
                "data": {"path": str(raw)},
                "cohort": {
                    "horizon_days": 365,
                    "index": {"rule": "first_code", "codes": ["INDEX$"]},
                    "outcome": {"codes": ["OUTCOME$"]},
                },
                "objective": {"name": "survival"},
                "strategy": {"name": "scratch"},
                "model": {"size": "small"},
                "train": {"epochs": n_epochs, "patience": n_epochs},
                "runtime": {"cache": str(folder / "cache"), "device": "cpu", "threads": 2},
            }
        )
    )
    return calls


def _timed(method: Callable[..., Any], calls: list[tuple[float, float, str]]) -> Callable[..., Any]:
    def timed(self: object, *values: Any, **named: Any) -> Any:
        started = time.perf_counter()
        answer = method(self, *values, **named)
        is_epoch = method.__name__ == "log_metrics" and any(key.startswith("train/") for key in values[0])
        calls.append((started, time.perf_counter(), method.__name__ + (":epoch" if is_epoch else "")))
        return answer

    return timed


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of a real ``mlflow server`` with one worker, in processes of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"),
                *("--artifacts-destination", str(folder / "artifacts")),
            ],
            cwd=folder,
            env=kept | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(address, process, folder / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"mlflow server did not start:\n{log.read_text()[-3000:]}")
