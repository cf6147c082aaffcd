"""`mlflow run` is a thin door to the same recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from whole_study import Study

from ehrtrack.tracking.queries import list_artifacts

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def environment(study: Study) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    python = str(Path(sys.executable).parent)
    return kept | {
        "PATH": f"{python}{os.pathsep}{kept['PATH']}",
        "MLFLOW_TRACKING_URI": study.store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }


def mlflow_run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlflow", "run", str(PROJECT), "--env-manager", "local", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_mlflow_run_joins_the_run_it_made_and_passes_overrides_on(study: Study, environment: dict[str, str]) -> None:
    before = {run.run_id for run in study.runs(status=None)}
    config = study.folder / "finetune.toml"
    words = ("-e", "finetune", "-P", f"config={config}", "-P", "strategy.rank=2", "-P", "train.epochs=1")
    done = mlflow_run(environment, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = [run for run in study.runs(status=None) if run.run_id not in before]
    assert (run.kind, run.status) == ("finetune", "FINISHED")
    assert (run.params["strategy.rank"], run.params["train.epochs"]) == ("2", "1")
    assert run.tags["mlflow.project.entryPoint"] == "finetune"
    assert "test/c_index" in run.metrics
    with study.at_work():
        assert "adapter/adapter_model.safetensors" in list_artifacts(run.run_id)


def test_bad_input_through_mlflow_run_says_why_and_leaves_no_run_running(
    study: Study, environment: dict[str, str]
) -> None:
    config = study.folder / "finetune.toml"
    done = mlflow_run(environment, "-e", "finetune", "-P", f"config={config}", "-P", "strategy.rnak=2")
    assert done.returncode != 0
    assert "unknown config key 'strategy.rnak' (did you mean 'rank'?)" in done.stderr
    assert "ehrtrack/cli.py" not in done.stderr  # no traceback of ours
    from mlflow import MlflowClient

    with study.at_work():
        experiments = [e.experiment_id for e in MlflowClient(study.store).search_experiments()]
        running = MlflowClient(study.store).search_runs(experiments, "attributes.status = 'RUNNING'")
    assert [run.info.run_id for run in running] == []
