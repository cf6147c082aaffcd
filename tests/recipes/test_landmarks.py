"""A logged model asked again at later index times, on simulated subjects."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from simulated import study

from ehrtrack.config import RunConfig
from ehrtrack.data.events import MedsDataset
from ehrtrack.errors import ConfigError
from ehrtrack.pipeline.predictor import Predictor, Scored
from ehrtrack.recipes import landmarks as landmarks_module
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.landmarks import landmarks
from ehrtrack.tracking.client.queries import download, get_run


@pytest.fixture
def config(target_site: Path, local_store: Path) -> RunConfig:
    cohort = {"labels": str(target_site / "labels.parquet"), "horizon_days": 730}
    split = {"train": 0.5, "validation": 0.2}
    values = study(target_site, local_store / "cache", cohort=cohort, baseline={"name": "cox"})
    data = values.data.model_copy(update={"split": values.data.split.model_copy(update=split)})
    return values.model_copy(update={"data": data})


def test_a_model_is_scored_at_each_landmark_on_those_still_followed(
    config: RunConfig, target_site: Path, local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    score = landmarks_module.Predictor.score_dataset

    def recorded(self: Predictor, dataset: MedsDataset, times: pl.DataFrame) -> Scored:
        asked.append(times)
        return score(self, dataset, times)

    monkeypatch.setattr(landmarks_module.Predictor, "score_dataset", recorded)
    of_model = get_run(baseline(config).run_id)
    run = landmarks(of_model.run_id, [365, 0, 0])
    both = asked[0].join(asked[1], on="subject_id", suffix="_later")
    moved = (both["prediction_time_later"] - both["prediction_time"]).unique().to_list()
    assert moved == [timedelta(days=365)]  # what came by then is known, and nothing later
    record = get_run(run.run_id)
    assert (record.kind, record.status, record.tags["model_run"]) == ("landmarks", "FINISHED", of_model.run_id)
    table = pl.read_csv(download(run.run_id, "landmarks.csv", local_store / "table"))
    assert table["landmark_days"].to_list() == [0, 365]
    assert table["c_index"][0] == pytest.approx(of_model.metrics["test/c_index"], abs=1e-12)
    assert table["ibs"][0] == pytest.approx(of_model.metrics["test/ibs"], abs=1e-12)
    rows = pl.read_parquet(download(run.run_id, "predictions/landmarks.parquet", local_store / "rows"))
    at_index, later = rows.filter(pl.col("landmark_days") == 0), rows.filter(pl.col("landmark_days") == 365)
    assert 100 < later.height < at_index.height
    assert set(later["subject_id"]) < set(at_index["subject_id"])  # keyed hashes, the same at each landmark
    labels = pl.read_parquet(target_site / "labels.parquet")
    assert not set(labels["subject_id"].cast(pl.String)) & set(rows["subject_id"])
    assert later["follow_up_days"].max() == 730  # the model's horizon, from the landmark on
    pooled = [record.metrics[f"test/landmark_c_index{bound}"] for bound in ("_lower", "", "_upper")]
    assert pooled == sorted(pooled)
    assert 0.5 < pooled[1] < 0.9


def test_a_landmark_before_the_index_date_is_refused() -> None:
    with pytest.raises(ConfigError, match="from the index date on"):
        landmarks("0" * 32, [-1.0])
