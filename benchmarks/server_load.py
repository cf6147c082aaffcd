"""Six runs at the same time on `ehrtrack server`: failed calls, the time of a batch, the server's memory.

    python -m benchmarks.server_load --store sqlite
    python -m benchmarks.server_load --store postgresql --wrong-logins 1000

Each run is a process that tracks what a training does, through its journal and sender: an epoch of metrics every
--between seconds, a snapshot of 2 MB every tenth of them, a table, a figure's bytes, a heartbeat. With --between 0 it
writes as fast as its calls are answered. Calls are timed where mlflow's client makes them, and are not tried again.
With --wrong-logins that many are tried at the same time, from 8 connections, while the runs write.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

N_METRICS, SNAPSHOT_MB, EPOCHS_A_SNAPSHOT = 30, 2, 10
WRONG_CONNECTIONS = 8


def write_run(number: int, n_epochs: int, between: float, send: Callable[[dict[str, Any]], None]) -> None:
    """One run, as a pod's process writes it; sends its times."""
    import mlflow

    from ehrtrack.tracking.run import tracked_run

    batch_ms: list[float] = []
    file_ms: list[float] = []
    failed: list[str] = []

    def timed(call: Callable[..., Any], times_ms: list[float]) -> Callable[..., Any]:
        def timed_call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            except Exception as error:
                failed.append(str(error)[:200])
                raise
            finally:
                times_ms.append((time.perf_counter() - began) * 1000)

        return timed_call

    client = mlflow.MlflowClient
    client.log_batch = timed(client.log_batch, batch_ms)  # type: ignore[method-assign]
    client.log_artifact = timed(client.log_artifact, file_ms)  # type: ignore[method-assign]
    pauses = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        experiment, journal = f"load-{number}", Path(folder) / "journal"
        with tracked_run(experiment=experiment, name=f"run {number}", kind="pretrain", journal=journal) as run:
            for epoch in range(1, n_epochs + 1):
                time.sleep(between * pauses.uniform(0.5, 1.5))
                run.log_metrics({f"val/metric_{i}": epoch * 0.5 for i in range(N_METRICS)}, step=epoch)
                if epoch % EPOCHS_A_SNAPSHOT == 0:
                    snapshot = Path(folder) / f"step-{epoch:06d}"
                    snapshot.mkdir()
                    (snapshot / "state.safetensors").write_bytes(os.urandom(SNAPSHOT_MB * 1_000_000))
                    run.log_snapshot(snapshot)
            run.log_text("a figure's bytes" * 5_000, "plots/loss.txt")
        reader = mlflow.MlflowClient()
        n_rows = len(reader.get_metric_history(run.server_run_id, "val/metric_7"))
        n_files = len(reader.list_artifacts(run.server_run_id))
    send({"batch_ms": batch_ms, "file_ms": file_ms, "failed": failed, "n_rows": n_rows, "n_files": n_files})


def memory_mb(pid: int) -> tuple[float, float]:
    """Of a process and all below it: resident size summed, and with shared pages counted once (PSS)."""
    resident = shared_once = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            memory = process.memory_full_info()
        except psutil.NoSuchProcess:
            continue
        resident, shared_once = resident + memory.rss / 1e6, shared_once + memory.pss / 1e6
    return resident, shared_once


def processor_seconds(pid: int) -> float:
    """CPU time of a process and all below it."""
    times = [p.cpu_times() for p in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]]
    return float(sum(t.user + t.system for t in times))


def start_server(folder: Path, store: str, port: int, *, has_auth: bool) -> subprocess.Popen[str]:
    """Start it, and return when it is ready."""
    command = [sys.executable, "-m", "ehrtrack", "server", "--folder", str(folder), "--port", str(port)]
    command += ["--store", store, "--auth" if has_auth else "--no-auth"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("  it listens"):
            return process
    raise SystemExit(f"the server ended with {process.wait()}")


def try_wrong_logins(address: str, n: int) -> dict[str, object]:
    """Answers and times of n wrong passwords."""
    import requests

    def wrong(i: int) -> tuple[int, float]:
        began = time.perf_counter()
        answer = requests.get(
            f"{address}/api/2.0/mlflow/users/current", auth=("pod", f"wrong-password-{i}"), timeout=300
        )
        return answer.status_code, time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(WRONG_CONNECTIONS) as pool:
        answers = list(pool.map(wrong, range(n)))
    codes = {code: sum(c == code for c, _ in answers) for code in {c for c, _ in answers}}
    return {"answers": codes, "seconds": round(time.perf_counter() - began, 1), "slowest_s": max(t for _, t in answers)}


def percentile(values: list[float], percent: float) -> float:
    """Of sorted values, the one that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--port", type=int, default=5755)
    parser.add_argument("--auth", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--wrong-logins", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=45)
    parser.add_argument("--between", type=float, default=2.0, help="mean seconds between two epochs of a run")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="server-load-"))
    folder.chmod(0o711)
    address = f"http://127.0.0.1:{options.port}"
    server = start_server(folder / "data", options.store, options.port, has_auth=options.auth)
    idle_mb = memory_mb(server.pid)
    os.environ |= {"MLFLOW_TRACKING_URI": address, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    if options.auth:
        lines = (folder / "data" / "pod.env").read_text().splitlines()
        os.environ |= dict(line.split("=", 1) for line in lines)
    for module in ("mlflow", "ehrtrack.tracking.run"):
        importlib.import_module(module)  # once: all runs are forked from here

    fork = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[dict[str, Any]] = fork.Queue()
    arguments = (options.epochs, options.between, answers.put)
    runs = [fork.Process(target=write_run, args=(number, *arguments)) for number in range(options.runs)]
    cpu = processor_seconds(server.pid)
    for run in runs:
        run.start()
    peak_mb, wrong, results = idle_mb, {}, []
    attack = threading.Thread(target=lambda: wrong.update(try_wrong_logins(address, options.wrong_logins)))
    try:
        if options.wrong_logins:
            attack.start()
        while any(run.is_alive() for run in runs) or attack.is_alive() or not answers.empty():
            peak_mb = max(peak_mb, memory_mb(server.pid))
            with contextlib.suppress(queue.Empty):
                results.append(answers.get(timeout=0.5))
        cpu = processor_seconds(server.pid) - cpu
    finally:
        server.send_signal(signal.SIGTERM)
        exit_code = server.wait(60)
    batch_ms = [ms for result in results for ms in result["batch_ms"]]
    print(
        json.dumps(
            {
                "store": options.store,
                "runs_that_ended_well": f"{len(results)} of {options.runs}",
                "n_batches": len(batch_ms),
                "server_cpu_seconds": round(cpu, 1),
                "failed_calls": [text for result in results for text in result["failed"]],
                "batch_ms_p50": round(percentile(batch_ms, 50)),
                "batch_ms_p99": round(percentile(batch_ms, 99)),
                "batch_ms_max": round(max(batch_ms)),
                "slowest_batches_ms": [round(ms) for ms in sorted(batch_ms)[-8:]],
                "file_ms_max": round(max(ms for result in results for ms in result["file_ms"])),
                "rows_kept": [result["n_rows"] for result in results],
                "files_kept": [result["n_files"] for result in results],
                "idle_mb_rss_pss": [round(mb) for mb in idle_mb],
                "peak_mb_rss_pss": [round(mb) for mb in peak_mb],
                "wrong_logins": wrong,
                "server_exit_code": exit_code,
                "load_average": os.getloadavg(),
                "folder": str(folder),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
