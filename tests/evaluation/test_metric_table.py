"""The table of metrics: where each is shown, and what names and columns follow from its row."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from ehrtrack.data.outcomes import Outcomes
from ehrtrack.errors import DataError
from ehrtrack.evaluation import metric_table
from ehrtrack.evaluation.evaluate import evaluate
from ehrtrack.evaluation.metric_table import METRICS, Entry, Metric, Place, chosen_by, names_shown, shown
from ehrtrack.evaluation.split import Context, EvaluationConfig, Split
from ehrtrack.runlog import KEPT, TEST, named
from ehrtrack.survival.time_grid import TimeGrid

ROWS = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


@ROWS
def test_a_metric_is_shown_only_of_splits_on_which_it_is_measured(metric: Metric) -> None:
    assert set(metric.shown) <= set(get_args(Place))
    assert {split for splits in metric.shown.values() for split in splits} <= set(metric.splits)


def test_names_of_what_is_shown_are_those_of_runs_logged_before() -> None:
    of = ("survival", "classification", "pretraining")
    assert names_shown("progress", of) == [
        "train/loss", "val/loss", "val/unigram_loss", "val/mlm_accuracy", "probe/states_r2", "probe/counts_r2",
        "val/c_index", "val/ibs",
    ]  # fmt: skip
    assert names_shown("headline", of) == [
        "val/mlm_loss", "val/unigram_loss", "probe/states_r2", "probe/counts_r2", "kept/c_index", "test/c_index",
        "test/c_index_lower", "test/c_index_upper", "test/ibs",
    ]  # fmt: skip
    assert [entry.name for entry in shown("ui", of)] == ["kept/c_index", "test/c_index", "test/ibs"]


def test_columns_of_a_benchmark_are_those_of_files_logged_before() -> None:
    columns = [column for entry in shown("compare", {"survival", "classification"}) for column in entry.columns]
    assert columns == [
        "val_c_index", "test_c_index", "test_lower", "test_upper", "attainable", "attainable_lower",
        "attainable_upper", "test_ibs",
    ]  # fmt: skip


def test_bounds_are_shown_of_test_subjects_alone() -> None:
    row = {"val_c_index": 0.7, "test_c_index": 0.6, "test_lower": 0.55, "test_upper": None}
    of_kept, of_test = (Entry(METRICS["c_index"], split) for split in (KEPT, TEST))
    assert (of_kept.title(), of_kept.text(row)) == ("val C-index", "0.700")
    assert of_test.title(" of any cause") == "test C-index of any cause (95 % interval)"
    assert of_test.text(row) == "0.600"
    assert of_test.text(row | {"test_upper": 0.65}) == "0.600 [0.550, 0.650]"


def test_a_metric_of_one_split_does_not_name_it() -> None:
    assert Entry(METRICS["attainable"], TEST).title() == "% of attainable (95 % interval)"


def test_the_champion_is_chosen_by_a_metric_of_all_tasks_that_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Metric(key="auc", title="AUC", better="higher", tasks=("classification",), chooses=True)
    monkeypatch.setattr(metric_table, "METRICS", {"auc": first} | METRICS)
    assert chosen_by({"classification"}) is first
    assert chosen_by({"classes"}) is METRICS["auroc"]
    assert chosen_by({"survival"}) is METRICS["c_index"]
    assert chosen_by({"survival", "classification"}) is METRICS["c_index"]
    with pytest.raises(DataError, match="no metric chooses between models of pretraining and survival"):
        chosen_by({"survival", "pretraining"})


@pytest.mark.parametrize(
    ("better", "best_first"),
    [
        ("higher", [1.3, 0.9, 0.1]),
        ("lower", [0.1, 0.9, 1.3]),
        ("nearer 1", [0.9, 1.3, 0.1]),
        ("nearer 0", [0.1, 0.9, 1.3]),
    ],
)
def test_the_direction_says_which_value_is_best(better: metric_table.Better, best_first: list[float]) -> None:
    metric = Metric(key="m", title="M", better=better)
    assert sorted([0.9, 0.1, 1.3], key=metric.shortfall) == best_first


def test_the_evaluator_gives_every_metric_of_an_outcome_that_a_place_shows() -> None:
    """A row without its measure would be a column that is always empty."""
    rng = np.random.default_rng(0)
    risk = rng.uniform(0.1, 0.6, 400)
    came = Outcomes(np.minimum(rng.exponential(60 / risk), 100.0), rng.random(400) < 0.5)
    split = Split(np.stack([np.ones(400), 1 - risk], axis=1), TimeGrid((0.0, 100.0)), came, came)
    config = EvaluationConfig(n_resamples=20, recalibration="none", conformal_coverage=0)
    kept = evaluate(split, Context(config, 0))
    tested = evaluate(split, Context(config, 0, validation=split, true_risk=1 / came.follow_up_days))
    found = named(KEPT, kept.metrics) | named(TEST, tested.metrics)
    wanted = {
        name for place in get_args(Place) for name in names_shown(place, {"survival"}) if name.startswith((KEPT, TEST))
    }
    assert wanted - set(found) == set()


def test_the_evaluator_gives_every_metric_of_classes_and_none_of_time() -> None:
    rng = np.random.default_rng(0)
    risk = rng.uniform(0.1, 0.9, 400)
    came = Outcomes(np.ones(400), rng.random(400) < risk)
    split = Split(np.stack([np.ones(400), 1 - risk], axis=1), TimeGrid((0.0, 1.0)), came, came)
    config = EvaluationConfig(n_resamples=20)
    kept = evaluate(split, Context(config, 0), task="classes")
    tested = evaluate(split, Context(config, 0, validation=split), task="classes")
    found = named(KEPT, kept.metrics) | named(TEST, tested.metrics)
    wanted = {name for place in get_args(Place) for name in names_shown(place, {"classes"})}
    assert {name for name in wanted if name.startswith((KEPT, TEST))} - set(found) == set()
    assert tested.left_out == kept.left_out == {}
    assert not [name for name in found if "c_index" in name or "ibs" in name or "kaplan" in name]
    assert all("horizon_days" not in table.columns for table in tested.tables.values())
