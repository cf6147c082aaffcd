"""Cohorts too small to judge a model by: told before training, or trained, kept and left unjudged."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from simulated import HORIZON_DAYS, Population, study, study_values, write_dataset
from undrawn import undrawn

from ehrtrack import plots
from ehrtrack.config import RunConfig, parse_config
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.events import MedsDataset
from ehrtrack.errors import DataError
from ehrtrack.pipeline import report as _evaluate
from ehrtrack.pipeline.predictor import load_predictor
from ehrtrack.pipeline.run import RecipeResult
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.landmarks import landmarks
from ehrtrack.recipes.negative_controls import negative_controls
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.tracking.client.queries import RunRecord, download, list_artifacts, search_runs

KEPT = {"model/vocabulary.json", "model/time_grid.json", "predictions/test.parquet", "predictions/validation.parquet"}
Change = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture
def dataset(local_store: Path) -> MedsDataset:
    return write_dataset(local_store / "meds", Population(n_subjects=240))


def with_labels(dataset: MedsDataset, folder: Path, change: Change, **sections: Any) -> RunConfig:
    """A tiny model from scratch on the population's cohort, with outcomes changed by hand; the splits stay."""
    config = study(dataset.path, folder / "cache")
    assert config.cohort is not None
    subjects = change(build_cohort(dataset, config.cohort, config.data.split).subjects)
    subjects.drop("split").rename({"index_date": "prediction_time"}).write_parquet(folder / "labels.parquet")
    values: dict[str, Any] = {
        "cohort": {"labels": str(folder / "labels.parquet"), "horizon_days": HORIZON_DAYS, "min_followed_share": 0},
        "strategy": {"name": "scratch"},
        "train": {"epochs": 1, "batch_tokens": 512},
    }
    return study(dataset.path, folder / "cache", **(values | sections))


def few_events(split: str, n_events: int) -> Change:
    """All but so many of a split's events become censorings."""

    def change(subjects: pl.DataFrame) -> pl.DataFrame:
        is_theirs = pl.col("is_event") & (pl.col("split") == split)
        return subjects.with_columns(pl.col("is_event") & (~is_theirs | (is_theirs.cum_sum() <= n_events)))

    return change


def only_run() -> RunRecord:
    (record,) = search_runs("simulated", status=None)
    return record


def left_out(record: RunRecord, folder: Path) -> dict[str, str]:
    table = pl.read_csv(download(record.run_id, "evaluation/left_out.csv", folder / "left_out"))
    return dict(table.iter_rows())


