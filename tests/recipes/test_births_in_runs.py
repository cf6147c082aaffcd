"""Subjects without a birth through preparation, models and prediction: as the setting says, and as runs of before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from simulated import Population, study, write_dataset

from ehrtrack.config import RunConfig, override, parse_config
from ehrtrack.data.events import BIRTH, MedsDataset, open_dataset
from ehrtrack.errors import CheckpointError, ConfigError
from ehrtrack.evaluation.groups import subject_groups
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.models.heads import HazardHead
from ehrtrack.pipeline.model_folder import read_model_folder, write_checksums, write_model_folder
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.pipeline.prepare import check_same_reading, prepare_cohort, prepare_records
from ehrtrack.survival.time_grid import TimeGrid

GRID = TimeGrid((0.0, 10.0, 365.0))
UNBORN = (3, 5, 8)
N = 60


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    """The births of three subjects are missing."""
    folder = tmp_path_factory.mktemp("births") / "meds"
    shard = write_dataset(folder, Population(n_subjects=N)).shards[0]
    is_missing = (pl.col("code") == BIRTH) & pl.col("subject_id").is_in(UNBORN)
    pl.read_parquet(shard).filter(~is_missing).write_parquet(shard)
    return open_dataset(folder)


def config_of(dataset: MedsDataset, births: str) -> RunConfig:
    cache = dataset.path.parent / "cache"
    return override(study(dataset.path, cache), {"data.births": births})


@pytest.mark.parametrize(("births", "n_pretraining"), [("left_out", N - 3), ("unknown", N)])
def test_pretraining_and_cohorts_have_the_subjects_that_the_setting_says(
    dataset: MedsDataset, births: str, n_pretraining: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(dataset, births)
    assert len(prepare_records(config).store) == n_pretraining
    said = capsys.readouterr().out
    assert ("left out: 3 of 60 subjects, who have no MEDS_BIRTH event" in said) == (births == "left_out")
    records = prepare_cohort(config)
    assert np.isnan(records.store.end_age_years).sum() == (3 if births == "unknown" else 0)
    assert ("3 not: has a birth" in capsys.readouterr().out) == (births == "left_out")


def test_unknown_ages_are_a_group_of_their_own(dataset: MedsDataset) -> None:
    records = prepare_cohort(config_of(dataset, "unknown"))
    groups = subject_groups(records.store, records.vocabulary, np.arange(len(records.store)))
    is_unknown = np.isnan(records.store.end_age_years)
    assert ((groups["age_years"] == "unknown").to_numpy() == is_unknown).all()
    assert "unknown" not in groups["history_years"].to_list()


def model_in(folder: Path, config: RunConfig) -> None:
    vocabulary = prepare_records(config).vocabulary
    torch.manual_seed(0)
    encoder = Behrt(config.model, len(vocabulary), may_lack_age=config.data.may_lack_age)
    with torch.no_grad():
        encoder.embeddings.age.weight.normal_()
    model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(GRID.n_intervals)))
    write_model_folder(folder, config=config, vocabulary=vocabulary, fingerprints={}, model=model, grid=GRID)


def test_a_model_scores_whom_it_was_trained_for(dataset: MedsDataset, tmp_path: Path) -> None:
    times = prepare_cohort(config_of(dataset, "unknown")).cohort.cutoffs
    times = times.select("subject_id", prediction_time="cutoff")
    reasons = {}
    for births in ("left_out", "unknown"):
        model_in(tmp_path / births, config_of(dataset, births))
        scored = load_predictor(tmp_path / births).predict_dataset(dataset, times)
        reasons[births] = dict(scored.filter(pl.col("risk").is_null()).select("subject_id", "reason").iter_rows())
    assert reasons["left_out"] == dict.fromkeys(UNBORN, "no birth in the dataset, and the model reads ages")
    assert reasons["unknown"] == {}


def test_a_model_from_before_there_was_the_setting_is_read_and_predicts_alike(
    dataset: MedsDataset, tmp_path: Path
) -> None:
    model_in(tmp_path / "model", config_of(dataset, "left_out"))
    times = prepare_cohort(config_of(dataset, "left_out")).cohort.cutoffs
    times = times.select("subject_id", prediction_time="cutoff")
    now = load_predictor(tmp_path / "model").predict_dataset(dataset, times)
    file = tmp_path / "model" / "run_config.json"
    said = json.loads(file.read_text())
    del said["data"]["births"]
    file.write_text(json.dumps(said))
    write_checksums(tmp_path / "model")
    assert read_model_folder(tmp_path / "model").weights["encoder.embeddings.age.weight"].shape[0] == 121
    assert load_predictor(tmp_path / "model").predict_dataset(dataset, times).equals(now)


def test_weights_and_setting_have_to_agree(dataset: MedsDataset, tmp_path: Path) -> None:
    model_in(tmp_path, config_of(dataset, "unknown"))
    folder = read_model_folder(tmp_path)
    other = replace(folder, config=override(folder.config, {"data.births": "left_out"}))
    with pytest.raises(CheckpointError, match="do not fit the configuration"):
        other.survival_model()


def test_a_base_that_read_ages_otherwise_is_refused_with_the_way_on(dataset: MedsDataset) -> None:
    data = {births: config_of(dataset, births).data for births in ("required", "left_out", "unknown")}
    check_same_reading(data["required"], data["left_out"], is_same_data=True)
    with pytest.raises(ConfigError, match=r"births=left_out, this run says unknown.*Pretrain with data.births"):
        check_same_reading(data["unknown"], data["left_out"], is_same_data=True)
    with pytest.raises(ConfigError, match=r'births=unknown, this run says left_out.*say data.births = "unknown"'):
        check_same_reading(data["left_out"], data["unknown"], is_same_data=True)


def test_the_default_leaves_the_names_of_studies_as_they_were(dataset: MedsDataset) -> None:
    now = config_of(dataset, "left_out")
    before = json.loads(json.dumps(now.to_json()))
    del before["data"]["births"]
    assert "births" not in now.identity()["data"]
    assert parse_config(before) == now
    assert config_of(dataset, "unknown").identity()["data"]["births"] == "unknown"
