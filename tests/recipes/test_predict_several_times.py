"""A subject that is asked for at several times is scored at each by what was known then, and its events count once."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulated import HORIZON_DAYS, Population, study, write_dataset

from ehrtrack.baselines.base import Labelled, TokenHistories, baseline_class
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.engines import open_engine
from ehrtrack.data.events import MedsDataset
from ehrtrack.errors import DataError
from ehrtrack.evaluation.oracle import TRUTH, read_true_risk
from ehrtrack.pipeline.model_folder import write_model_folder
from ehrtrack.pipeline.prepare import prepare_cohort
from ehrtrack.recipes.negative_controls import _sample
from ehrtrack.recipes.predict import load_predictor, score_shards
from ehrtrack.survival.time_grid import TimeGrid


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MedsDataset, pl.DataFrame]:
    """A Cox model in ``model``, its dataset, and the index dates of some of its subjects."""
    folder = tmp_path_factory.mktemp("several")
    dataset = write_dataset(folder / "meds", Population(n_subjects=150))
    config = study(dataset.path, folder / "cache", baseline={"name": "cox", "n_candidates": 2})
    records = prepare_cohort(config)
    cox = baseline_class("cox")(config.baseline)
    features = cox.read(TokenHistories(records.store, records.vocabulary, np.arange(len(records.store)), 64))
    train, validation = (
        Labelled(features[rows], records.outcomes[rows].follow_up_days, records.outcomes[rows].is_event)
        for rows in (records.rows["train"], records.rows["validation"])
    )
    fitted = cox.fit(train, validation)
    (folder / "model").mkdir()
    write_model_folder(
        folder / "model",
        config=config,
        vocabulary=records.vocabulary,
        fingerprints={},
        grid=TimeGrid((0.0, HORIZON_DAYS)),
        baseline=fitted.to_json(),
    )
    index = records.cohort.subjects.head(30).select("subject_id", prediction_time="index_date")
    return folder, dataset, index


def test_each_time_is_scored_as_if_it_were_asked_alone(model: tuple[Path, MedsDataset, pl.DataFrame]) -> None:
    folder, dataset, index = model
    earlier = index.with_columns(pl.col("prediction_time") - timedelta(days=100))
    predictor = load_predictor(folder / "model")
    alone = pl.concat([predictor.predict_dataset(dataset, times) for times in (index, earlier)])
    order = np.random.default_rng(0).permutation(60)
    both = pl.concat([index, earlier])[order]
    scored = predictor.score_dataset(dataset, both)
    assert scored.table.drop("risk", "survival").equals(alone[order].drop("risk", "survival"))
    np.testing.assert_allclose(scored.table["risk"], alone[order]["risk"], rtol=1e-9)
    assert scored.table["risk"].n_unique() > 30
    assert (
        scored.to_lines()[0] == f"{60 - scored.table['risk'].null_count()} of 60 prediction times of 30 subjects scored"
    )
    with open_engine("local", 1) as engine:
        assert score_shards(folder / "model", dataset, both, engine).table.equals(scored.table)


def test_who_has_had_the_outcome_by_one_time_had_not_by_another(model: tuple[Path, MedsDataset, pl.DataFrame]) -> None:
    folder, dataset, index = model
    outcomes = dataset.scan().filter(code="OUTCOME").select("subject_id", outcome="time").collect()
    both = index.join(outcomes, on="subject_id").head(5)
    after = both.select("subject_id", prediction_time=pl.col("outcome") + timedelta(days=1))
    times = pl.concat([after, both.select("subject_id", "prediction_time")])
    scored = load_predictor(folder / "model").predict_dataset(dataset, times)
    assert scored["reason"].to_list() == ["outcome at or before the prediction time"] * 5 + [None] * 5


def test_drift_counts_an_event_of_a_subject_once(model: tuple[Path, MedsDataset, pl.DataFrame]) -> None:
    folder, dataset, index = model
    earlier = index.with_columns(pl.col("prediction_time") - timedelta(days=1))
    predictor = load_predictor(folder / "model")
    once, twice = (predictor.score_dataset(dataset, times) for times in (index, pl.concat([earlier, index])))
    assert twice.table["risk"].null_count() == 0
    assert twice.drift.n_events == once.drift.n_events


@pytest.fixture
def labels(model: tuple[Path, MedsDataset, pl.DataFrame], tmp_path: Path) -> Path:
    """Labels of 150 subjects at two times."""
    folder, dataset, _ = model
    config = study(dataset.path, folder / "cache")
    assert config.cohort is not None
    subjects = build_cohort(dataset, config.cohort, config.data.split).subjects
    first = subjects.select("subject_id", "follow_up_days", "is_event", prediction_time="index_date")
    pl.concat([first, first.with_columns(pl.col("prediction_time") - timedelta(days=1))]).write_parquet(
        tmp_path / "labels.parquet"
    )
    return tmp_path / "labels.parquet"


def test_negative_controls_take_the_last_row_of_each_subject(labels: Path, model, tmp_path: Path, capsys) -> None:
    _, dataset, index = model
    config = study(
        dataset.path, tmp_path / "cache", cohort={"labels": str(labels)}, negative_controls={"n_subjects": 0}
    )
    assert config.cohort is not None
    cohort = build_cohort(dataset, config.cohort, config.data.split)
    sampled = _sample(cohort, config)
    assert cohort.subjects.height == 2 * sampled.subjects.height
    assert not sampled.has_several_times
    assert sampled.subjects["index_date"].head(30).equals(index["prediction_time"], check_names=False)
    assert "the last of each subject" in capsys.readouterr().out


def test_a_true_risk_of_one_time_is_none_of_several(labels: Path, model, tmp_path: Path) -> None:
    _, dataset, index = model
    index.select("subject_id", risk=pl.lit(0.5)).write_parquet(labels.parent / TRUTH)
    records = prepare_cohort(study(dataset.path, tmp_path / "cache", cohort={"labels": str(labels)}))
    with pytest.raises(DataError, match="has a true risk a subject, at one index date"):
        read_true_risk(labels.parent / TRUTH, records.store.subject_ids[records.rows["test"]])
