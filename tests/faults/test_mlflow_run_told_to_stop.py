"""SIGTERM to ``mlflow run``, as a pod gets it, and Ctrl-C: the training below ends as one that was told itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from study import write_study

from ehrtrack.tracking import names
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.recovery.orphans import orphaned_runs

PROJECT = Path(__file__).parents[2]
END_SECONDS = 120


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Tests that run in the background inherit that it is ignored, and would hand that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_training_below_finishes_its_step_keeps_a_snapshot_and_can_be_resumed(
    http_store: str, tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal sends Ctrl-C to both, and then ``mlflow run`` sends SIGTERM to the training."""
    study = f"told-{number.name}"
    config = write_study(tmp_path, study, epochs=1000, snapshot_minutes=10)
    above = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "run", str(PROJECT), "--env-manager", "local", "-e", "finetune"),
            *("-P", f"config={config}", "-P", f"runtime.cache={tmp_path / 'cache'}"),
        ],
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    assert above.stdout is not None
    with above, above.stdout as lines:
        said = ""
        while "epoch   2/1000" not in said:
            said = lines.readline()
            assert said, "mlflow run ended before its training began"
        below = psutil.Process(above.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(above.pid, number)
        else:
            above.send_signal(number)
        _, alive = psutil.wait_procs(below, timeout=END_SECONDS)
        for process in alive:
            process.kill()
        assert not alive
        told = lines.read()
    (run,) = queries.search_runs(study, status=None)
    assert "told to stop; epoch" in told
    assert f"to continue: ehrtrack resume {run.run_id}" in told
    assert run.tags[names.RESUMABLE] == "true"
    assert run.status == ("KILLED" if number == signal.SIGTERM else "FAILED")  # by `mlflow run`, which lives to say so
    kept = {path.split("/")[-1] for path in queries.list_artifacts(run.run_id) if path.startswith("resume/")}
    assert {"facts.json", "state.safetensors"} < kept
    assert all(name.startswith("epoch-") for name in kept - {"facts.json", "state.safetensors"})
    assert run.run_id in {stale.record.run_id for stale in orphaned_runs(["finetune"])}
    client().delete_run(run.run_id)  # nobody is to go on with it
