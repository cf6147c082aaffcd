"""Codes and values that are not those of training are counted where subjects are scored."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from simulated import study

from ehrtrack.data.drift import Drift
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.errors import DataError
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.models.heads import HazardHead
from ehrtrack.pipeline.model_folder import write_checksums, write_model_folder
from ehrtrack.pipeline.predictor import Scored, load_predictor
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.survival.time_grid import TimeGrid

GRID = TimeGrid((0.0, 365.0, 730.0))


@pytest.fixture(scope="module")
def model(target_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    cohort = {"labels": str(target_site / "labels.parquet"), "horizon_days": 730}
    config = study(target_site, folder / "cache", cohort=cohort)
    records = prepare_cohort(config)
    encoder = Behrt(config.model, len(records.vocabulary))
    network = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(GRID.n_intervals)))
    write_model_folder(
        folder / "model", config=config, vocabulary=records.vocabulary, fingerprints={}, model=network, grid=GRID,
        seen=records.seen,
    )  # fmt: skip
    return folder / "model"


def scored(model: Path, target_site: Path, folder: Path, change: pl.Expr) -> Scored:
    """300 subjects, whose events are changed, at their own prediction times."""
    (folder / "data").mkdir(parents=True)
    times = pl.read_parquet(target_site / "labels.parquet").select("subject_id", "prediction_time").head(300)
    events = open_dataset(target_site).scan().join(times.lazy(), on="subject_id", how="semi").with_columns(change)
    events.collect().write_parquet(folder / "data" / "0.parquet")
    return load_predictor(model).score_dataset(MedsDataset(folder, (folder / "data" / "0.parquet",)), times)


def renamed(share: float) -> pl.Expr:
    """A share of the codes, drawn by their hash, under names that no model knows."""
    is_renamed = (pl.col("code").hash(seed=0) % 1000 < 1000 * share) & ~pl.col("code").str.starts_with("MEDS_")
    return pl.when(is_renamed).then("NEW//" + pl.col("code")).otherwise("code").alias("code")


def drift_of(found: Scored) -> Drift:
    assert found.table["risk"].is_not_null().sum() > 250
    return found.drift


def test_the_data_of_training_have_not_drifted(model: Path, target_site: Path, tmp_path: Path) -> None:
    drift = drift_of(scored(model, target_site, tmp_path, pl.col("code")))
    assert drift.share_unknown < 0.01
    assert drift.n_values > 1000
    assert drift.n_codes > 0
    assert not drift.is_over_limit


def test_unknown_codes_are_counted_by_event_and_over_the_limit(model: Path, target_site: Path, tmp_path: Path) -> None:
    drift = drift_of(scored(model, target_site, tmp_path, renamed(0.3)))
    assert 0.2 < drift.share_unknown < 0.45
    assert drift.has_new_codes
    assert any("the risks are in doubt" in line for line in drift.to_lines() if line.startswith("codes: "))


def test_most_codes_unknown_is_refused(model: Path, target_site: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the model does not know \d+% of these subjects' events"):
        scored(model, target_site, tmp_path, renamed(0.9))


def test_values_a_thousand_times_larger_are_over_the_limit(model: Path, target_site: Path, tmp_path: Path) -> None:
    drift = drift_of(scored(model, target_site, tmp_path, pl.col("numeric_value") * 1000))
    assert not drift.has_new_codes
    assert drift.has_new_extremes
    assert drift.outermost[1] > 0.95
    assert drift.outermost_then[1] == pytest.approx(0.2, abs=0.02)
    assert len(drift.moved) == drift.n_codes > 0


def test_another_unit_of_one_code_is_found_among_many(model: Path, target_site: Path, tmp_path: Path) -> None:
    values = open_dataset(target_site).scan().drop_nulls("numeric_value").collect()
    code = values["code"].value_counts(sort=True)["code"][0]
    in_mmol = pl.when(pl.col("code") == code).then(pl.col("numeric_value") / 18).otherwise("numeric_value")
    drift = drift_of(scored(model, target_site, tmp_path, in_mmol.alias("numeric_value")))
    assert list(drift.moved) == [code]
    assert drift.is_over_limit


def test_a_model_that_keeps_nothing_of_training_says_so(model: Path, target_site: Path, tmp_path: Path) -> None:
    (model / "reading.json").rename(tmp_path / "reading.json")
    sums = (model / "sha256sums.txt").read_text()
    write_checksums(model)
    try:
        drift = drift_of(scored(model, target_site, tmp_path / "data", pl.col("code")))
    finally:
        (tmp_path / "reading.json").rename(model / "reading.json")
        (model / "sha256sums.txt").write_text(sums)
    assert drift.share_unknown_then is None
    assert "in training not kept in this model's folder" in drift.to_lines()[0]