@pytest.mark.parametrize("recipe", [finetune, baseline])
def test_two_test_events_leave_a_finished_run_with_its_model_and_no_interval(
    recipe: Callable[[RunConfig], RecipeResult],
    dataset: MedsDataset,
    local_store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = recipe(with_labels(dataset, local_store, few_events("test", 2)))
    record = only_run()
    assert (record.run_id, record.status) == (run.run_id, "FINISHED")
    assert set(list_artifacts(run.run_id)) >= KEPT
    logged = pl.read_parquet(download(run.run_id, "predictions/test.parquet", local_store))
    assert 0 <= record.metrics["test/c_index"] <= 1
    assert record.metrics.keys() & {"test/c_index_lower", "test/calibration_slope", "test/uno_c"} == set()
    assert {"test/ibs", "kept/c_index"} <= record.metrics.keys()
    assert (
        "too few events for an interval, which needs about 4" in left_out(record, local_store)["test/c_index_interval"]
    )
    assert record.tags["sanity.judged"] == "warn"
    assert "not enough events to judge" in record.tags["mlflow.note.content"]
    assert "not enough events to judge" in capsys.readouterr().out
    times = pl.read_parquet(local_store / "labels.parquet").select("subject_id", "prediction_time")
    scored = load_predictor(download(run.run_id, "model", local_store / "model")).predict_dataset(dataset, times)
    assert np.isin(np.round(logged["risk"], 5), np.round(scored["risk"], 5)).all()


def test_one_test_event_that_outlives_everybody_leaves_the_c_index_out(dataset: MedsDataset, local_store: Path) -> None:
    def change(subjects: pl.DataFrame) -> pl.DataFrame:
        few = few_events("test", 1)(subjects)
        is_it = pl.col("is_event") & (pl.col("split") == "test")
        return few.with_columns(
            follow_up_days=pl.when(is_it).then(HORIZON_DAYS).otherwise(pl.col("follow_up_days").clip(upper_bound=300.0))
        )

    finetune(with_labels(dataset, local_store, change))
    record = only_run()
    assert record.status == "FINISHED"
    assert [name for name in record.metrics if name.startswith("test/c_index")] == []
    assert left_out(record, local_store)["test/c_index"].startswith("no comparable pair among")


def test_a_bug_in_the_evaluation_leaves_model_adapter_and_predictions(
    dataset: MedsDataset, local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_evaluate, "evaluate", lambda *_args, **_words: {}["nothing"])
    strategy = {"name": "lora", "rank": 2, "embeddings": True}
    with undrawn(), pytest.raises(KeyError, match="nothing") as raised:
        finetune(with_labels(dataset, local_store, lambda subjects: subjects, strategy=strategy))
    record = only_run()
    assert record.status == "FAILED"
    assert set(list_artifacts(record.run_id)) >= KEPT | {"model/model.safetensors", "adapter/adapter_model.safetensors"}
    assert "is kept among its artifacts" in record.tags["ehrtrack.error"]
    assert record.tags["ehrtrack.error"].endswith("KeyError: 'nothing'")
    assert "is kept among its artifacts" in raised.value.__notes__[0]


def test_a_bug_in_a_page_of_pretraining_leaves_the_model(
    dataset: MedsDataset, local_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "loss_curves", lambda *_args, **_words: {}["nothing"])
    with undrawn(), pytest.raises(KeyError):
        pretrain(study(dataset.path, local_store / "cache", objective={"name": "mlm"}, train={"epochs": 1}))
    record = only_run()
    assert record.status == "FAILED"
    assert "model/model.safetensors" in list_artifacts(record.run_id)


def causes(subjects: pl.DataFrame, split: str) -> pl.DataFrame:
    """Two causes in turn, of which one split has the first alone."""
    turn = 1 + pl.int_range(pl.len()) % 2
    cause = pl.when(~pl.col("is_event")).then(0).when(pl.col("split") == split).then(1).otherwise(turn)
    return subjects.with_columns(cause=cause).select(*subjects.columns[:-1], "cause", "split")


def test_a_cause_that_no_test_subject_has_is_left_out_by_its_name(dataset: MedsDataset, local_store: Path) -> None:
    objective = {"name": "competing-risks", "n_intervals": 4}
    finetune(with_labels(dataset, local_store, lambda subjects: causes(subjects, "test"), objective=objective))
    record = only_run()
    assert record.status == "FINISHED"
    assert "test/c_index_cause_1" in record.metrics
    assert "test/c_index_cause_2" not in record.metrics
    table = pl.read_csv(download(record.run_id, "evaluation/causes.csv", local_store))
    second = table.row(1, named=True)
    assert (second["c_index"], second["observed"]) == (None, 0.0)
    assert second["left_out"].startswith("no comparable pair")


def test_a_cause_that_no_validation_subject_has_is_told_before_training(
    dataset: MedsDataset, local_store: Path
) -> None:
    objective = {"name": "competing-risks", "n_intervals": 4}
    config = with_labels(dataset, local_store, lambda subjects: causes(subjects, "validation"), objective=objective)
    with pytest.raises(DataError, match=r"too small .* nothing was trained\. cause 2: no comparable"):
        finetune(config)
    assert search_runs("simulated", status=None) == []


def all_at_once(subjects: pl.DataFrame) -> pl.DataFrame:
    return subjects.with_columns(follow_up_days=pl.lit(HORIZON_DAYS))


def no_pair(subjects: pl.DataFrame) -> pl.DataFrame:
    """The validation split's one event comes after all others have left."""
    few = few_events("validation", 1)(subjects)
    is_it = pl.col("is_event") & (pl.col("split") == "validation")
    days = pl.when(is_it).then(HORIZON_DAYS).otherwise(pl.col("follow_up_days").clip(upper_bound=300.0))
    return few.with_columns(follow_up_days=days)


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        (finetune, all_at_once, "no range to evaluate survival in"),
        (finetune, no_pair, "a C-index needs one subject with the event and another followed for longer"),
        (baseline, no_pair, "a C-index needs one subject with the event and another followed for longer"),
        (finetune, few_events("test", 0), r"test split has no events .* Needed is at least 1 in each"),
    ],
)  # fmt: skip
def test_a_split_too_small_is_told_before_a_run_is_opened(
    recipe: Callable[[RunConfig], RecipeResult], change: Change, message: str, dataset: MedsDataset, local_store: Path
) -> None:
    with pytest.raises(DataError, match=message):
        recipe(with_labels(dataset, local_store, change))
    assert search_runs("simulated", status=None) == []


