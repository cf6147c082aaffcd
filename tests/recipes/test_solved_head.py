"""Runs whose head is solved for, or that begin there, are ordinary runs.

A frozen run's model predicts elsewhere what it predicted here; other strategies learn on from such a head.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from simulated import Population, study, write_dataset

from ehrtrack.data.events import open_dataset
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.strategies.settings import FrozenConfig, ScratchConfig
from ehrtrack.tracking.client.queries import RunRecord, download, get_run
from ehrtrack.tracking.names import TEST_PREDICTIONS, VALIDATION_PREDICTIONS

pytestmark = pytest.mark.usefixtures("undrawn_figures")


class Base(NamedTuple):
    """A pretrained model, and what is needed to fine-tune it."""

    run_id: str
    folder: Path
    data: Path
    settings: dict[str, Any]

    def finetuned(self, strategy: dict[str, Any], **train: float) -> RunRecord:
        told = study(
            self.data,
            self.folder / "cache",
            strategy=strategy,
            objective={"name": "survival", "n_intervals": 5},
            init={"run": self.run_id},
            **self.settings | {"train": self.settings["train"] | train},
        )
        return get_run(finetune(told).run_id)


def base_of(folder: Path, encoder: str, pretraining: str) -> Base:
    dataset = write_dataset(folder / "meds", Population(n_subjects=300))
    settings = {
        "model": {"encoder": encoder, "size": "tiny"},
        "runtime": {"cache": str(folder / "cache"), "device": "cpu", "log_raw_subjects": True},
        "train": {"epochs": 1, "batch_tokens": 2048},
    }
    run = pretrain(study(dataset.path, folder / "cache", objective={"name": pretraining}, **settings))
    return Base(run.run_id, folder, dataset.path, settings)


class Run(NamedTuple):
    record: RunRecord
    folder: Path
    data: Path


@pytest.fixture(params=[("transformer", "mlm"), ("summaries", "forecast")], ids=lambda of: of[0])
def run(request: pytest.FixtureRequest, local_store: Path) -> Run:
    base = base_of(local_store, *request.param)
    return Run(base.finetuned({"name": "frozen", "head": "ridge"}), local_store, base.data)


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


@pytest.mark.parametrize(("batch_tokens", "is_told"), [(128, True), (2048, False)])
def test_steps_of_few_subjects_from_a_solved_head_are_told(
    local_store: Path, capsys: pytest.CaptureFixture[str], batch_tokens: int, is_told: bool
) -> None:
    base = base_of(local_store, "transformer", "mlm")
    base.finetuned({"name": "full", "head": "ridge"}, batch_tokens=batch_tokens)
    told = re.findall(
        r"a step has some (\d+) subjects: .*; train.batch_tokens=(\d+) takes 100", capsys.readouterr().out
    )
    assert [(0 < int(n) < 20, int(enough) >= 1000) for n, enough in told] == [(True, True)] * is_told


def test_full_and_lora_begin_at_the_solved_head_and_learn_on(local_store: Path) -> None:
    """A rate of next to nothing shows where they begin: at one place, which is not where a trained head begins."""
    base = base_of(local_store, "transformer", "mlm")

    def risk(strategy: dict[str, Any], lr: float) -> np.ndarray:
        run = base.finetuned(strategy, lr=lr)
        logged = pl.read_parquet(download(run.run_id, TEST_PREDICTIONS, local_store / run.run_id))
        return logged.sort("subject_id")["risk"].to_numpy()

    full, lora = ({"name": name, "head": "ridge"} for name in ("full", "lora"))
    start = risk(full, 1e-9)
    np.testing.assert_allclose(risk(lora, 1e-9), start, rtol=0, atol=1e-5)
    for others in (risk({"name": "full"}, 1e-9), risk(full, 1e-3), risk(lora, 1e-2)):
        assert np.abs(others - start).max() > 1e-3


def test_what_begins_at_random_has_no_states_to_solve_a_head_on() -> None:
    with pytest.raises(ValidationError, match="scratch has none"):
        ScratchConfig(head="ridge")


def test_trained_embeddings_and_a_solved_head_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="leave out embeddings = true"):
        FrozenConfig(head="ridge", embeddings=True)
