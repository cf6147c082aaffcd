"""Whom training would have left out has no risk, and a reason: the rules of prediction are those of training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from simulated import Population, study, write_dataset

from ehrtrack.config import RunConfig, override
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.engines import open_engine
from ehrtrack.data.events import open_dataset
from ehrtrack.errors import DataError
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.models.heads import HazardHead
from ehrtrack.pipeline.model_folder import write_model_folder
from ehrtrack.pipeline.prepare import prepare_records
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.predict import DRIFT_METADATA, load_predictor, predict, score_shards
from ehrtrack.survival.time_grid import TimeGrid

pytestmark = pytest.mark.usefixtures("undrawn_figures")

GRID = TimeGrid((0.0, 10.0, 365.0))
ASKED = datetime(2018, 1, 1)

STORIES: dict[int, list[tuple[datetime | None, str]]] = {
    1001: [(datetime(1960, 1, 1), "MEDS_BIRTH"), (datetime(2014, 6, 1), "INDEX")],
    1002: [(datetime(1960, 1, 1), "MEDS_BIRTH"), (datetime(2014, 6, 1), "INDEX"), (ASKED, "MEDS_DEATH")],
    1003: [(datetime(1960, 1, 1), "MEDS_BIRTH"), (None, "GENDER//F")],
    1004: [(datetime(2019, 1, 1), "MEDS_BIRTH"), (datetime(2019, 6, 1), "INDEX")],
    1005: [(datetime(2014, 6, 1), "INDEX")],
    1006: [(datetime(1960, 1, 1), "MEDS_BIRTH"), (datetime(2019, 6, 1), "INDEX")],
    1007: [(datetime(1897, 1, 1), "MEDS_BIRTH"), (datetime(2014, 6, 1), "INDEX")],
    1008: [(datetime(1960, 1, 1), "MEDS_BIRTH"), (datetime(2007, 6, 1), "INDEX")],
    1009: [(datetime(1960, 1, 1), "MEDS_BIRTH"), (datetime(2014, 6, 1), "INDEX"), (ASKED, "OUTCOME")],
    1010: [(datetime(2005, 1, 1), "MEDS_BIRTH"), (datetime(2014, 6, 1), "INDEX")],
    1011: [(datetime(1909, 6, 1), "MEDS_BIRTH"), (datetime(2014, 6, 1), "INDEX")],
    1012: [(datetime(1960, 1, 1), "MEDS_BIRTH"), (datetime(2017, 12, 20), "INDEX")],
}  # and 1013, of whom there is nothing

REASONS = {
    1001: None,
    1002: "dead at the prediction time",
    1003: "no event at or before the prediction time",
    1004: "born after the prediction time",
    1005: "no birth in the dataset, and the model reads ages",
    1006: "no event at or before the prediction time",
    1007: "older than 120 years at the prediction time",
    1008: "no event in the 10 years before the prediction time",
    1009: "outcome at or before the prediction time",
    1010: "younger than cohort.min_age_years = 18",
    1011: "older than cohort.max_age_years = 99",
    1012: "history shorter than cohort.min_history_days = 30",
    1013: "not in the dataset",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset to learn from, one that has a second shard with the stories, and a model whose study asks for ages."""
    folder = tmp_path_factory.mktemp("eligibility")
    write_dataset(folder / "training", Population(n_subjects=60))
    shutil.copytree(folder / "training", folder / "meds")
    rows = [(subject, time, code) for subject, story in STORIES.items() for time, code in story]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
    pl.DataFrame(rows, schema=schema, orient="row").sort("subject_id", "time", nulls_last=False).write_parquet(
        folder / "meds" / "data" / "1.parquet"
    )
    config = config_of(folder)
    vocabulary = prepare_records(config).vocabulary
    torch.manual_seed(0)
    encoder = Behrt(config.model, len(vocabulary))
    model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(GRID.n_intervals)))
    write_model_folder(folder / "model", config=config, vocabulary=vocabulary, fingerprints={}, model=model, grid=GRID)
    return folder


def config_of(folder: Path) -> RunConfig:
    settings = {"cohort.min_age_years": 18, "cohort.max_age_years": 99, "cohort.min_history_days": 30.0}
    return override(study(folder / "training", folder / "cache"), settings)


def times(*subjects: int) -> pl.DataFrame:
    return pl.DataFrame({"subject_id": subjects}).with_columns(prediction_time=pl.lit(ASKED))


def test_each_subject_that_training_would_leave_out_has_its_reason_and_no_risk(folder: Path) -> None:
    asked = times(*reversed(REASONS))
    with open_engine() as engine:
        scored = score_shards(folder / "model", open_dataset(folder / "meds"), asked, engine).table
    assert dict(scored.select("subject_id", "reason").iter_rows()) == REASONS
    assert scored["subject_id"].to_list() == list(reversed(REASONS))
    has_risk = scored["reason"].is_null()
    assert scored["risk"].is_not_null().to_list() == has_risk.to_list()
    assert scored["survival"].is_not_null().to_list() == has_risk.to_list()
    at_once = load_predictor(folder / "model").predict_dataset(open_dataset(folder / "meds"), asked)
    assert at_once.equals(scored)


