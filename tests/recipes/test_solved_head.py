"""A frozen run whose head is solved for is an ordinary run, and its model predicts elsewhere what it predicted here."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from simulated import Population, study, write_dataset

from ehrtrack.data.events import open_dataset
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.strategies.settings import FrozenConfig
from ehrtrack.tracking.client.queries import RunRecord, download, get_run
from ehrtrack.tracking.names import TEST_PREDICTIONS, VALIDATION_PREDICTIONS

pytestmark = pytest.mark.usefixtures("undrawn_figures")


class Run(NamedTuple):
    record: RunRecord
    folder: Path
    data: Path


@pytest.fixture(params=[("transformer", "mlm"), ("summaries", "forecast")], ids=lambda of: of[0])
def run(request: pytest.FixtureRequest, local_store: Path) -> Run:
    encoder, pretraining = request.param
    dataset = write_dataset(local_store / "meds", Population(n_subjects=300))
    runtime = {"cache": str(local_store / "cache"), "device": "cpu", "log_raw_subjects": True}
    settings = {
        "model": {"encoder": encoder, "size": "tiny"},
        "runtime": runtime,
        "train": {"epochs": 1, "batch_tokens": 2048},
    }
    base = pretrain(study(dataset.path, local_store / "cache", objective={"name": pretraining}, **settings))
    frozen = {"name": "frozen", "head": "ridge"}
    objective = {"name": "survival", "n_intervals": 5}
    told = study(
        dataset.path,
        local_store / "cache",
        strategy=frozen,
        objective=objective,
        init={"run": base.run_id},
        **settings,
    )
    return Run(get_run(finetune(told).run_id), local_store, dataset.path)


def test_its_folder_predicts_what_it_logged_and_validation_subjects_are_judged_by_twins(run: Run) -> None:
    record = run.record
    assert record.status == "FINISHED"
    assert record.name.startswith(("frozen ridge · tiny", "frozen ridge · summaries tiny"))
    test, validation = (
        pl.read_parquet(download(record.run_id, name, run.folder / "logged"))
        for name in (TEST_PREDICTIONS, VALIDATION_PREDICTIONS)
    )
    predictor = load_predictor(download(record.run_id, "model", run.folder / "model"))
    again = {
        name: predictor.predict_dataset(open_dataset(run.data), logged.select("subject_id", "prediction_time"))["risk"]
        for name, logged in (("test", test), ("validation", validation))
    }
    np.testing.assert_allclose(again["test"], test["risk"], rtol=0, atol=1e-6)
    assert np.abs(again["validation"].to_numpy() - validation["risk"].to_numpy()).max() > 1e-3
    assert record.metrics["kept/c_index"] == pytest.approx(record.metrics["val/c_index"])


def test_trained_embeddings_and_a_solved_head_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="leave out embeddings = true"):
        FrozenConfig(head="ridge", embeddings=True)
