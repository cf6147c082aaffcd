"""`ehrtrack serve` under load: latency, requests a second, CPU time a request and memory, at 1, 8 and 64 clients.

    python -m benchmarks.serve_load
    python -m benchmarks.serve_load --clients 64 --seconds 30 --size medium

A small model with random weights is registered in a database of its own and served; each client sends one request
after the other, each of one subject with 60 events and one prediction time. Clients are one process, which shares the
cores with the server: the CPU time that the server took a request is what depends least on what else runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil

N_CODES, N_BODIES, N_EVENTS = 1_000, 256, 60
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
ASKED = datetime(2020, 1, 1, tzinfo=UTC)


def make_body(rng: np.random.Generator, n_events: int, n_subjects: int = 1) -> bytes:
    """Subjects of made-up events in twenty visits."""
    subjects = []
    for subject_id in range(n_subjects):
        days = rng.uniform(1, 2000, 20)
        events = [
            {
                "time": (ASKED - timedelta(days=float(days[number % 20]))).isoformat(),
                "code": f"CODE//{min(int(rng.zipf(1.3)), N_CODES) - 1}",
            }
            for number in range(n_events)
        ]
        subjects.append(
            {
                "subject_id": subject_id,
                "birth": "1950-06-01",
                "events": events,
                "prediction_times": [ASKED.isoformat()],
            }
        )
    return json.dumps({"subjects": subjects}).encode()


def register_model(folder: Path, size: str) -> str:
    """A model with random weights as version 1 of a registered one; its reference."""
    import torch
    from mlflow import MlflowClient

    from ehrtrack.config import parse_config
    from ehrtrack.data.vocabulary import NEVER_TOKENS, SPECIAL_TOKENS, Vocabulary
    from ehrtrack.models.behrt import Behrt, EhrModel
    from ehrtrack.models.heads import HazardHead
    from ehrtrack.pipeline.model_folder import write_model_folder
    from ehrtrack.survival.time_grid import TimeGrid
    from ehrtrack.tracking.client.registry import log_and_register_model

    config = parse_config(
        {
            "study": "load",
            "data": {"path": "none"},
            "cohort": {
                "index": {"rule": "date", "date": "2020-01-01"},
                "outcome": {"codes": ["OUTCOME"]},
                "horizon_days": 365,
            },
            "model": {"size": size},
            "runtime": {"cache": str(folder / "cache")},
        }
    )
    codes = tuple(f"CODE//{number}" for number in range(N_CODES))
    vocabulary = Vocabulary((*SPECIAL_TOKENS, *codes), {}, exclude=NEVER_TOKENS)
    torch.manual_seed(0)
    encoder, grid = Behrt(config.model, len(vocabulary)), TimeGrid(tuple(np.linspace(0, 365, 13).tolist()))
    model = EhrModel(encoder, HazardHead(encoder.width, torch.full((grid.n_intervals,), -3.0)))
    write_model_folder(folder / "model", config=config, vocabulary=vocabulary, fingerprints={}, model=model, grid=grid)
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_artifacts(run_id, str(folder / "model"), "model")
    client.set_terminated(run_id)
    return log_and_register_model(run_id, folder / "model", "load").uri


def start_server(reference: str, words: Sequence[str]) -> tuple[subprocess.Popen[str], int]:
    """Start it on a free port, and return with that when it is ready."""
    command = [sys.executable, "-m", "ehrtrack", "serve", reference, "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready: "):
            return process, int(line.split()[1].rpartition(":")[2])
    raise SystemExit(f"the server ended with {process.wait()}")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> int:
    """Send a request on an open connection; the status of its answer, which is read whole."""
    writer.write(HEAD % len(body) + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    return int(answer.split(b" ", 2)[1])


async def load(port: int, bodies: Sequence[bytes], n_clients: int, seconds: float) -> tuple[list[float], list[int]]:
    """Times of all requests of some clients, in ms, and their statuses."""
    times_ms: list[float] = []
    statuses: list[int] = []
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while time.perf_counter() < until:
            began = time.perf_counter()
            statuses.append(await ask(reader, writer, bodies[turn % len(bodies)]))
            times_ms.append((time.perf_counter() - began) * 1000)
            turn += n_clients
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client(number) for number in range(n_clients)))
    return times_ms, statuses


def measure(
    server: psutil.Process, port: int, bodies: Sequence[bytes], n_clients: int, seconds: float
) -> dict[str, Any]:
    """One row of the table."""
    asyncio.run(load(port, bodies, n_clients, min(2.0, seconds)))  # warm
    before, began, own = server.cpu_times(), time.perf_counter(), time.process_time()
    times_ms, statuses = asyncio.run(load(port, bodies, n_clients, seconds))
    took, after = time.perf_counter() - began, server.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return {
        "clients": n_clients,
        "requests": len(times_ms),
        "not_200": sum(status != 200 for status in statuses),
        "p50_ms": round(float(np.percentile(times_ms, 50)), 1),
        "p95_ms": round(float(np.percentile(times_ms, 95)), 1),
        "requests_a_second": round(len(times_ms) / took, 1),
        "server_cpu_ms_a_request": round(1000 * cpu / len(times_ms), 2),
        "client_cpu_ms_a_request": round(1000 * (time.process_time() - own) / len(times_ms), 2),
        "rss_mb": round(server.memory_info().rss / 1e6),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measure, and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--size", default="small", help="of the encoder")
    parser.add_argument("--subjects", type=int, default=1, help="of a request")
    parser.add_argument("--events", type=int, default=N_EVENTS, help="of a subject")
    parser.add_argument("serve", nargs="*", help="options of ehrtrack serve, after --")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    bodies = [make_body(rng, options.events, options.subjects) for _ in range(N_BODIES)]
    with tempfile.TemporaryDirectory(prefix="serve-load-") as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        os.chdir(folder)
        process, port = start_server(register_model(folder, options.size), options.serve)
        try:
            server = psutil.Process(process.pid)
            print(json.dumps({"idle_rss_mb": round(server.memory_info().rss / 1e6)}), flush=True)
            for n_clients in options.clients:
                print(json.dumps(measure(server, port, bodies, n_clients, options.seconds)), flush=True)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


if __name__ == "__main__":
    main()
