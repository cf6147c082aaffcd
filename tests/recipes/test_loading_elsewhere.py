"""A registered model where nothing but the server's address is known: no EHRTrack is installed there, and no base."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from simulated import Population, study, write_dataset

from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.recipes.promote import promote
from ehrtrack.tracking.client.queries import download
from ehrtrack.tracking.client.registry import find_version

pytestmark = [
    pytest.mark.usefixtures("undrawn_figures"),
    pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning"),  # of mlflow's own classes
]

ELSEWHERE = """
import importlib.util, json, sys
assert importlib.util.find_spec("ehrtrack") is None, "EHRTrack is installed here"
import mlflow, pandas as pd
for name in ("elsewhere", "cox"):
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    example = model.predict(model.input_example)
    assert len(example) == 1 and 0 < float(example["risk"][0]) < 1, example
    scored = model.predict(pd.read_parquet("events"))
    scored["risk"].astype(float).to_frame().assign(subject_id=scored["subject_id"]).to_parquet(f"risks of {name}")
import ehrtrack
assert ".whl" in ehrtrack.__file__, ehrtrack.__file__
"""


def test_champions_predict_from_the_servers_address_alone(http_store: str, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", Population(n_subjects=200))
    runtime = {"cache": str(tmp_path / "cache"), "device": "cpu", "log_raw_subjects": True}
    train = {"epochs": 1, "batch_tokens": 512, "lr": 1e-2}
    settings = {"runtime": runtime, "train": train, "study": "elsewhere"}
    base = pretrain(study(tmp_path / "data", tmp_path / "cache", objective={"name": "mlm"}, **settings)).run_id
    lora = {"name": "lora", "rank": 2}
    run = finetune(study(tmp_path / "data", tmp_path / "cache", strategy=lora, init={"run": base}, **settings))
    promote(run.run_id)
    cox = baseline(study(tmp_path / "data", tmp_path / "cache", baseline={"name": "cox"}, **settings))
    promote(cox.run_id, name="cox")
    version = find_version("models:/elsewhere@champion")
    stored = download(run.run_id, version.artifact_path, tmp_path / "stored")
    requirements = (stored / "requirements.txt").read_text().splitlines()
    (wheel,) = (stored / "code").iterdir()
    assert f"code/{wheel.name}" in requirements
    assert any(line.startswith("torch==") for line in requirements)
    assert not any("+" in line for line in requirements)
    card = (stored / "model_card.md").read_text()
    for title in ("Intended use", "Cohort", "Calibration", "Subgroups", "Negative controls", "Limits", "Lineage"):
        assert f"## {title}" in card
    assert "C-index: 0." in card
    assert f"run {run.run_id} (" in card

    logged = pl.read_parquet(download(run.run_id, "predictions/test.parquet", tmp_path / "logged"))
    events = dataset.scan().collect().join(logged.select("subject_id", "prediction_time"), on="subject_id")
    events.with_columns(pl.col("time", "prediction_time").cast(pl.Datetime("us"))).write_parquet(tmp_path / "events")
    # -S leaves out what .pth files say, among them where an editable install lies; -P the folder that this runs in.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": http_store}
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-P",
            "-c",
            ELSEWHERE,
        ],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": os.pathsep.join(_without_ehrtrack(packages)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, run_id in (("elsewhere", run.run_id), ("cox", cox.run_id)):
        told = pl.read_parquet(download(run_id, "predictions/test.parquet", tmp_path / f"logged by {name}"))
        both = told.join(pl.read_parquet(tmp_path / f"risks of {name}"), on="subject_id", suffix="_elsewhere")
        assert both.height == logged.height > 20
        assert (both["risk"] - both["risk_elsewhere"]).abs().max() < 1e-6
    (fetched,) = tmp_path.glob(".local/share/ehrtrack/bases/*.safetensors")
    assert fetched.stem == json.loads((stored / "artifacts" / "model" / "base.json").read_text())["sha256"]
    assert not (stored / "artifacts" / "model" / "model.safetensors").exists()


def _without_ehrtrack(packages: list[str]) -> list[str]:
    """The folders of installed packages that hold no copy of this one."""
    return [path for path in packages if not (Path(path) / "ehrtrack").is_dir()]
