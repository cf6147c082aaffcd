"""Models that are registered without having been trained, and `ehrtrack serve` as a user starts it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any

import polars as pl
import torch
from mlflow import MlflowClient
from simulated import study

from ehrtrack.config import RunConfig
from ehrtrack.data.events import MedsDataset
from ehrtrack.data.vocabulary import NEVER_TOKENS, SPECIAL_TOKENS, Vocabulary
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.models.heads import HazardHead
from ehrtrack.pipeline.model_folder import write_model_folder
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.client.registry import ModelVersion, log_and_register_model

READY_SECONDS = 330
GRID = TimeGrid((0.0, 30.0, 120.0, 365.0))
CODES = (
    *(f"DISEASE//{disease}//{code}" for disease in range(4) for code in range(5)),
    *("RISK//0", "RISK//1", "RISK//2", "INDEX", "GENDER//F", "GENDER//M", "LAB//Q1", "LAB//Q2", "LAB"),
)
VOCABULARY = Vocabulary((*SPECIAL_TOKENS, *CODES), {"LAB": (5.0,)}, exclude=NEVER_TOKENS)


def write_model(folder: Path, config: RunConfig, seed: int, n_causes: int = 1) -> Path:
    """A network whose weights are of chance, in a model folder."""
    torch.manual_seed(seed)
    encoder = Behrt(config.model, len(VOCABULARY))
    shape = (GRID.n_intervals,) if n_causes == 1 else (GRID.n_intervals, n_causes)
    head = HazardHead(encoder.width, torch.full(shape, -2.0))
    torch.nn.init.normal_(head.out.weight, std=0.3)
    folder.mkdir(parents=True)
    fingerprints = {"cohort": "c0h0r7"}
    model = EhrModel(encoder, head)
    write_model_folder(folder, config=config, vocabulary=VOCABULARY, fingerprints=fingerprints, model=model, grid=GRID)
    return folder


def register(folder: Path, name: str) -> ModelVersion:
    """A finished run with this model, and a version of it."""
    client = MlflowClient()
    run = client.create_run("0", tags={"fingerprint.cohort": "c0h0r7"})
    client.log_artifacts(run.info.run_id, str(folder), "model")
    client.log_metric(run.info.run_id, "test/c_index", 0.7)
    client.log_metric(run.info.run_id, "test/c_index_lower", 0.6)
    client.set_terminated(run.info.run_id)
    return log_and_register_model(run.info.run_id, folder, name)


def a_study(folder: Path, **sections: Any) -> RunConfig:
    """What the models say that they were trained by."""
    return study(folder / "meds", folder / "cache", **sections)


def as_request(dataset: MedsDataset, times: pl.DataFrame, **fields: Any) -> dict[str, Any]:
    """The subjects of a dataset at prediction times, as JSON."""
    subjects = []
    for (subject_id,), asked in times.group_by("subject_id", maintain_order=True):
        events = dataset.scan().filter(pl.col("subject_id") == subject_id).collect()
        told = [
            {name: value for name, value in event.items() if value is not None and name in ("code", "numeric_value")}
            | ({} if event["time"] is None else {"time": stamp(event["time"])})
            for event in events.iter_rows(named=True)
        ]
        moments = [stamp(moment) for moment in asked["prediction_time"]]
        subjects.append({"subject_id": subject_id, "events": told, "prediction_times": moments})
    return {"subjects": subjects} | fields


def stamp(moment: Any) -> str:
    """In UTC, as it is in MEDS, with its zone."""
    return str(moment.replace(tzinfo=UTC).isoformat())


@dataclass
class Serving:
    """`ehrtrack serve`, ready."""

    process: subprocess.Popen[str]
    address: str
    said: list[str] = field(default_factory=list)

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for the exit code."""
        self.process.send_signal(how)
        return self.process.wait(60)


@contextmanager
def serving(folder: Path, *words: str, **variables: str) -> Iterator[Serving]:
    """Start `ehrtrack serve` on a free port, and wait until it says that it is ready."""
    command = [sys.executable, "-m", "ehrtrack", "serve", *words, "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | variables
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    stream, lines, said = process.stdout, queue.Queue[str | None](), list[str]()

    def read() -> None:
        for line in stream:
            said.append(line.rstrip("\n"))
            lines.put(said[-1])
        lines.put(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        address = _address(lines, said)
        yield Serving(process, address, said)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        reader.join()
        stream.close()


def _address(lines: queue.Queue[str | None], said: Sequence[str]) -> str:
    while True:
        line = lines.get(timeout=READY_SECONDS)
        assert line is not None, "ehrtrack serve ended:\n" + "\n".join(said)
        if line.startswith("ready: "):
            return line.split()[1]
