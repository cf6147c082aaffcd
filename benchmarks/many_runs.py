"""`ehrtrack compare` over thousands of finished runs: time, CPU time and memory, at first and again.

    python -m benchmarks.many_runs make FOLDER --runs 5000       # a tracking database and the runs' files
    python -m benchmarks.many_runs compare FOLDER                # a fresh process, over sqlite
    python -m benchmarks.many_runs compare FOLDER --http 2       # through an `mlflow server` of two workers here
    python -m benchmarks.many_runs compare FOLDER --reads        # only what is read from the server

Runs are written straight into mlflow's tables, with the params, metrics, tags and files of a real one: 600 test
subjects, 20 % of them with the event, and curves over 20 intervals. A comparison in FOLDER keeps its cache there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

STUDY = "many"
SEED = "runtime.seed"
N_SUBJECTS, N_EVENTS, N_INTERVALS = 600, 120, 20
SEEDS_OF_A_CONFIGURATION = 50
RUNS_OF_A_WRITE = 250
STRATEGIES = ("frozen", "lora", "full", "scratch")
BASELINES = ("cox", "gradient-boosting", "lasso")
MORE_METRICS = (
    "loss", "uno_c", "antolini_c", "auc", "mean_auc", "brier", "calibration_slope", "calibration_intercept", "ici",
    "e50", "e90", "d_calibration_p", "observed_to_expected", "net_benefit", "log_likelihood_gain", "auprc",
    "ibs_kaplan_meier",
)  # fmt: skip
MORE_TAGS = 16
CONFIG = {
    "study": STUDY,
    "data": {"path": "data/many"},
    "cohort": {"horizon_days": 365, "index": {"rule": "first_code", "codes": ["A$"]}, "outcome": {"codes": ["B$"]}},
}
SECTIONS = {
    "finetune": ("study", "data", "cohort", "model", "objective", "strategy", "init", "train", "runtime"),
    "baseline": ("study", "data", "cohort", "baseline", "init", "runtime"),
}


class Runs:
    """Finished runs of one cohort, numbered from 0; every tenth configuration is a baseline."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._log_hazard = rng.normal(size=N_SUBJECTS)
        days = rng.exponential(np.exp(-self._log_hazard))
        self._subjects = pl.DataFrame(
            {
                "subject_id": sorted(hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(N_SUBJECTS)),
                "follow_up_days": days * 300,
                "is_event": np.argsort(np.argsort(days)) < N_EVENTS,
            }
        )

    def kind(self, number: int) -> str:
        return "baseline" if number // SEEDS_OF_A_CONFIGURATION % 10 == 0 else "finetune"

    def overrides(self, number: int) -> dict[str, Any]:
        """What makes the configuration of a run; its repeats differ by the seed alone."""
        configuration, seed = divmod(number, SEEDS_OF_A_CONFIGURATION)
        values: dict[str, Any] = {SEED: seed, "train.lr": 0.001 * (1 + configuration)}
        if self.kind(number) == "baseline":
            return {SEED: seed, "baseline.name": BASELINES[configuration % len(BASELINES)]}
        strategy = STRATEGIES[configuration % len(STRATEGIES)]
        return values | {"strategy.name": strategy} | ({"strategy.rank": 8} if strategy == "lora" else {})

    def predictions(self, number: int) -> pl.DataFrame:
        """Of the test subjects; how good they are is by chance."""
        rng = np.random.default_rng(number)
        score = self._log_hazard + rng.normal(scale=1 + 2 * rng.random(), size=N_SUBJECTS)
        risk = 1 / (1 + np.exp(-score))
        curves = (1 - risk[:, None]) ** np.linspace(0, 1, N_INTERVALS + 1)
        survival = pl.Series(curves.tolist(), dtype=pl.List(pl.Float64))
        return self._subjects.with_columns(risk=pl.Series(risk), survival=survival)

    def metrics(self, number: int) -> dict[str, float]:
        rng = np.random.default_rng(number)
        c_index = float(0.5 + 0.3 * rng.random())
        scores = {"test/c_index": c_index, "test/c_index_lower": c_index - 0.05, "test/c_index_upper": c_index + 0.05}
        scores |= {"kept/c_index": c_index + 0.02, "kept/epoch": 7.0, "test/ibs": 0.1 + 0.1 * float(rng.random())}
        scores |= {f"{split}/{name}": float(rng.random()) for split in ("kept", "test") for name in MORE_METRICS}
        scores |= {f"test/{name}{bound}": 0.5 for name in MORE_METRICS[:8] for bound in ("_lower", "_upper")}
        costs = {"cost/train_seconds": 10 + number % 90, "cost/total_seconds": 100.0, "cost/checkpoint_mb": 3.15}
        return scores | costs | {"parameters/total": 787_000.0, "parameters/trainable": 65_000.0}