def test_a_risk_does_not_depend_on_who_else_is_asked_for(folder: Path) -> None:
    predictor, dataset = load_predictor(folder / "model"), open_dataset(folder / "meds")
    alone = predictor.predict_dataset(dataset, times(1001))
    among = predictor.predict_dataset(dataset, times(*REASONS, *range(1, 61)))
    np.testing.assert_allclose(among["risk"][0], alone["risk"][0], atol=1e-6)


def test_prediction_times_in_the_year_2200_have_no_risk(folder: Path) -> None:
    late = times(*range(1, 61)).with_columns(prediction_time=pl.lit(datetime(2200, 1, 1)))
    scored = load_predictor(folder / "model").score_dataset(open_dataset(folder / "meds"), late)
    assert scored.table["risk"].null_count() == 60
    lines = scored.to_lines()
    assert lines[0] == "0 of 60 subjects scored"
    assert lines[1].startswith("no risk for 60, outside what the model was trained for: ")


def test_the_same_labels_give_a_cohort_the_subjects_that_are_scored(folder: Path, tmp_path: Path) -> None:
    """But for silence and a prior outcome, of which labels say nothing, and births, without which training stops."""
    dataset = open_dataset(folder / "meds")
    elsewhere = {1004, 1005, 1008, 1009}
    everyone = [subject for subject in (*range(1, 61), *REASONS) if subject not in elsewhere]
    labels = times(*everyone).with_columns(follow_up_days=pl.lit(10.0), is_event=pl.lit(True))
    labels.write_parquet(tmp_path / "labels.parquet")
    asked = {"labels": str(tmp_path / "labels.parquet"), "min_age_years": 18, "max_age_years": 99}
    config = study(
        dataset.path, tmp_path, cohort=asked | {"min_history_days": 30, "horizon_days": 365, "min_followed_share": 0}
    )
    assert config.cohort is not None
    cohort = build_cohort(dataset, config.cohort, config.data.split)
    folder_of_labels = tmp_path / "model"
    vocabulary = load_predictor(folder / "model").folder.vocabulary
    model = load_predictor(folder / "model").folder.survival_model()
    write_model_folder(folder_of_labels, config=config, vocabulary=vocabulary, fingerprints={}, model=model, grid=GRID)
    scored = load_predictor(folder_of_labels).predict_dataset(dataset, times(*everyone))
    assert sorted(scored.drop_nulls("risk")["subject_id"]) == cohort.subjects["subject_id"].to_list()
    assert 50 < cohort.subjects.height < len(everyone)


def test_a_model_of_a_landmark_asks_for_ages_and_history_at_the_index_date_before_it(folder: Path) -> None:
    """Subject 1011 is 108 at the prediction time and was 99 nine years before, when it had no event yet."""
    predictor, dataset = load_predictor(folder / "model"), open_dataset(folder / "meds")

    def reason(**changes: float | None) -> str | None:
        config = predictor.folder.config
        assert config.cohort is not None
        config = config.model_copy(update={"cohort": config.cohort.model_copy(update=changes)})
        moved = replace(predictor, folder=replace(predictor.folder, config=config))
        scored = moved.predict_dataset(dataset, times(1011))
        found: str | None = scored["reason"][0]
        return found

    nine_years = 9 * 365.25
    assert reason(min_history_days=None) == "older than cohort.max_age_years = 99"
    assert reason(min_history_days=None, landmark_days=nine_years) is None
    assert reason(landmark_days=nine_years) == "history shorter than cohort.min_history_days = 30"


@pytest.fixture
def model_run(folder: Path, local_store: Path) -> str:
    config = study(folder / "training", local_store / "cache", baseline={"name": "cox", "n_candidates": 1})
    return baseline(override(config, {"data.split.train": 0.4, "data.split.validation": 0.3})).run_id


def test_the_command_writes_a_row_for_each_label_and_says_what_was_left_out(
    folder: Path, model_run: str, local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, out = local_store / "labels.csv", local_store / "risks.parquet"
    labels.write_text(
        "subject_id,prediction_time\n1002,2018-01-01\n1013,2018-01-01\n1001,2018-01-01\n1003,2018-01-01\n"
    )
    capsys.readouterr()
    predict(model_run, folder / "meds", labels, out)
    printed = capsys.readouterr().out
    table = pl.read_parquet(out)
    assert table["subject_id"].to_list() == [1002, 1013, 1001, 1003]
    assert table["reason"].to_list() == [REASONS[1002], REASONS[1013], None, REASONS[1003]]
    assert table["risk"].is_null().to_list() == [True, True, False, True]
    assert "1 of 4 subjects scored" in printed
    assert "dead at the prediction time: 1" in printed
    assert "codes: 0 of 1 events (0.0%; in training " in printed
    assert json.loads(pl.read_parquet_metadata(out)[DRIFT_METADATA])["n_events"] == 1


def test_empty_labels_are_told_as_such(folder: Path, model_run: str, local_store: Path) -> None:
    labels = local_store / "labels.parquet"
    times().with_columns(pl.col("subject_id").cast(pl.Int64)).write_parquet(labels)
    with pytest.raises(DataError, match="the labels are empty"):
        predict(model_run, folder / "meds", labels, local_store / "risks.parquet")
