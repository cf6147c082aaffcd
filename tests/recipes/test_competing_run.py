"""A fine-tuning run with two causes, from labels to what its page says of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from simulated import Population, study, write_dataset

from ehrtrack.recipes._prepare import prepare_cohort
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.predict import load_predictor
from ehrtrack.tracking.queries import download, get_run


def test_a_run_reports_each_cause_and_its_model_scores_subjects_anew(local_store: Path) -> None:
    dataset = write_dataset(local_store / "meds", Population(n_subjects=300))
    subjects = prepare_cohort(study(dataset.path, local_store / "cache")).cohort.subjects
    cause = subjects["is_event"].to_numpy() * np.random.default_rng(0).integers(1, 3, subjects.height)
    labels = subjects.drop("split").rename({"index_date": "prediction_time"}).with_columns(cause=pl.Series(cause))
    labels.write_parquet(local_store / "labels.parquet")
    config = study(
        *(dataset.path, local_store / "cache"),
        cohort={"labels": str(local_store / "labels.parquet")},
        objective={"name": "competing-risks", "n_intervals": 6, "lasso": 0.3},
        strategy={"name": "scratch"},
        train={"epochs": 1, "batch_tokens": 512},
        runtime={"log_raw_subjects": True},
    )
    record = get_run(finetune(config).run_id)
    assert record.status == "FINISHED"
    for name in ("test/c_index", "test/ibs", "val/c_index_causes", "best/c_index"):
        assert name in record.metrics
    for number in (1, 2):
        bounds = [record.metrics[f"test/c_index_cause_{number}{bound}"] for bound in ("_lower", "", "_upper")]
        assert bounds == sorted(bounds)
    table = pl.read_csv(download(record.run_id, "evaluation/causes.csv", local_store / "causes"))
    assert table["cause"].to_list() == [1, 2]
    np.testing.assert_allclose(table["predicted"], table["observed"], atol=0.15)  # it starts at the population's
    times = labels.select("subject_id", "prediction_time")
    scored = load_predictor(download(record.run_id, "model", local_store / "model")).predict_dataset(dataset, times)
    logged = pl.read_parquet(download(record.run_id, "predictions/test.parquet", local_store / "predictions"))
    both = logged.join(scored, on="subject_id", suffix="_scored")
    assert both.height == logged.height > 30
    np.testing.assert_allclose(both["risk_scored"], both["risk"], atol=1e-6)  # of any cause
    assert len(both["survival_scored"][0]) == len(both["survival"][0])
