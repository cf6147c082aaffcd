"""`mlflow run` is a thin door to the same recipes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import torch
from whole_study import Study

from ehrtrack.pipeline.model_folder import read_model_folder
from ehrtrack.tracking.client.queries import download, fetch_model, list_artifacts, search_runs
from ehrtrack.tracking.client.registry import champion

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


def mlflow_run(
    environment: dict[str, str], *words: str, project: str = str(PROJECT)
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlflow", "run", project, "--env-manager", "local", *words]
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


def test_mlflow_run_does_not_write_over_the_champion(study: Study, environment: dict[str, str], tmp_path: Path) -> None:
    with study.at_work():
        run_id = champion("simulated").run_id
    before = {run.run_id: run for run in study.runs(status=None)}
    words = ("-e", "baseline", "-P", f"config={study.folder / 'finetune.toml'}", "-P", "cohort.horizon_days=100")
    done = mlflow_run(environment, "--run-id", run_id, *words)
    assert done.returncode == -signal.SIGTERM  # mlflow would mark the run as FAILED, had it gone on
    assert f"run {run_id} of MLFLOW_RUN_ID (--run-id) cannot be joined: it is the" in done.stderr
    after = {run.run_id: run for run in study.runs(status=None)}
    assert after[run_id].tags.pop("mlflow.project.backend") == "local"  # which mlflow itself sets
    before[run_id].tags.pop("mlflow.project.backend", None)
    assert after == before
    with study.at_work():
        version, own = (fetch_model(name, tmp_path / name[:4]) for name in ("models:/simulated@champion", run_id))
        kept, logged = (read_model_folder(fetched.folder) for fetched in (version, own))  # of a LoRA run, on its base
    assert (kept.config, kept.fingerprints, kept.seen) == (logged.config, logged.fingerprints, logged.seen)
    torch.testing.assert_close(kept.weights, logged.weights, rtol=0, atol=1e-6)


@contextmanager
def git_server(folder: Path) -> Iterator[str]:
    """The address of a repository with this project, as it is in the working folder."""
    for name in ("MLproject", "python_env.yaml", "pyproject.toml"):
        shutil.copy(PROJECT / name, folder)
    shutil.copytree(PROJECT / "ehrtrack", folder / "ehrtrack", ignore=shutil.ignore_patterns("__pycache__"))
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (("init", "-q", "-b", "main"), ("add", "."), (*author, "commit", "-q", "-m", "project")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    daemon = subprocess.Popen(
        [
            *("git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}"),
            *(f"--base-path={folder.parent}", str(folder)),
        ]
    )
    try:
        yield f"git://127.0.0.1:{port}/{folder.name}"
    finally:
        daemon.terminate()
        daemon.wait()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_run_of_a_fetched_project_can_be_compared_with_one_from_here_though_its_clone_is_gone(
    study: Study, environment: dict[str, str], tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("project", "clones", "home")}
    for folder in folders.values():
        folder.mkdir()
    config = tmp_path / "study.toml"
    config.write_text(
        f'study = "cloned"\ndata = {{ path = "{study.data}", max_tokens = 64, vocabulary = {{ min_subjects = 2 }} }}\n'
        "[cohort]\nhorizon_days = 365\n"
        'index = { rule = "first_code", codes = ["INDEX$"] }\noutcome = { codes = ["OUTCOME$"] }\n'
    )
    environment |= {"TMPDIR": str(folders["clones"]), "EHRTRACK_HOME": str(folders["home"])}
    environment.pop("EHRTRACK_SUBJECT_SECRET", None)
    with git_server(folders["project"]) as project:
        words = ("--experiment-name", "cloned", "--run-name", "fetched", "-e", "baseline", "-P", f"config={config}")
        done = mlflow_run(environment, *words, project=project)
        assert done.returncode == 0, done.stdout + done.stderr
    (clone,) = [clone for clone in folders["clones"].iterdir() if (clone / "MLproject").exists()]
    assert not (clone / ".ehrtrack").exists()
    shutil.rmtree(clone)
    assert (folders["home"] / "subject.key").exists()
    with study.at_work(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("EHRTRACK_HOME", str(folders["home"]))
        assert study.run("baseline", "--config", str(config)) == 0
        assert study.run("compare", "--config", str(config)) == 0
        runs = search_runs("cloned", kinds=["baseline"])
        assert {run.name for run in runs} > {"fetched"}
        assert len(runs) == 2
        assert len({run.tags["ehrtrack.subject_key"] for run in runs}) == 1
        (compared,) = search_runs("cloned", kinds=["compare"])
        (name,) = [path for path in list_artifacts(compared.run_id, "benchmark") if path.endswith(".csv")]
        table = pl.read_csv(download(compared.run_id, name, tmp_path / "got"))
    assert table["run_id"].sort().to_list() == sorted(run.run_id for run in runs)
