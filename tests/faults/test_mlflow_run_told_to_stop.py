"""SIGTERM to ``mlflow run``, as a pod gets it: the training that it started ends as one that was told itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from study import write_study

from ehrtrack.tracking import names, queries
from ehrtrack.tracking.server import client
from ehrtrack.tracking.stale import stale_runs

PROJECT = Path(__file__).parents[2]
END_SECONDS = 120


def test_the_training_below_finishes_its_step_keeps_a_snapshot_and_can_be_resumed(
    http_store: str, tmp_path: Path
) -> None:
    config = write_study(tmp_path, "told", epochs=1000, snapshot_minutes=10)
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
        text=True,
    )
    assert above.stdout is not None
    with above, above.stdout as lines:
        said = ""
        while "epoch   2/1000" not in said:
            said = lines.readline()
            assert said, "mlflow run ended before its training began"
        below = psutil.Process(above.pid).children(recursive=True)
        above.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(below, timeout=END_SECONDS)
        for process in alive:
            process.kill()
        assert not alive
        assert "told to stop; epoch" in lines.read()
    (run,) = queries.search_runs("told", status=None)
    assert (run.status, run.tags[names.RESUMABLE]) == ("KILLED", "true")
    kept = {path.split("/")[-1] for path in queries.list_artifacts(run.run_id) if path.startswith("resume/")}
    assert {"facts.json", "state.safetensors"} < kept
    assert all(name.startswith("epoch-") for name in kept - {"facts.json", "state.safetensors"})
    assert run.run_id in {stale.record.run_id for stale in stale_runs(["finetune"])}
    client().delete_run(run.run_id)  # nobody is to go on with it
