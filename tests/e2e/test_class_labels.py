"""From labels of classes, several times a subject, to a champion and predictions: nothing but the labels says so."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulated import Population, study_values, write_dataset

from ehrtrack.config import RunConfig, parse_config
from ehrtrack.data.events import MedsDataset
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.compare import compare
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.predict import predict
from ehrtrack.tracking.client.queries import download, get_run

pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning")

DAYS_LATER = (0, 20, 40)


def class_labels(dataset: MedsDataset) -> pl.DataFrame:
    """Whether the outcome comes within a year of the index date, and of 20 and 40 days after it, as ACES writes it."""
    events = dataset.scan().collect()
    index = events.filter(code="INDEX").select("subject_id", index="time")
    outcome = events.filter(code="OUTCOME").select("subject_id", outcome="time")
    parts = [index.with_columns(prediction_time=pl.col("index") + timedelta(days=days)) for days in DAYS_LATER]
    labels = pl.concat(parts).join(outcome, on="subject_id", how="left")
    after = pl.col("outcome") - pl.col("prediction_time")
    comes = after.is_between(timedelta(microseconds=1), timedelta(days=365)).fill_null(False)
    empty = {name: pl.lit(None, kind) for name, kind in (("integer_value", pl.Int64), ("float_value", pl.Float64))}
    return labels.select("subject_id", "prediction_time", boolean_value=comes, **empty)


@pytest.fixture
def labels(local_store: Path) -> pl.DataFrame:
    """The labels of a simulated dataset in ``meds``, in two shards of the folder ``task``."""
    dataset = write_dataset(local_store / "meds", Population(n_subjects=300, hazard_ratio=8))
    labels = class_labels(dataset).sample(fraction=1, shuffle=True, seed=0)
    (local_store / "task").mkdir()
    for number, shard in enumerate((labels[:500], labels[500:])):
        shard.write_parquet(local_store / "task" / f"{number}.parquet")
    return labels


def config_of(folder: Path, **sections: object) -> RunConfig:
    defaults = {"cohort": {"labels": str(folder / "task")}, "strategy": {"name": "scratch"}}
    return parse_config(study_values(folder / "meds", folder / "cache", **(defaults | sections)))


def test_labels_of_classes_go_all_the_way(labels: pl.DataFrame, local_store: Path) -> None:
    runs = {"logistic": baseline(config_of(local_store)).run_id, "scratch": finetune(config_of(local_store)).run_id}
    records = {name: get_run(run_id) for name, run_id in runs.items()}
    assert {record.status for record in records.values()} == {"FINISHED"}
    assert len({record.tags["fingerprint.cohort"] for record in records.values()}) == 1
    assert records["logistic"].metrics["test/auroc"] > 0.75
    for record in records.values():
        _check_measured(record.metrics)
        assert "AUROC" in record.tags["mlflow.note.content"]
        assert not set(OF_TIME) & set(record.tags["mlflow.note.content"].split())
    told = json.loads(download(runs["scratch"], "run_config.json", local_store / "config").read_text())
    assert told["objective"]["name"] == "classification"
    _check_logged(runs["scratch"], labels, local_store)

    comparison = compare(config_of(local_store))
    assert comparison.left_out == {}
    header = comparison.markdown.splitlines()[0]
    assert "difference to logistic in AUROC (95 % interval)" in header
    assert all(title in header for title in ("test AUROC (95 % interval)", "test AUPRC (95 % interval)", "Brier"))
    assert not any(word in header for word in OF_TIME)
    assert comparison.champion is not None
    new = labels.sample(60, seed=1).select("subject_id", "prediction_time")
    new.write_csv(local_store / "new.csv", datetime_format="%Y-%m-%dT%H:%M:%S%.6f")
    for model in (f"models:/{config_of(local_store).study}@champion", runs["scratch"]):
        scored = predict(model, local_store / "meds", local_store / "new.csv", local_store / "risks.parquet").collect()
        assert scored.select("subject_id", "prediction_time").equals(new)
        assert scored["risk"].null_count() == 0


OF_TIME = ("C-index", "IBS", "days", "Kaplan-Meier")


def _check_measured(metrics: dict[str, float]) -> None:
    """Every measure of classes is there, those of time are not, and their own bounds lie around estimates."""
    for key in ("auroc", "auprc", "brier", "calibration_slope", "sensitivity", "specificity", "observed_to_expected"):
        assert metrics[f"test/{key}_lower"] <= metrics[f"test/{key}"] <= metrics[f"test/{key}_upper"], key
    assert {"test/ici", "test/brier_skill", "test/prevalence", "kept/auroc"} <= set(metrics)
    assert not [name for name in metrics if "c_index" in name or "ibs" in name or "auc_" in name]


def _check_logged(run_id: str, labels: pl.DataFrame, folder: Path) -> None:
    """The predictions name subjects by hashes and their times by numbers; rows and subjects are both counted."""
    test = pl.read_parquet(download(run_id, "predictions/test.parquet", folder / "predictions"))
    assert test.columns == ["subject_id", "prediction_number", "follow_up_days", "is_event", "risk", "survival"]
    assert test.group_by("subject_id").agg("prediction_number")["prediction_number"].to_list() == [[1, 2, 3]] * (
        test.height // 3
    )
    assert test["is_event"].mean() == pytest.approx(labels["boolean_value"].mean(), abs=0.15)
    assert set(test["follow_up_days"]) == {1.0}
    summary = pl.read_csv(download(run_id, "cohort/summary.csv", folder / "summary"))
    assert summary["n_subjects"].sum() == 300
    assert summary["n_times"].sum() == 900
    np.testing.assert_array_equal(summary["n_times"], 3 * summary["n_subjects"])
