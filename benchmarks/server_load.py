"""Six runs at the same time on `ehrtrack server`: failed calls, the time of a batch, the server's memory.

    python -m benchmarks.server_load --store sqlite
    python -m benchmarks.server_load --store postgresql --wrong-logins 1000

Each run is a process of its own with mlflow's client: 50 calls of log_batch with 100 metrics, and 3 files of 1 MB.
With --wrong-logins that many are tried at the same time, from 8 connections, while the runs write.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

N_BATCHES, N_METRICS, N_FILES, FILE_MB = 50, 100, 3, 1
WRONG_CONNECTIONS = 8


def write_run(start_at: float) -> None:
    """One run, as a pod's process writes it; prints its times as JSON."""
    import mlflow
    from mlflow.entities import Metric

    client = mlflow.MlflowClient()
    experiment = client.create_experiment(f"load-{os.getpid()}")
    run_id = client.create_run(experiment).info.run_id
    batch_ms: list[float] = []
    file_ms: list[float] = []
    failed: list[str] = []

    def timed(times_ms: list[float], call: object, *arguments: object, **named: object) -> None:
        began = time.perf_counter()
        try:
            call(*arguments, **named)  # type: ignore[operator]
        except (mlflow.MlflowException, OSError) as error:
            failed.append(str(error)[:200])
        times_ms.append((time.perf_counter() - began) * 1000)

    time.sleep(max(0.0, start_at - time.time()))  # imports take their time; the writing is to be simultaneous
    with tempfile.TemporaryDirectory() as folder:
        for step in range(N_BATCHES):
            rows = [Metric(f"metric_{i}", step * 0.5, int(time.time() * 1000), step) for i in range(N_METRICS)]
            timed(batch_ms, client.log_batch, run_id, metrics=rows)
            if step % (N_BATCHES // N_FILES) == N_BATCHES // N_FILES - 1:
                file = Path(folder) / f"weights_{step}.bin"
                file.write_bytes(os.urandom(FILE_MB * 1_000_000))
                timed(file_ms, client.log_artifact, run_id, str(file))
    n_rows = len(client.get_metric_history(run_id, "metric_7"))
    n_files = len(client.list_artifacts(run_id))
    print(
        json.dumps({"batch_ms": batch_ms, "file_ms": file_ms, "failed": failed, "n_rows": n_rows, "n_files": n_files})
    )


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
    parser.add_argument("--import-seconds", type=float, default=30, help="what the processes need to be ready")
    parser.add_argument("--write-at", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_at:
        write_run(options.write_at)
        return
    folder = Path(tempfile.mkdtemp(prefix="server-load-"))
    folder.chmod(0o711)
    address = f"http://127.0.0.1:{options.port}"
    server = start_server(folder / "data", options.store, options.port, has_auth=options.auth)
    idle_mb = memory_mb(server.pid)
    environment = os.environ | {"MLFLOW_TRACKING_URI": address}
    if options.auth:
        lines = (folder / "data" / "pod.env").read_text().splitlines()
        environment |= dict(line.split("=", 1) for line in lines)
    start_at = time.time() + options.import_seconds
    command = [sys.executable, "-m", "benchmarks.server_load", "--write-at", str(start_at)]
    runs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(options.runs)]
    peak_mb, wrong = idle_mb, {}
    attack = threading.Thread(target=lambda: wrong.update(try_wrong_logins(address, options.wrong_logins)))
    try:
        if options.wrong_logins:
            time.sleep(max(0.0, start_at - time.time()))
            attack.start()
        while any(run.poll() is None for run in runs) or attack.is_alive():
            peak_mb = max(peak_mb, memory_mb(server.pid))
            time.sleep(0.5)
        results = [json.loads(run.communicate()[0]) for run in runs if run.returncode == 0]
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
                "failed_calls": [text for result in results for text in result["failed"]],
                "batch_ms_p50": round(percentile(batch_ms, 50)),
                "batch_ms_p99": round(percentile(batch_ms, 99)),
                "batch_ms_max": round(max(batch_ms)),
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
