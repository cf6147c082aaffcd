"""`ehrtrack predict` on made-up subjects of 60 events: CPU time and wall time a subject.

    python -m benchmarks.predict_load
    python -m benchmarks.predict_load --subjects 4000 --shards 4 --rounds 5 --size medium

A small model with random weights is registered in a database of its own. In turn the command scores few subjects,
which is what it takes to start, and all of them; the difference is what subjects take. CPU time is that of the process
and its children, and depends little on what else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.serve_load import N_CODES, N_EVENTS, register_model
from ehrtrack.data.events import BIRTH, EVENT_SCHEMA

ASKED = datetime(2020, 1, 1)
N_FEW = 8


def write_subjects(folder: Path, n_subjects: int, n_shards: int, n_events: int) -> Path:
    """A MEDS dataset of subjects with a birth and so many events in twenty visits; its prediction times beside it."""
    rng = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    for number, subjects in enumerate(np.array_split(np.arange(n_subjects), n_shards)):
        n = len(subjects)
        visits = np.round(rng.uniform(1, 2000, (n, 20)) * 24)  # hours before
        hours = np.take_along_axis(visits, rng.integers(0, 20, (n, n_events)), axis=1)
        codes = np.minimum(rng.zipf(1.3, (n, n_events)), N_CODES) - 1
        events = pl.DataFrame(
            {
                "subject_id": np.repeat(subjects, n_events + 1),
                "hours": np.column_stack([np.full(n, 70 * 365.25 * 24), hours]).ravel(),
                "code": [code for row in codes for code in (BIRTH, *(f"CODE//{number}" for number in row))],
            }
        ).with_columns(time=pl.lit(ASKED) - pl.duration(hours=pl.col("hours").cast(pl.Int64)))
        missing = [pl.lit(None, kind).alias(name) for name, kind in EVENT_SCHEMA.items() if name not in events.columns]
        table = (
            events.sort("subject_id", "time", maintain_order=True)
            .with_columns(missing)
            .select(pl.col(name).cast(kind) for name, kind in EVENT_SCHEMA.items())
        )
        table.write_parquet(folder / "data" / f"{number}.parquet")
    times = pl.DataFrame({"subject_id": np.arange(n_subjects)}).with_columns(prediction_time=pl.lit(ASKED))
    times.write_parquet(folder / "times.parquet")
    return folder


def measure(reference: str, data: Path, words: Sequence[str]) -> dict[str, float]:
    """Seconds of one command."""
    out = data / "risks.parquet"
    command = [sys.executable, "-m", "ehrtrack", "predict", "--model", reference, "--data", str(data)]
    command += ["--labels", str(data / "times.parquet"), "--out", str(out), *words]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    out.unlink()
    return {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": wall}


def main() -> None:
    """Measure, and print one JSON object a line; the last has the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--events", type=int, default=N_EVENTS, help="of a subject")
    parser.add_argument("--size", default="small", help="of the encoder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("predict", nargs="*", help="options of ehrtrack predict, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="predict-load-") as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        os.chdir(folder)
        reference = register_model(folder, options.size)
        few = write_subjects(folder / "few", N_FEW, min(options.shards, N_FEW), options.events)
        many = write_subjects(folder / "many", options.subjects, options.shards, options.events)
        rounds: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            start, whole = (measure(reference, data, options.predict) for data in (few, many))
            n = options.subjects - N_FEW
            row: dict[str, float] = {f"start_{clock}_s": seconds for clock, seconds in start.items()}
            row |= {f"whole_{clock}_s": seconds for clock, seconds in whole.items()}
            row |= {f"{clock}_ms_a_subject": 1000 * (whole[clock] - start[clock]) / n for clock in whole}
            rounds.append(row | {"load_average": os.getloadavg()[0]})
            print(json.dumps({key: round(value, 3) for key, value in rounds[-1].items()}), flush=True)
        medians = {key: round(statistics.median(row[key] for row in rounds), 3) for key in rounds[0]}
        print(json.dumps({"median": medians}), flush=True)


if __name__ == "__main__":
    main()
