from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrtrack import plots
from ehrtrack.errors import DataError
from ehrtrack.plots import ForestRow
from ehrtrack.survival.calibration import calibration_table
from ehrtrack.survival.resampling import Interval

HISTORY = [
    {
        "train/loss": 1 / epoch,
        "val/loss": 1.2 / epoch,
        "val/c_index": 0.7 - 0.1 / epoch,
        "val/ibs": 0.1 + 0.05 / epoch,
        "val/mlm_loss": 3 + 1 / epoch,
        "val/unigram_loss": 4.0,
        "val/mlm_accuracy": 0.4,
    }
    for epoch in (1, 2, 3)
]
TRIVIAL = {"val/mlm_loss": "val/unigram_loss"}
RISK = np.linspace(0.05, 0.6, 60)
DAYS = np.concatenate([np.arange(1.0, 31.0), np.full(30, 365.0)])
EVENT = np.arange(60) % 3 == 0
ATTRITION = pl.DataFrame(
    {"step": ["subjects in the dataset", "has an index date"], "n_subjects": [2694, 830], "n_dropped": [0, 1864]}
)
SPLITS = pl.DataFrame(
    {
        "split": ["train", "validation", "test"],
        "n_subjects": ["600", "115", "115"],
        "n_events": ["60", "23", "<11"],
        "event_rate": [0.1, 0.2, None],
    }
)


