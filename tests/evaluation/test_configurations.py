"""Repeats become configurations; which of them are compared, and what their table shows."""

from __future__ import annotations

import pytest
from repeated import repeat

from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.evaluation.pairs import asked_pairs, pairs_to_reference
from ehrtrack.evaluation.repeats import Repeat, best_configurations_first, configurations
from ehrtrack.evaluation.study_table import study_markdown, study_table
from ehrtrack.study.settings import Comparison

LORA_4 = {"strategy.name": "lora", "strategy.rank": 4, "model.size": "small"}
LORA_8 = {"strategy.name": "lora", "strategy.rank": 8, "model.size": "small"}
FULL = {"strategy.name": "full", "model.size": "small"}
SCRATCH = {"strategy.name": "scratch", "model.size": "small"}
COX = {"baseline.name": "cox"}


def labelled(settings: dict[str, object], n_labels: int | str) -> dict[str, object]:
    return {**settings, "cohort.n_labels": n_labels}


def labels(*settings: dict[str, object]) -> list[str]:
    return [of.label for of in configurations([repeat(one) for one in settings])]


def test_seeds_and_splits_are_repeats_of_one_configuration() -> None:
    runs = [repeat(settings, split=split, seed=seed) for settings in (LORA_8, COX) for split in "xy" for seed in (0, 1)]
    lora, cox = configurations(runs)
    assert (len(lora.repeats), lora.n_splits, lora.n_seeds) == (4, 2, 2)
    assert [of.is_transformer for of in (lora, cox)] == [True, False]


def test_a_label_has_what_differs_and_no_more() -> None:
    assert labels(LORA_8, FULL, COX) == ["lora", "full", "cox"]
    assert labels(LORA_4, LORA_8, COX) == ["lora r4", "lora r8", "cox"]
    larger = {**LORA_8, "model.size": "large"}
    assert labels(LORA_8, larger, COX) == ["lora · small", "lora · large", "cox"]
    assert labels(labelled(LORA_8, 512), labelled(LORA_8, "all"), labelled(COX, 512), COX) == [
        "lora · 512 labels",
        "lora · all labels",
        "cox · 512 labels",
        "cox · all labels",
    ]
    slower = {**FULL, "train.lr": 0.001, "strategy.embeddings": True}
    assert labels({**FULL, "train.lr": 0.01, "strategy.embeddings": False}, slower) == [
        "full · lr 0.01 · no embeddings",
        "full · lr 0.001 · embeddings",
    ]
    assert labels(LORA_4 | {"strategy.dora": False}, LORA_8 | {"strategy.dora": True}) == ["lora r4", "dora r8"]


def test_settings_of_one_name_are_told_apart_by_more_words_of_their_paths() -> None:
    first = {**FULL, "train.dropout": 0.1, "model.dropout": 0.2}
    assert labels(first, {**first, "train.dropout": 0.3, "model.dropout": 0.4}) == [
        "full · train dropout 0.1 · model dropout 0.2",
        "full · train dropout 0.3 · model dropout 0.4",
    ]


def test_a_run_whose_settings_do_not_name_its_model_is_called_by_it() -> None:
    row = RunRow("a", "finetune", "behrt", "c", strategy="lora r8")
    (found,) = configurations([Repeat(row, {}, 0, 100, 50)])
    assert found.label == "lora r8"


def test_the_best_is_by_the_mean_over_repeats_and_not_by_the_luckiest_seed() -> None:
    lucky = [repeat(LORA_8, seed=seed, kept=score) for seed, score in enumerate((0.60, 0.61, 0.80))]
    steady = [repeat(FULL, seed=seed, kept=0.69) for seed in range(3)]
    assert [of.label for of in best_configurations_first(configurations([*lucky, *steady]))] == ["full", "lora"]


def test_few_labels_with_lucky_validation_subjects_are_not_the_best_of_a_label_curve() -> None:
    lucky = repeat(labelled(LORA_8, 128), kept=0.80, n_train=128)
    others = [repeat(labelled(of, 2048), kept=kept, n_train=2048) for of, kept in ((COX, 0.71), (FULL, 0.74))]
    found = best_configurations_first(configurations([lucky, *others]))
    assert [of.label for of in found] == ["full · 2,048 labels", "cox · 2,048 labels", "lora · 128 labels"]


