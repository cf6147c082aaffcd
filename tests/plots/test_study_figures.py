"""Figures of a study; `EHRTRACK_FIGURES=FOLDER` writes them there, to be looked at."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ehrtrack import plots
from ehrtrack.errors import DataError
from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.evaluation.differences import differences_over_repeats
from ehrtrack.evaluation.label_curve import label_curves, label_efficiency
from ehrtrack.evaluation.metric_table import C_INDEX, IBS
from ehrtrack.evaluation.pairs import Questions
from ehrtrack.evaluation.repeats import Configuration, Repeat, configurations
from ehrtrack.evaluation.study_table import study_table

NUMBERS = (128, 512, 2048)
MODELS = {  # trainable parameters, seconds, and the C-index with 128, 512 and 2,048 labels
    "cox": (91, 2.0, (0.61, 0.66, 0.71)),
    "frozen": (1_268, 4.0, (0.66, 0.68, 0.69)),
    "lora": (65_780, 60.0, (0.65, 0.70, 0.74)),
    "full": (679_412, 80.0, (0.62, 0.69, 0.735)),
}


def found() -> list[Configuration]:
    repeats = []
    for name, (n_trainable, seconds, scores) in MODELS.items():
        for n_labels, score in zip(NUMBERS, scores, strict=True):
            for split in range(5):
                value = score + 0.004 * np.sin(3 * split + n_trainable) + 0.01 * np.cos(split)
                metrics = {"kept/c_index": score, "test/c_index": value, "cost/train_seconds": seconds}
                metrics |= {"cohort/n_train_events": n_labels / 8}
                is_cox = name == "cox"
                row = RunRow(
                    run_id=f"{name} {n_labels} {split}",
                    kind="baseline" if is_cox else "finetune",
                    model="cox" if is_cox else "behrt",
                    strategy="" if is_cox else name,
                    cohort_fingerprint=f"{split} {n_labels}",
                    n_trainable=n_trainable,
                    metrics=metrics,
                )
                settings = {"baseline.name" if is_cox else "strategy.name": name, "cohort.n_labels": n_labels}
                repeats.append(Repeat(row, settings, 0, n_labels, 500, n_pool=2048))
    return configurations(repeats)


def predictions(noise: float) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400)
    days = rng.exponential(400 * np.exp(-truth))
    risk = 1 / (1 + np.exp(-truth - rng.normal(scale=noise, size=400)))
    return pl.DataFrame({"follow_up_days": np.minimum(days, 365), "is_event": days < 365, "risk": risk})


def epochs() -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "configuration": name,
                "repeat": repeat,
                "epoch": epoch,
                "value": 0.7 - 0.1 * speed / epoch + 0.004 * repeat,
            }
            for name, speed in (("frozen", 0.4), ("lora", 1.0), ("full", 1.6))
            for repeat in range(3)
            for epoch in range(1, 6 + repeat)
        ]
    )


GROUPS = pl.DataFrame({"predicted": [0.1, 0.3], "observed": [0.1, 0.4], "lower": [0.05, 0.3], "upper": [0.2, 0.5]})
DIFFERENCES = [one for one in differences_over_repeats(found(), {}, Questions({"baseline.name": "cox"})) if one.margin]
FIGURES = {
    "label_curve": lambda: plots.label_curve_plot(label_curves(found()), label_efficiency(found())),
    "performance": lambda: plots.performance_plot(
        study_table(found()), C_INDEX, cost="n_trainable", title="trainable parameters"
    ),
    "learning": lambda: plots.learning_curves(epochs(), quantity="validation C-index"),
    "calibration": lambda: plots.calibration_panels(
        {"lora": GROUPS, "full · 2,048 labels": GROUPS, "cox": GROUPS, "$": GROUPS}
    ),
    "kaplan_meier": lambda: plots.kaplan_meier_panels({"lora": predictions(0.3), "cox": predictions(2.0)}),
    "differences": lambda: plots.differences_plot(DIFFERENCES),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_of_a_study_draws_without_a_warning(name: str) -> None:
    buffer = io.BytesIO()
    FIGURES[name]().savefig(buffer, format="png")
    if "EHRTRACK_FIGURES" in os.environ:
        Path(os.environ["EHRTRACK_FIGURES"], f"{name}.png").write_bytes(buffer.getvalue())
    assert 5_000 < len(buffer.getvalue()) < 500_000


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in figure.axes[0].lines
    }


def test_a_label_curve_has_the_means_and_marks_where_the_target_is_reached() -> None:
    curves, needed = label_curves(found()), label_efficiency(found())
    drawn = lines(plots.label_curve_plot(curves, needed))
    assert drawn["lora"][0] == [128, 512, 2048]
    assert drawn["lora"][1] == curves.filter(model="lora")["score"].to_list()
    marked = needed.filter("is_reached")["n_labels"].to_list()
    assert len(marked) == 2  # lora and full; frozen does not come so far
    assert any(x == marked for x, _ in drawn.values())


def test_of_many_models_the_best_network_and_the_best_baseline_have_a_band() -> None:
    rows = [
        {"model": f"{kind} {n}", "n_labels": k, "score": 0.6 + 0.01 * n, "sd": 0.01, "is_transformer": kind == "lora"}
        for kind, most in (("lora", 4), ("cox", 2))
        for n in range(most)
        for k in (128, 512)
    ]
    few = pl.DataFrame(rows).with_columns(metric=pl.lit("c_index"))
    many = pl.concat([few, few.filter(model="lora 0").with_columns(model=pl.lit("lora 00"))])
    assert [len(plots.label_curve_plot(curves).axes[0].collections) for curves in (few, many)] == [6, 2]
    ax = plots.label_curve_plot(many).axes[0]
    colours = {line.get_label(): to_rgb(line.get_color()) for line in ax.lines}
    banded = {tuple(band.get_facecolor()[0][:3]) for band in ax.collections}
    assert banded == {colours["lora 3"], colours["cox 1"]}
    assert "of the best network and the best baseline" in ax.get_title(loc="left")


def test_the_front_leaves_out_what_something_cheaper_equals() -> None:
    assert plots.pareto_front([1, 2, 3, 4], [0.6, 0.6, 0.7, 0.65], C_INDEX) == [0, 2]
    assert plots.pareto_front([1, 2, 2], [0.12, 0.11, 0.10], IBS) == [0, 2]  # of errors the lower is the better


def test_the_mean_of_learning_curves_ends_where_the_first_repeat_does() -> None:
    assert lines(plots.learning_curves(epochs(), quantity="C-index"))["full"][0] == [1, 2, 3, 4, 5]


def test_a_difference_that_was_not_tested_is_listed_without_a_point() -> None:
    runs = [
        Repeat(RunRow(name, "baseline", name, name, metrics={"test/c_index": 0.7}), {}, 0, 100, 50)
        for name in ("gru", "cox")
    ]
    (one,) = differences_over_repeats(configurations(runs), {}, Questions({"baseline.name": "cox"}))
    figure = plots.differences_plot([one])
    assert [text.get_text() for text in figure.axes[0].texts] == ["not tested"]
    assert len(figure.axes[0].lines) == 1  # at 0


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(DataError, match="no differences to show"):
        plots.differences_plot([])
    with pytest.raises(DataError, match="there are no configurations with cost to draw"):
        plots.performance_plot(study_table(found()), C_INDEX, cost="cost", title="cost")
