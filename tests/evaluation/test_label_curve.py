"""Label curves, and the number of labels with which a transformer equals the best count baseline."""

from __future__ import annotations

import pytest
from repeated import repeat

from ehrtrack.evaluation.label_curve import label_curves, label_efficiency
from ehrtrack.evaluation.repeats import Repeat, configurations


def runs(name: str, scores: dict[int, float], *, kind: str = "baseline.name", **facts: float) -> list[Repeat]:
    return [
        repeat({kind: name, "cohort.n_labels": n}, split=split, test=score + shift, n_train=n, kept=score, **facts)
        for n, score in scores.items()
        for split, shift in (("x", -0.01), ("y", 0.01))
    ]


COX = runs("cox", {100: 0.60, 400: 0.66, 1600: 0.70})


def test_a_curve_is_of_one_model_over_its_numbers_of_labels() -> None:
    curves = label_curves(configurations([*COX, *runs("lora", {400: 0.7, 100: 0.62}, kind="strategy.name")]))
    assert curves["model"].to_list() == ["cox"] * 3 + ["lora"] * 2
    assert curves["n_labels"].to_list() == [100, 400, 1600, 100, 400]
    assert curves["score"].to_list() == pytest.approx([0.60, 0.66, 0.70, 0.62, 0.70])
    assert curves["sd"].to_list() == pytest.approx([0.02 / 2**0.5] * 5)
    assert curves["n_repeats"].to_list() == [2] * 5


def test_labels_needed_are_interpolated_on_the_logarithm() -> None:
    # .70 lies in the middle of .68 (100) and .72 (400): the root of 100 x 400. An eighth of the labels are events.
    lora = [
        one
        for n, score in {100: 0.68, 400: 0.72}.items()
        for one in runs("lora", {n: score}, kind="strategy.name", cohort__n_train_events=n / 8)
    ]
    (line,) = label_efficiency(configurations([*COX, *lora])).iter_rows(named=True)
    assert (line["n_labels"], line["n_events"]) == (pytest.approx(200), pytest.approx(25))
    assert (line["target"], line["all_labels"], line["is_reached"]) == (pytest.approx(0.70), 1600, True)
    assert line["text"] == "lora equals cox · 1,600 labels (C-index .700) with 200 labels (25 events), 12 % of them"


def test_what_is_not_reached_or_reached_at_once_is_said() -> None:
    low = runs("frozen", {100: 0.60, 1600: 0.69}, kind="strategy.name")
    high = runs("full", {100: 0.71, 1600: 0.80}, kind="strategy.name")
    needed = label_efficiency(configurations([*COX, *low, *high]))
    assert needed["text"].to_list() == [
        "frozen does not equal cox · 1,600 labels (C-index .700) with 1,600 labels, the most that were tried",
        "full equals cox · 1,600 labels (C-index .700) with 100 labels already, the fewest that were tried",
    ]
    assert needed["n_labels"].to_list() == [None, 100]


def test_the_target_is_the_best_count_baseline_by_validation() -> None:
    lucky = [
        repeat({"baseline.name": "lasso", "cohort.n_labels": 1600}, split=split, test=0.9, kept=0.5, n_train=1600)
        for split in "xy"
    ]
    reads_histories = runs("gru", {1600: 0.8})
    lora = runs("lora", {100: 0.6, 1600: 0.75}, kind="strategy.name")
    needed = label_efficiency(configurations([*COX, *lucky, *reads_histories, *lora]))
    assert needed["reference"].to_list() == ["cox · 1,600 labels"]


def test_without_several_numbers_or_a_count_baseline_there_is_nothing_to_tell() -> None:
    lora = runs("lora", {100: 0.6, 1600: 0.75}, kind="strategy.name")
    assert label_efficiency(configurations(lora)).is_empty()
    assert label_efficiency(configurations([*COX[-2:], *lora[-2:]])).is_empty()
    assert label_efficiency([]).is_empty()