def test_the_reference_has_the_same_number_of_labels() -> None:
    found = configurations([repeat(labelled(settings, n)) for settings in (LORA_8, COX) for n in (128, 512)])
    pairs = pairs_to_reference(found, {"baseline": {"name": "cox"}})
    assert [(pair.this.label, pair.to.label) for pair in pairs] == [
        ("lora · 128 labels", "cox · 128 labels"),
        ("lora · 512 labels", "cox · 512 labels"),
    ]
    few = [of for of in found if "cox · 128" not in of.label]
    assert [pair.to.label for pair in pairs_to_reference(few, {"baseline": {"name": "cox"}})] == ["cox · 512 labels"]


def test_of_several_references_the_best_by_validation_is_taken() -> None:
    runs = [repeat(COX), repeat(LORA_4, kept=0.6), repeat(LORA_8, kept=0.7)]
    (pair,) = pairs_to_reference(configurations(runs), {"strategy": {"name": "lora"}})
    assert (pair.this.label, pair.to.label) == ("cox", "lora r8")


def test_a_question_asks_for_all_pairs_that_are_alike_in_the_rest() -> None:
    large = {"model.size": "large"}
    found = configurations([repeat(one) for one in (LORA_4, LORA_8, FULL, SCRATCH, {**SCRATCH, **large}, COX)])
    pays = Comparison(question="Does pretraining pay?", this={"strategy": "full"}, to={"strategy": "scratch"})
    assert [(pair.this.label, pair.to.label) for pair in asked_pairs(found, pays)] == [
        ("full · small", "scratch · small")
    ]
    ranks = Comparison(question="Which?", this={"strategy": "lora"}, to={"strategy": "full"})
    assert [pair.this.label for pair in asked_pairs(found, ranks)] == ["lora r4 · small", "lora r8 · small"]


def test_the_table_has_means_deviations_sizes_and_costs() -> None:
    costs = {"cost__total_seconds": 1800.0, "cost__train_seconds": 1700.0, "cost__adapter_mb": 0.3}
    costs |= {"cost__checkpoint_mb": 3.1, "train__memory_mb": 812.0}
    runs = [repeat(LORA_8, seed=seed, test=test, **costs) for seed, test in enumerate((0.70, 0.72, 0.77))]
    table = study_table(configurations([*runs, repeat(COX, test=0.6, kept=0.5)]), price_per_hour=3.0)
    lora, cox = table.iter_rows(named=True)
    assert (lora["configuration"], lora["n_repeats"], lora["n_splits"], lora["n_seeds"]) == ("lora", 3, 1, 3)
    assert lora["test_c_index"] == pytest.approx(0.73)
    assert lora["test_c_index_sd"] == pytest.approx(0.0013**0.5)  # (.03² + .01² + .04²) / 2
    assert (lora["adapter_mb"], lora["checkpoint_mb"], lora["peak_memory_mb"]) == (0.3, 3.1, 812.0)
    assert (lora["seconds"], lora["hours"], lora["cost"]) == (1700.0, 0.5, 1.5)
    assert (cox["test_c_index"], cox["test_c_index_sd"], cox["cost"], cox["adapter_mb"]) == (0.6, None, None, None)
    text = study_markdown(table, currency="EUR").splitlines()
    assert "cost EUR" in text[0]
    assert "0.730 (0.036)" in text[2]
    assert "IBS" not in text[0]


def test_metrics_of_another_task_are_no_columns_of_a_run() -> None:
    row = RunRow("a", "baseline", "logistic", "c", metrics={"test/auroc": 0.7, "test/ibs": 0.1}, task="classes")
    table = study_table(configurations([Repeat(row, {}, 0, 100, 50)]))
    assert (table["test_auroc"][0], table["test_ibs"][0]) == (0.7, None)


def test_a_terminal_gets_the_main_columns_and_a_page_all() -> None:
    row = RunRow("a", "baseline", "cox", "c", metrics={"test/c_index": 0.7, "test/uno_c": 0.69, "train/memory_mb": 9.0})
    table = study_table(configurations([Repeat(row, {}, 0, 100, 50)]))
    page, terminal = (study_markdown(table, is_short=is_short).splitlines()[0] for is_short in (False, True))
    assert {"peak memory MB", "test C-index (sd)"} <= {title.strip() for title in page.split("|")}
    assert [title.strip() for title in terminal.split("|")[1:-1]] == ["configuration", "n", "test C-index (sd)"]
