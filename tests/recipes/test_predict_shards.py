"""Batch prediction: shard by shard, on any engine, the same bytes."""

from __future__ import annotations

from datetime import datetime
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from simulated import Population, study, write_dataset

from ehrtrack.config import override
from ehrtrack.data.engines import open_engine
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.models.heads import HazardHead
from ehrtrack.pipeline.model_folder import write_model_folder
from ehrtrack.pipeline.prepare import prepare_records
from ehrtrack.recipes.predict import load_predictor, score_shards
from ehrtrack.survival.time_grid import TimeGrid

GRID = TimeGrid((0.0, 10.0, 365.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three shards with a model for it."""
    folder = tmp_path_factory.mktemp("predict")
    events = write_dataset(folder / "one", Population(n_subjects=90)).scan().collect()
    (folder / "meds" / "data").mkdir(parents=True)
    for number in range(3):
        part = events.filter(pl.col("subject_id") % 3 == number)
        part.write_parquet(folder / "meds" / "data" / f"{number}.parquet")
    config = override(study(folder / "meds", folder / "cache"), {"cohort.exclude_prior_outcome": False})
    vocabulary = prepare_records(config).vocabulary
    torch.manual_seed(0)
    encoder = Behrt(config.model, len(vocabulary))
    model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(GRID.n_intervals)))
    torch.nn.init.normal_(model.head.out.weight)
    write_model_folder(folder / "model", config=config, vocabulary=vocabulary, fingerprints={}, model=model, grid=GRID)
    return folder


def times(*subjects: int) -> pl.DataFrame:
    return pl.DataFrame({"subject_id": subjects}).with_columns(prediction_time=pl.lit(datetime(2018, 1, 1)))


def written(folder: Path, engine: str, n_workers: int, file: Path) -> bytes:
    dataset = open_dataset(folder / "meds")
    with open_engine(engine, n_workers) as opened:
        score_shards(folder / "model", dataset, times(*range(80, 0, -1)), opened).table.write_parquet(file)
    return file.read_bytes()


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_two_workers_write_the_bytes_of_one(
    folder: Path, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    one = written(folder, "local", 1, tmp_path / "one.parquet")
    assert written(folder, engine, 2, tmp_path / "two.parquet") == one


def test_each_shard_is_scored_with_one_thread_and_the_others_are_given_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(import_module("ehrtrack.recipes.predict"), "use_threads", told.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with open_engine() as engine:
        score_shards(folder / "model", open_dataset(folder / "meds"), times(1, 2, 3), engine)
    assert told == [1, 2] * 3


def test_shard_by_shard_is_the_same_as_all_at_once_in_the_order_asked_for(folder: Path) -> None:
    dataset, wanted = open_dataset(folder / "meds"), times(5, 90, 1, 2, 31)
    with open_engine() as engine:
        scored = score_shards(folder / "model", dataset, wanted, engine).table
    at_once = load_predictor(folder / "model").predict_dataset(dataset, wanted)
    assert scored.columns == at_once.columns
    assert scored["subject_id"].to_list() == [5, 90, 1, 2, 31]
    assert scored["risk"].n_unique() == 5
    np.testing.assert_allclose(scored["risk"], at_once["risk"], atol=1e-6, rtol=0)


def test_subjects_that_no_shard_holds_keep_their_row_and_get_the_reason(folder: Path) -> None:
    with open_engine() as engine:
        scored = score_shards(folder / "model", open_dataset(folder / "meds"), times(91, 1, 92), engine).table
    assert scored["subject_id"].to_list() == [91, 1, 92]
    assert scored["reason"].to_list() == ["not in the dataset", None, "not in the dataset"]
    assert scored["risk"].is_null().to_list() == [True, False, True]
    assert scored["survival"].is_null().to_list() == [True, False, True]


def test_a_subject_in_two_shards_is_refused(folder: Path) -> None:
    dataset = open_dataset(folder / "meds")
    doubled = MedsDataset(dataset.path, (*dataset.shards, dataset.shards[0]))
    with open_engine() as engine, pytest.raises(DataError, match="subject 3 is in more than one shard"):
        score_shards(folder / "model", doubled, times(1, 3), engine)


def test_a_folder_that_is_no_model_is_told_before_any_work(folder: Path) -> None:
    with open_engine() as engine, pytest.raises(CheckpointError, match="is no regular file"):
        score_shards(folder / "meds", open_dataset(folder / "meds"), times(1), engine)
