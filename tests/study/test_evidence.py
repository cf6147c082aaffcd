"""Results of studies by the number of labels, as `ehrtrack advise` goes by them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ehrtrack.errors import DataError
from ehrtrack.study.evidence import Result, Setting, best_baselines, nearest, read_results, standings


def result(study: str, model: str, n_labels: int, c_index: float, *, is_baseline: bool = False) -> Result:
    return Result(study, model, is_baseline, n_labels, 5, c_index, 1.0)


def test_of_each_study_the_number_of_labels_that_is_nearest_by_its_ratio_counts() -> None:
    results = [result("a", "full", n, 0.7) for n in (128, 512)] + [result("b", "full", 2_000, 0.7)]
    assert [setting.n_labels for setting in nearest(results, 250)] == [128, 2_000]
    assert [setting.n_labels for setting in nearest(results, 260)] == [512, 2_000]


def test_a_network_stands_by_its_mean_shortfall_to_the_best_network_of_each_study_that_had_it() -> None:
    settings = nearest(
        [
            result("a", "cox", 100, 0.80, is_baseline=True),
            result("a", "full", 100, 0.70),
            result("a", "lora r8", 100, 0.60),
            result("b", "full", 100, 0.90),
            result("b", "cox", 100, 0.86, is_baseline=True),
            result("b", "lasso", 100, 0.88, is_baseline=True),
        ],
        100,
    )
    assert [(one.result.model, round(one.shortfall, 6), one.n_studies) for one in standings(settings)] == [
        ("full", 0.0, 2),
        ("lora r8", 0.1, 1),
    ]
    assert [baseline.model for baseline in best_baselines(settings)] == ["cox", "lasso"]
    assert settings[1].to_line() == "b, 100 labels: lasso .880, full .900"


def test_what_one_study_in_three_had_is_not_ranked_beside_what_all_had() -> None:
    settings = nearest([result(study, "full", 100, 0.7) for study in "abc"] + [result("a", "bitfit", 100, 0.9)], 100)
    assert [one.result.model for one in standings(settings)] == ["full"]


def test_of_several_rates_of_a_network_the_best_counts() -> None:
    one = [result("a", "full", 100, c_index) for c_index in (0.6, 0.8, 0.7)]
    (standing,) = standings(nearest([*one, result("a", "frozen", 100, 0.5)], 100))[:1]
    assert (standing.result.model, standing.shortfall, standing.n_studies) == ("full", 0.0, 1)


def test_the_projects_own_results_say_how_each_network_is_asked_for() -> None:
    """A name alone does not: frozen means a head that is solved for in one study, and a trained one in another."""
    networks = [result for result in read_results() if not result.is_baseline]
    by_study = {(result.study, result.model): result for result in networks}
    few = by_study["icu_hypotension", "frozen · head ridge · encoder summaries"]
    assert (few.settings["strategy.head"], few.pretraining) == ("ridge", "forecast")
    assert ("icu_hypotension", "frozen") not in by_study
    assert "strategy.head" not in by_study["strategies", "frozen"].settings


def test_a_study_without_a_network_names_its_baseline_alone() -> None:
    only = Setting((result("a", "cox", 100, 0.8, is_baseline=True),))
    assert only.best(is_baseline=False) is None
    assert only.to_line() == "a, 100 labels: cox .800"


def test_the_first_place_that_has_results_is_read(tmp_path: Path) -> None:
    table = tmp_path / "wheel" / "demo" / "results" / "tables" / "main.csv"
    table.parent.mkdir(parents=True)
    header = "configuration,kind,n_repeats,n_train,test_c_index,seconds,settings,pretraining"
    told = {
        "ridge · features values · 512 labels,baseline,5,1024.0,0.75,1.5": ({"baseline.name": "ridge"}, ""),
        "full · lr 0.0001 · all labels,finetune,5,1024.0,0.7,60": (
            {"strategy.name": "full", "strategy.head": "ridge", "model.encoder": "summaries", "train.lr": 1e-4},
            "forecast",
        ),
        "classes only,finetune,5,1024.0,,60": ({}, ""),
        "scratch · embeddings factorised · 128 labels,finetune,5,128.0,0.61,60": (
            {"strategy.name": "scratch", "init.embeddings": "data/embeddings"},
            "",
        ),
    }
    with table.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(header.split(","))
        writer.writerows([*line.split(","), json.dumps(of), pretraining] for line, (of, pretraining) in told.items())
    ridge, full = read_results([tmp_path / "nothing", tmp_path / "wheel"])  # and none that needs a folder
    assert (ridge.study, ridge.model, ridge.n_labels) == ("demo", "ridge · features values", 1024)
    assert ridge.settings == {"baseline.name": "ridge"}
    assert (full.model, full.pretraining) == ("full · head ridge · encoder summaries", "forecast")
    assert full.settings["train.lr"] == 1e-4
    with pytest.raises(DataError, match="no results of studies in"):
        read_results([tmp_path / "nothing"])