def rendered(figure: Figure) -> bytes:
    """PNG of the figure; warnings of the drawing are errors here."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


FIGURES = {
    "loss": lambda: plots.loss_curves(HISTORY, kept_epoch=2),
    "metric": lambda: plots.metric_curves(HISTORY),
    "beside trivial": lambda: plots.losses_beside_trivial(HISTORY, TRIVIAL, kept_epoch=3),
    "one epoch": lambda: plots.loss_curves(HISTORY[:1]),
    "calibration": lambda: plots.calibration_plot(
        calibration_table(RISK, DAYS, EVENT, horizon_days=365, n_groups=4), horizon_days=365
    ),
    "kaplan-meier": lambda: plots.kaplan_meier_by_risk(RISK, DAYS, EVENT),
    "kaplan-meier without events": lambda: plots.kaplan_meier_by_risk(RISK, DAYS, np.zeros(60, bool)),
    "kaplan-meier of tied risks": lambda: plots.kaplan_meier_by_risk(np.ones(60), DAYS, EVENT, n_groups=4),
    "attrition": lambda: plots.attrition_flow(ATTRITION, SPLITS),
    "attrition without splits": lambda: plots.attrition_flow(ATTRITION),
    "comparison": lambda: plots.comparison_plot([ForestRow("cox", 0.6, 0.55, 0.65)]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_without_a_warning(name: str) -> None:
    png = rendered(FIGURES[name]())
    assert png.startswith(b"\x89PNG")
    assert len(png) > 5_000


def test_no_figure_is_kept_alive_by_pyplot() -> None:
    figures = [draw() for draw in FIGURES.values()]
    assert figures
    assert pyplot.get_fignums() == []


def test_curves_show_the_history_by_epoch_from_one() -> None:
    ax = plots.loss_curves(HISTORY, kept_epoch=2).axes[0]
    training, validation, kept = ax.get_lines()
    np.testing.assert_allclose(training.get_xydata(), [[1, 1], [2, 0.5], [3, 1 / 3]])
    np.testing.assert_allclose(validation.get_ydata(), [1.2, 0.6, 0.4])
    assert kept.get_label() == "kept: epoch 2"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")


def test_a_pretraining_loss_is_shown_beside_the_trivial_predictors() -> None:
    (ax,) = plots.losses_beside_trivial(HISTORY, TRIVIAL).axes
    model, unigram = ax.get_lines()
    assert (model.get_label(), unigram.get_label()) == ("model", "unigram loss")
    assert list(model.get_ydata()) == [row["val/mlm_loss"] for row in HISTORY]
    assert list(unigram.get_ydata()) == [4.0, 4.0, 4.0]


def test_a_metric_that_was_never_logged_is_named() -> None:
    with pytest.raises(DataError, match=r"no epoch has the metric 'val/ibs'; there are: val/c_index"):
        plots.metric_curves([{"val/c_index": 0.6}])


def test_an_epoch_of_classes_without_an_auroc_is_named() -> None:
    with pytest.raises(DataError, match=r"no epoch has the metric 'val/auroc'; there are: val/brier"):
        plots.metric_curves([{"val/brier": 0.2}])


def test_of_classes_the_brier_score_is_drawn() -> None:
    history = [{"val/auroc": 0.6, "val/brier": 0.2}, {"val/auroc": 0.7, "val/brier": 0.1}]
    ax = plots.metric_curves(history).axes[1]
    assert ax.get_title(loc="left") + ax.get_title() == "Brier score, validation (lower is better)"
    assert ax.lines[0].get_ydata().tolist() == [0.2, 0.1]  # type: ignore[union-attr]


def test_calibration_shows_predicted_against_observed() -> None:
    table = calibration_table(RISK, DAYS, EVENT, horizon_days=365, n_groups=4)
    ax = plots.calibration_plot(table, horizon_days=365).axes[0]
    points = ax.containers[0].lines[0].get_xydata()  # type: ignore[attr-defined]
    np.testing.assert_allclose(points, table.select("predicted", "observed").to_numpy())
    assert ax.get_xlabel() == "mean predicted risk at 365 days"


def test_numbers_at_risk_are_counted_from_follow_up() -> None:
    figure = plots.kaplan_meier_by_risk(RISK, DAYS, EVENT, n_groups=2)
    curves, counts = figure.axes
    assert [text.get_text() for text in curves.get_legend().get_texts()] == [  # type: ignore[union-attr]
        "low risk (n = 30)",
        "high risk (n = 30)",
    ]
    at_start = [text.get_text() for text in counts.texts if text.get_position()[0] == 0]
    at_60 = [text.get_text() for text in counts.texts if text.get_position()[0] == 60]
    assert at_start == ["30", "30"]
    assert at_60 == ["0", "30"]  # the first thirty left by day 30
    at_20 = [text.get_text() for text in counts.texts if text.get_position()[0] == 20]
    assert at_20 in ([], ["<11", "30"])  # 11 of them follow 10


def test_flow_states_who_is_left_dropped_and_in_each_split() -> None:
    found = texts(plots.attrition_flow(ATTRITION, SPLITS).axes[0])
    assert "2,694 subjects" in found
    assert "1,864 dropped" in found
    assert "validation\n115 subjects" in found
    assert "23 events (20.0%)" in found
    assert "<11 events" in found


def test_forest_plot_lists_models_from_top_to_bottom() -> None:
    rows = [ForestRow("lora", 0.7, 0.66, 0.74, is_highlighted=True), ForestRow("cox", 0.6, 0.55, 0.65)]
    ax = plots.comparison_plot(rows).axes[0]
    heights = dict(zip((label.get_text() for label in ax.get_yticklabels()), ax.get_yticks(), strict=True))
    assert heights["lora"] > heights["cox"]
    assert "0.700 [0.660, 0.740]" in texts(ax)


def test_an_empty_comparison_is_refused() -> None:
    with pytest.raises(DataError, match="no rows to compare"):
        plots.comparison_plot([])


def test_too_many_risk_groups_are_refused() -> None:
    with pytest.raises(DataError, match="9 risk groups; the figure shows 1 to 5"):
        plots.kaplan_meier_by_risk(RISK, DAYS, EVENT, n_groups=9)


def test_landmark_plot_shows_every_landmark_and_the_c_index_of_all() -> None:
    table = pl.DataFrame(
        {
            "landmark_days": [0.0, 365.0],
            "c_index": [0.70, 0.72],
            "c_index_lower": [0.68, 0.69],
            "c_index_upper": [0.72, 0.75],
            "ibs": [0.10, 0.09],
            "ibs_kaplan_meier": [0.12, 0.11],
        }
    )
    c_index, ibs = plots.landmark_plot(table, Interval(0.705, 0.69, 0.72)).axes
    assert c_index.lines[0].get_ydata()[0] == 0.705
    assert list(c_index.lines[-1].get_xydata()[:, 1]) == [0.70, 0.72]
    assert [list(line.get_ydata()) for line in ibs.lines] == [[0.12, 0.11], [0.10, 0.09]]