def test_classes_that_validation_lacks_are_told_before_a_run_is_opened(dataset: MedsDataset, local_store: Path) -> None:
    def change(subjects: pl.DataFrame) -> pl.DataFrame:  # nobody of the split is known to be free of the outcome
        is_short = (pl.col("split") == "validation") & ~pl.col("is_event")
        days = pl.when(is_short).then(pl.col("follow_up_days").clip(upper_bound=300.0)).otherwise("follow_up_days")
        return subjects.with_columns(follow_up_days=days)

    with pytest.raises(DataError, match=r"validation split is too small .* 0 are known not to; both are needed"):
        finetune(with_labels(dataset, local_store, change, objective={"name": "classification"}))
    assert search_runs("simulated", status=None) == []


@pytest.mark.parametrize(("shares", "n_finished"), [((0.4, 0.3), 2), ((0.9, 0.05), 0)])
def test_a_cohort_of_30_finishes_or_is_told_before_a_run_is_opened(
    shares: tuple[float, float], n_finished: int, local_store: Path
) -> None:
    dataset = write_dataset(local_store / "meds", Population(n_subjects=30))
    values = study_values(dataset.path, local_store / "cache", strategy={"name": "scratch"})
    values["data"]["split"] = {"train": shares[0], "validation": shares[1]}
    config = parse_config(values | {"train": {"epochs": 1, "batch_tokens": 512}})
    told = []
    for recipe in (finetune, baseline):
        try:
            recipe(config)
        except DataError as error:
            told.append(str(error))
    assert [run.status for run in search_runs("simulated", status=None)] == ["FINISHED"] * n_finished
    assert len(told) == 2 - n_finished
    assert all(re.search("split (has no events|is too small)", message) for message in told)


def test_truth_of_another_population_is_told_before_a_run_is_opened(dataset: MedsDataset, local_store: Path) -> None:
    config = with_labels(dataset, local_store, lambda subjects: subjects)
    pl.DataFrame({"subject_id": [1, 2], "risk": [0.1, 0.2]}).write_parquet(local_store / "truth.parquet")
    for recipe in (finetune, baseline):
        with pytest.raises(DataError, match=r"truth.parquet lacks \d+ of \d+ test subjects"):
            recipe(config)
    assert search_runs("simulated", status=None) == []


def test_truth_without_signal_is_left_out(dataset: MedsDataset, local_store: Path) -> None:
    config = with_labels(dataset, local_store, lambda subjects: subjects)
    subjects = pl.read_parquet(local_store / "labels.parquet").select("subject_id", risk=pl.lit(0.5))
    subjects.write_parquet(local_store / "truth.parquet")
    with undrawn():
        baseline(config)
    assert "no better than chance" in left_out(only_run(), local_store)["oracle"]


def test_negative_controls_without_test_events_to_judge_by_are_told_before_training(
    dataset: MedsDataset, local_store: Path
) -> None:
    config = with_labels(dataset, local_store, few_events("test", 2), negative_controls={"n_subjects": 0, "epochs": 1})
    with pytest.raises(
        DataError, match=r"negative controls are judged on the .* 2 events: .* raise negative_controls.n_subj"
    ):
        negative_controls(config)
    assert not [name for name in list_artifacts(only_run().run_id) if name.startswith("plots")]


def test_a_landmark_that_few_outlive_has_a_line_with_the_reason(dataset: MedsDataset, local_store: Path) -> None:
    with undrawn():
        run = baseline(with_labels(dataset, local_store, few_events("test", 2)))
    table = pl.read_csv(download(landmarks(run.run_id, [0]).run_id, "landmarks.csv", local_store))
    line = table.row(0, named=True)
    assert line["c_index_lower"] is None
    assert "c_index_interval: " in line["left_out"]
    assert line["ibs"] > 0