def make(folder: Path, n_runs: int) -> None:
    """A tracking database with that many runs, and their files."""
    folder.mkdir(parents=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    os.chdir(folder)
    from ehrtrack.tracking.client.connection import client
    from ehrtrack.tracking.client.experiments import experiment_named

    experiment_id = experiment_named(STUDY)
    place = Path(client().get_experiment(experiment_id).artifact_location.removeprefix("file://"))
    runs = Runs()
    for start in range(0, n_runs, RUNS_OF_A_WRITE):
        _write(runs, range(start, min(start + RUNS_OF_A_WRITE, n_runs)), int(experiment_id), place.absolute())


def _write(runs: Runs, numbers: range, experiment_id: int, place: Path) -> None:
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
    from sqlalchemy import create_engine, insert

    tables = (SqlRun, SqlParam, SqlTag, SqlMetric, SqlLatestMetric)
    rows: dict[Any, list[dict[str, Any]]] = {table: [] for table in tables}
    for number in numbers:
        run_id, began = hashlib.sha256(f"run {number}".encode()).hexdigest()[:32], 1_760_000_000_000 + number * 1000
        artifacts = place / run_id / "artifacts"
        digest = _write_files(runs, number, artifacts)
        rows[SqlRun].append(
            {
                "run_uuid": run_id, "name": f"run {number}", "status": "FINISHED", "start_time": began,
                "end_time": began + 900, "artifact_uri": str(artifacts), "experiment_id": experiment_id, "user_id": "u",
                "source_name": "", "source_version": "", "entry_point_name": "", "source_type": "LOCAL",
                "lifecycle_stage": "active",
            }
        )  # fmt: skip
        rows[SqlParam] += [{"key": k, "value": v, "run_uuid": run_id} for k, v in _params(runs, number).items()]
        rows[SqlTag] += [{"key": k, "value": v, "run_uuid": run_id} for k, v in _tags(runs, number, digest).items()]
        metrics = [
            {"key": k, "value": v, "timestamp": began, "step": 0, "is_nan": False, "run_uuid": run_id}
            for k, v in runs.metrics(number).items()
        ]
        rows[SqlMetric] += metrics
        rows[SqlLatestMetric] += metrics
    with create_engine(os.environ["MLFLOW_TRACKING_URI"]).begin() as connection:
        for table, of_table in rows.items():
            connection.execute(insert(table), of_table)


def _params(runs: Runs, number: int) -> dict[str, str]:
    overrides = runs.overrides(number)
    params = _params_of(tuple((k, v) for k, v in overrides.items() if k != SEED), runs.kind(number))
    return params | {f"cfg.{SEED}": str(overrides[SEED])}


@functools.lru_cache
def _params_of(overrides: tuple[tuple[str, Any], ...], kind: str) -> dict[str, str]:
    from ehrtrack.config import override, parse_config

    config = override(parse_config(CONFIG), dict(overrides))
    return {f"cfg.{name}": str(value) for name, value in config.to_params(SECTIONS[kind]).items()}


def _tags(runs: Runs, number: int, digest: str) -> dict[str, str]:
    ours = {
        "ehrtrack.study": STUDY, "ehrtrack.kind": runs.kind(number), "fingerprint.cohort": "cohort-of-many",
        "ehrtrack.horizon_days": "365", "ehrtrack.subject_key": "1111", "ehrtrack.task": "survival",
        "mlflow.runName": f"run {number}", "mlflow.user": "u", "ehrtrack.sha256.test_predictions": digest,
        "mlflow.note.content": "### A run\n" * 60,
    }  # fmt: skip
    return ours | {f"sanity.{n}": "ok" for n in range(MORE_TAGS)} | {"sanity.verdict": "ok"}


def _write_files(runs: Runs, number: int, artifacts: Path) -> str:
    """Predictions, and the sums of all files as `sha256sum -c` reads them."""
    (artifacts / "predictions").mkdir(parents=True)
    file = artifacts / "predictions" / "test.parquet"
    runs.predictions(number).write_parquet(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    others = "".join(f"{digest}  evaluation/{n}.csv\n" for n in range(30))
    (artifacts / "sha256sums.txt").write_text(f"{others}{digest}  predictions/test.parquet\n")
    return digest


def compare_here(only_reads: bool) -> None:
    """Compare in this process; prints what it took."""
    from ehrtrack.config import parse_config

    began, cpu = time.monotonic(), time.process_time()
    config = parse_config(CONFIG | {"runtime": {"cache": "cache"}})
    if only_reads:
        from ehrtrack.pipeline.predictions_cache import read_test_predictions
        from ehrtrack.pipeline.run_rows import run_row
        from ehrtrack.tracking.client.queries import search_runs

        imported = time.monotonic()
        rows = [run_row(record) for record in search_runs(STUDY, kinds=["finetune", "baseline"])]
        listed = time.monotonic()
        predictions, left_out = read_test_predictions(rows, cache=config.runtime.cache)
        assert not left_out, left_out
        print(f"{len(predictions)} runs: listed {listed - imported:.1f} s, read {time.monotonic() - listed:.1f} s")
    else:
        from ehrtrack.recipes.compare import compare

        compare(config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = f"wall {time.monotonic() - began:.1f} s, CPU {time.process_time() - cpu:.1f} s, peak memory {peak:.0f} MB"
    print(f"\n{took}", file=sys.stderr)


@contextlib.contextmanager
def _server(folder: Path, n_workers: int) -> Iterator[tuple[str, Callable[[], float]]]:
    """An mlflow server of so many workers on the folder's runs, which also hands out their files.

    Yields
    ------
    Its address, and what tells the CPU time in seconds that it has taken.
    """
    served = folder / "served.db"
    shutil.copy(folder / "mlflow.db", served)
    with contextlib.closing(sqlite3.connect(served)) as database, database:
        database.execute(
            "UPDATE runs SET artifact_uri = 'mlflow-artifacts:' || substr(artifact_uri, ?)", [_tail(folder)]
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", address.rpartition(":")[2]),
        *("--backend-store-uri", f"sqlite:///{served}", "--workers", str(n_workers)),
        *("--artifacts-destination", str(folder / "mlruns")),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{address}/health"):
                break
            time.sleep(0.2)
        workers = psutil.Process(process.pid).children(recursive=True)
        yield address, lambda: sum(sum(worker.cpu_times()[:2]) for worker in workers)
    finally:
        process.terminate()
        process.wait()


def _tail(folder: Path) -> int:
    """Where in the address of a run's files the part begins that is below the served folder, from 1 as SQL counts."""
    return len(str(folder / "mlruns")) + 1


def compare_apart(folder: Path, *, n_workers: int, only_reads: bool) -> None:
    """Compare in two fresh processes, the second of which finds what the first has kept.

    Parameters
    ----------
    n_workers : of the server in between; with 0 the database is read
    """
    shutil.rmtree(folder / "cache", ignore_errors=True)
    no_server = contextlib.nullcontext((f"sqlite:///{folder / 'mlflow.db'}", lambda: 0.0))
    with _server(folder, n_workers) if n_workers else no_server as (address, cpu_of_server):
        for time_of in ("at first", "again"):
            before = cpu_of_server()
            print(f"== {time_of}", flush=True)
            command = [sys.executable, "-m", "benchmarks.many_runs", "here", str(folder)]
            command += ["--reads"] if only_reads else []
            environment = os.environ | {"MLFLOW_TRACKING_URI": address, "PYTHONPATH": os.getcwd()}
            with (folder / "output.txt").open("w") as output:
                subprocess.run(command, env=environment, stdout=output, check=True)
            if n_workers:
                print(f"CPU of the server {cpu_of_server() - before:.1f} s")
            text = (folder / "output.txt").read_text()
            print(f"terminal: {len(text) / 1e3:.1f} kB; {json.dumps(text[-300:])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "compare", "here"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--http", type=int, default=0, metavar="WORKERS")
    parser.add_argument("--reads", action="store_true")
    told = parser.parse_args()
    folder = told.folder.absolute()
    if told.what == "make":
        make(folder, told.runs)
    elif told.what == "compare":
        compare_apart(folder, n_workers=told.http, only_reads=told.reads)
    else:
        os.chdir(folder)
        compare_here(told.reads)


if __name__ == "__main__":
    main()
