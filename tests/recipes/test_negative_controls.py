"""Negative controls on the real pipeline: each passes, and fails when what it guards is taken out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulated import Population, study, write_dataset

from ehrtrack.config import RunConfig
from ehrtrack.data import visits as visits_module
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.histories import Histories
from ehrtrack.data.twins import FUTURE_CODE, LEAK_CODE, scrambled_future, unchanged, write_twin
from ehrtrack.errors import DataError
from ehrtrack.recipes import negative_controls as recipe
from ehrtrack.recipes.negative_controls import (
    Twin,
    Twins,
    _inside,
    _judge_future,
    _permuted,
    _require_none_failed,
    negative_controls,
)
from ehrtrack.tracking.client.queries import get_run
from ehrtrack.training import sanity
from ehrtrack.training.ranks import join_ranks

pytestmark = pytest.mark.usefixtures("undrawn_figures")


def configuration(data: Path, cache: Path, **controls: int) -> RunConfig:
    train = {"batch_tokens": 256, "lr": 1e-2}
    return study(data, cache, strategy={"name": "scratch"}, train=train, negative_controls={"n_subjects": 0} | controls)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "meds", Population(n_subjects=400, hazard_ratio=20.0)).path


@pytest.fixture
def twins(data: Path, tmp_path: Path) -> Twins:
    return twins_of(data, tmp_path)


def twins_of(data: Path, folder: Path) -> Twins:
    config = configuration(data, folder, epochs=3, leak_epochs=1)
    dataset = open_dataset(data)
    assert config.cohort is not None
    cohort = build_cohort(dataset, config.cohort, config.data.split)
    return Twins(_inside(config, folder), dataset, cohort, None, join_ranks("cpu"), folder)


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    twins = twins_of(data, tmp_path_factory.mktemp("plain"))
    return twins.train(twins.records("plain", unchanged))


def permuted_verdict(twin: Twin) -> str:
    return sanity.permuted_labels(twin.score(), twin.score(level=sanity.SURE)).state


def test_with_permuted_labels_the_c_index_is_one_half_within_its_interval(plain: Twin, twins: Twins) -> None:
    found = twins.train(_permuted(plain.records)).score()
    assert found.lower < 0.5 < found.upper


def test_without_the_permutation_that_control_fails(plain: Twin) -> None:
    assert plain.score().lower > 0.6
    assert permuted_verdict(plain) == "fail"


def test_permuted_outcomes_stay_in_their_split_and_are_all_there(plain: Twin) -> None:
    before, after = plain.records.outcomes, _permuted(plain.records).outcomes
    for rows in plain.records.rows.values():
        assert sorted(before.follow_up_days[rows]) == sorted(after.follow_up_days[rows])
        assert before.is_event[rows].sum() == after.is_event[rows].sum()
    assert (before.follow_up_days != after.follow_up_days).mean() > 0.9


def test_with_another_future_no_risk_moves(plain: Twin, twins: Twins) -> None:
    verdict = _judge_future(plain, twins.records("future", scrambled_future))
    assert verdict.state == "ok"
    assert "0 of 50 test risks moved, by 0.000 at most" in verdict.reason


def test_without_the_cutoff_that_control_fails(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything(events: Histories, cutoffs: pl.DataFrame, _delay_hours: object) -> np.ndarray:
        return np.isin(events.subject_id, cutoffs["subject_id"])

    monkeypatch.setattr(visits_module, "is_known", everything)
    twin = twins.train(twins.records("plain", unchanged))
    verdict = _judge_future(twin, twins.records("future", scrambled_future))
    assert verdict.state == "fail"


def test_negative_controls_of_a_sound_run_pass_and_are_tagged(data: Path, local_store: Path) -> None:
    """The whole recipe; the planted leak is learned by its own twin."""
    run = negative_controls(configuration(data, local_store / "cache", epochs=1))
    record = get_run(run.run_id)
    assert record.tags["sanity.control_permuted"] in ("ok", "warn")  # one seed in twenty has chance outside of 95 %
    assert record.tags["sanity.control_future"] == "ok"
    assert record.tags["sanity.control_planted"] == "ok"
    assert record.metrics["negative_controls/planted_c_index"] > sanity.PLANTED_C_INDEX
    assert (
        record.metrics["negative_controls/permuted_c_index_lower"]
        < record.metrics["negative_controls/permuted_c_index_upper"]
    )
    assert "#### Sanity: " in record.tags["mlflow.note.content"]
    assert (record.kind, record.params["negative_controls.epochs"]) == ("negative-controls", "1")
    assert record.params["runtime.threads"] == "1"  # the number it took
    assert not list((local_store / "cache").glob("controls-*"))  # records of subjects do not stay behind


def test_a_leak_that_was_dropped_on_the_way_fails_its_control(twins: Twins) -> None:
    scored = twins.train(twins.records("planted", unchanged, is_new=True), is_new=True).score_of_time()
    verdict = sanity.planted_leak(scored)
    assert verdict.state == "fail"
    assert "no leak would be" in verdict.reason
    with pytest.raises(DataError, match=r"1 of 1 negative controls failed; do not trust .* control_planted"):
        _require_none_failed([verdict])


def events_of(dataset: MedsDataset, labels: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events up to the index dates, and after them."""
    dated = dataset.scan().collect().join(labels.select("subject_id", "prediction_time"), on="subject_id")
    is_after = (pl.col("time") > pl.col("prediction_time")).fill_null(False)
    order = ["subject_id", "time", "code"]
    return dated.filter(~is_after).sort(order), dated.filter(is_after).sort(order)


def test_twins_differ_from_the_run_where_they_should_and_nowhere_else(twins: Twins, tmp_path: Path) -> None:
    labels, changes = twins.labels, {"as_is": unchanged, "future": scrambled_future, "leak": twins.leak}
    written = {name: write_twin(twins.dataset, labels, tmp_path / name, change) for name, change in changes.items()}
    past, future = events_of(written["as_is"], labels)
    scrambled_past, scrambled = events_of(written["future"], labels)
    assert scrambled_past.equals(past)
    n_events = labels["is_event"].sum()
    assert scrambled.filter(pl.col("code") == FUTURE_CODE).height == n_events
    assert scrambled.height == future.height // 2 + n_events
    leaked_past, leaked_future = events_of(written["leak"], labels)
    assert leaked_future.equals(future)
    leaks = leaked_past.filter(pl.col("code").str.starts_with(LEAK_CODE)).join(labels, on="subject_id")
    assert leaked_past.height == past.height + n_events
    assert leaks["is_event"].all()
    by_leak = (
        leaks.group_by("code")
        .agg(pl.col("follow_up_days").min().alias("first"), pl.col("follow_up_days").max().alias("last"))
        .sort("code")
    )
    assert by_leak.height == 8
    assert (by_leak["last"][:-1] < by_leak["first"][1:]).all()  # the code tells the order in time


def test_small_negative_controls_take_some_of_the_subjects(data: Path, tmp_path: Path) -> None:
    config = configuration(data, tmp_path, n_subjects=100)
    assert config.cohort is not None
    cohort = build_cohort(open_dataset(data), config.cohort, config.data.split)
    sampled = recipe._sample(cohort, config).subjects
    assert sampled.height == 100
    assert sampled["subject_id"].is_sorted()
    assert sampled.join(cohort.subjects, on=cohort.subjects.columns).height == 100
