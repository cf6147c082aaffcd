"""A fine-tuning run with two causes, from labels to what its page says of each."""

from __future__ import annotations

import json
from datetime import datetime
from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulated import Population, study, write_dataset

from ehrtrack.config import RunConfig
from ehrtrack.data.events import MedsDataset
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.recipes.compare import compare
from ehrtrack.recipes.finetune import finetune
from ehrtrack.tracking.client.queries import download, get_run, list_artifacts

pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning")


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
        train={"epochs": 1, "batch_tokens": 12},  # fewer than a record has
        runtime={"log_raw_subjects": True},
    )
    record = get_run(finetune(config).run_id)
    assert record.status == "FINISHED"
    for name in ("test/c_index", "test/ibs", "val/c_index_causes", "kept/c_index"):
        assert name in record.metrics
    for number in (1, 2):
        bounds = [record.metrics[f"test/c_index_cause_{number}{bound}"] for bound in ("_lower", "", "_upper")]
        assert bounds == sorted(bounds)
    table = pl.read_csv(download(record.run_id, "evaluation/causes.csv", local_store / "causes"))
    assert table["cause"].to_list() == [1, 2]
    np.testing.assert_allclose(table["predicted"], table["observed"], atol=0.15)  # it starts at the population's
    note = record.tags["mlflow.note.content"]
    assert "test C-index of any cause (95 % interval)" in note
    assert "test C-index of cause 2 (95 % interval)" in note
    times = labels.select("subject_id", "prediction_time")
    folder = download(record.run_id, "model", local_store / "model")
    scored = load_predictor(folder).predict_dataset(dataset, times)
    logged = pl.read_parquet(download(record.run_id, "predictions/test.parquet", local_store / "predictions"))
    both = logged.join(scored, on=["subject_id", "cause"], suffix="_scored")
    assert both.height == logged.height > 90
    np.testing.assert_allclose(both["risk_scored"], both["risk"], atol=1e-6)
    curves = [np.array(both[name].to_list()) for name in ("incidence_scored", "incidence")]
    np.testing.assert_allclose(*curves, atol=1e-6)
    _check_causes_add_up(scored.drop_nulls("risk"))
    assert set(logged.filter(pl.col("observed_cause") == 0)["is_event"]) == {False}
    _check_comparison(config, record.run_id, local_store)
    _check_answer(config.study, dataset, times.head(20), scored)


def _check_causes_add_up(scored: pl.DataFrame) -> None:
    """Three rows a subject; what is free of all causes and the incidence of each are 1."""
    assert scored["cause"].head(6).to_list() == ["any", "1", "2"] * 2
    any_cause, first, second = (scored.filter(pl.col("cause") == cause) for cause in ("any", "1", "2"))
    assert any_cause["subject_id"].equals(first["subject_id"])
    np.testing.assert_allclose(first["risk"] + second["risk"], any_cause["risk"], atol=1e-6)
    survival = np.array(any_cause["survival"].to_list())
    total = survival + np.array(first["incidence"].to_list()) + np.array(second["incidence"].to_list())
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert first["survival"].null_count() == first.height
    assert 0 < first["risk"].min() < any_cause["risk"].min()


def _check_comparison(config: RunConfig, run_id: str, store: Path) -> None:
    found = compare(config)
    metrics = get_run(run_id).metrics
    assert "test C-index of any cause (95 % interval)" in found.markdown
    (file,) = [name for name in list_artifacts(found.run.run_id, "benchmark") if name.endswith("_causes.csv")]
    table = pl.read_csv(download(found.run.run_id, file, store / "compared"))
    assert table["cause"].to_list() == ["any", "1", "2"]
    names = ("test/c_index", "test/c_index_cause_1", "test/c_index_cause_2")
    assert table["c_index"].to_list() == [metrics[name] for name in names]
    assert table["lower"].to_list() == [metrics[f"{name}_lower"] for name in names]
    assert "any cause" in found.markdown.split("The scores above are of any cause")[1]


def _check_answer(name: str, dataset: MedsDataset, times: pl.DataFrame, scored: pl.DataFrame) -> None:
    """The registered model answers with the same causes, and with the reason of whom it cannot score."""
    import mlflow.pyfunc
    from mlflow.pyfunc.scoring_server import predictions_to_json

    late = times.with_columns(prediction_time=pl.lit(datetime(2200, 1, 1))).tail(1)
    asked = pl.concat([times.head(-1), late])
    events = dataset.scan().select("subject_id", "time", "code").collect().join(asked, on="subject_id")
    answer = mlflow.pyfunc.load_model(f"models:/{name}@champion").predict(events.to_pandas())
    assert answer["cause"].tolist() == ["any", "1", "2"] * 20
    both = scored.join(pl.from_pandas(answer.dropna(subset="risk").astype({"risk": float})), on=["subject_id", "cause"])
    assert both.height == 57
    np.testing.assert_allclose(both["risk_right"], both["risk"], atol=1e-6)
    assert answer.loc[answer["risk"].isna(), "reason"].tolist() == ["older than 120 years at the prediction time"] * 3
    written = StringIO()
    predictions_to_json(answer, written)

    def refuse(constant: str) -> None:
        raise AssertionError(f"JSON has no {constant}")

    rows = json.loads(written.getvalue(), parse_constant=refuse)["predictions"]
    assert sum(row["risk"] is None for row in rows) == 3
