"""What recipes make of labels of classes, beside runs and searches that are of time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from simulated import study_values

from ehrtrack import plugins
from ehrtrack.config import parse_config
from ehrtrack.errors import ConfigError
from ehrtrack.evaluation.benchmark import RunRow, benchmark_table, best_by_validation, reference_model, to_markdown
from ehrtrack.evaluation.metric_table import AUROC
from ehrtrack.recipes import landmarks as landmarks_module
from ehrtrack.recipes.compare import judged_otherwise
from ehrtrack.recipes.landmarks import landmarks
from ehrtrack.runlog import Task
from ehrtrack.study.search import meant


def row(name: str, task: Task = "classes", **scores: float) -> RunRow:
    metrics = {key.replace("_of_", "/"): value for key, value in scores.items()}
    return RunRow(run_id=name, kind="baseline", model=name, cohort_fingerprint="c", metrics=metrics, task=task)


SCORES = {"test_of_auroc_lower": 0.6, "test_of_auroc_upper": 0.9, "test_of_brier": 0.1, "test_of_ibs": 0.2}


def test_classes_are_chosen_by_auroc_and_shown_by_their_own_columns() -> None:
    rows = [
        row("logistic", kept_of_auroc=0.7, test_of_auroc=0.8, kept_of_c_index=0.9, **SCORES),
        row("lasso", kept_of_auroc=0.8, test_of_auroc=0.7, kept_of_c_index=0.1, **SCORES),
    ]
    assert best_by_validation(rows).model == "lasso"
    assert reference_model(rows) == "logistic"
    table = benchmark_table(rows)
    assert table["model"].to_list() == ["lasso", "logistic"]
    assert table["test_ibs"].null_count() == 2  # of another task, whatever a run logged
    header = to_markdown(table, reference="logistic", metric=AUROC).splitlines()[0]
    assert "test AUROC (95 % interval)" in header
    assert "test Brier score" in header
    assert "IBS" not in header


def test_a_survival_run_shows_no_brier_score_of_classes() -> None:
    table = benchmark_table([row("cox", "survival", kept_of_c_index=0.7, test_of_brier=0.1, test_of_ibs=0.2)])
    assert table["test_brier"].null_count() == 1
    assert table["test_ibs"].to_list() == [0.2]


def test_runs_of_classes_from_before_they_had_measures_are_left_out_beside_others() -> None:
    old, new = row("old", "survival"), row("new")
    assert set(judged_otherwise([old, new])) == {"old"}
    assert judged_otherwise([old]) == judged_otherwise([new]) == {}


def test_a_search_that_nobody_asked_for_leaves_out_what_the_objective_has_not(tmp_path: Path) -> None:
    config = parse_config(study_values(tmp_path, tmp_path, strategy={"name": "lora"}))
    classes = plugins.settings("objectives", "classification")()
    settled = config.model_copy(update={"objective": classes})
    assert "objective.lambda_rank" in config.search.parameters
    assert "objective.lambda_rank" not in meant(config, settled).search.parameters
    assert meant(config, config) is config
    asked = {"parameters": {"objective.lambda_rank": {"low": 0.1, "high": 0.2}}}
    said = parse_config(study_values(tmp_path, tmp_path, strategy={"name": "lora"}, search=asked))
    assert meant(said, settled) is said


def test_landmarks_of_a_model_of_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fetched:
        folder, run_id = Path("model"), "r1"

    class Loaded:
        folder = SimpleNamespace(has_classes=True)

    monkeypatch.setattr(landmarks_module, "fetch_model", lambda model, folder: Fetched)
    monkeypatch.setattr(landmarks_module, "load_predictor", lambda folder: Loaded)
    with pytest.raises(ConfigError, match="model of run r1 tells whether the outcome comes and not when"):
        landmarks("r1", [0, 365])
