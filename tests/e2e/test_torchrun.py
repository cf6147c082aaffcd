"""One fine-tuning run made by two processes under torchrun: one run on the tracking server, with everything in it."""

from __future__ import annotations

import os
import subprocess
import sys

from whole_study import Study

from ehrtrack.tracking.client.queries import list_artifacts


def test_two_processes_make_one_run_of_which_rank_0_alone_tells(study: Study) -> None:
    before = {run.run_id for run in study.runs(status=None)}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ehrtrack"),
        *("finetune", "--config", str(study.folder / "finetune.toml"), "--strategy.name", "frozen"),
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment = kept | {"MLFLOW_TRACKING_URI": study.store, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=study.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finetune done in") == 1
    (run,) = [run for run in study.runs(status=None) if run.run_id not in before]
    assert (run.kind, run.status, run.params["strategy.name"]) == ("finetune", "FINISHED", "frozen")
    assert run.metrics["test/c_index"] > 0.5
    with study.at_work():
        assert "model/model.safetensors" in list_artifacts(run.run_id)
