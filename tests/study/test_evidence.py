"""Results of studies by the number of labels, as `ehrtrack advise` goes by them."""

from __future__ import annotations

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


def test_a_study_without_a_network_names_its_baseline_alone() -> None:
    only = Setting((result("a", "cox", 100, 0.8, is_baseline=True),))
    assert only.best(is_baseline=False) is None
    assert only.to_line() == "a, 100 labels: cox .800"


def test_the_first_place_that_has_results_is_read(tmp_path: Path) -> None:
    table = tmp_path / "wheel" / "demo" / "results" / "tables" / "main.csv"
    table.parent.mkdir(parents=True)
    table.write_text(
        "configuration,kind,n_repeats,n_train,test_c_index,seconds\n"
        "ridge · features values · 512 labels,baseline,5,1024.0,0.75,1.5\n"
        "full · all labels,finetune,5,1024.0,0.7,60\n"
        "classes only,finetune,5,1024.0,,60\n"
        "scratch · embeddings none · 128 labels,finetune,5,128.0,0.6,60\n"
        "scratch · embeddings factorised · 128 labels,finetune,5,128.0,0.61,60\n"
    )
    ridge, full, scratch = read_results([tmp_path / "nothing", tmp_path / "wheel"])
    assert (ridge.study, ridge.model, ridge.n_labels, ridge.settings) == (
        "demo",
        "ridge · features values",
        1024,
        {"baseline.name": "ridge", "baseline.features": "values"},
    )
    assert (scratch.model, scratch.settings) == (
        "scratch",
        {"strategy.name": "scratch"},
    )  # and none that needs a folder
    assert (full.model, full.settings) == ("full", {"strategy.name": "full"})
    with pytest.raises(DataError, match="no results of studies in"):
        read_results([tmp_path / "nothing"])
