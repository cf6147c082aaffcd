"""What the table of a sensitivity analysis says, from runs made up for it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ehrtrack.evaluation.sensitivity import Point, conclusion, sensitivity_table, to_markdown
from ehrtrack.plots import sensitivity_plot
from ehrtrack.search_space import SensitivityConfig
from ehrtrack.survival.resampling import Interval


def point(value: float, c_index: float, ibs: float, difference: tuple[float, float, float] | None) -> Point:
    metrics = {"test/c_index": c_index, "test/c_index_lower": c_index - 0.03, "test/c_index_upper": c_index + 0.03}
    interval = difference and Interval(*difference)
    return Point(
        value, f"run{value}", metrics | {"test/ibs": ibs, "test/calibration_slope": 1 - value}, interval or None
    )


FLAT = [point(0.0, 0.70, 0.150, None), point(0.5, 0.71, 0.152, (0.01, -0.01, 0.03))]
RISING = [*FLAT, point(1.0, 0.74, 0.190, (0.04, 0.01, 0.07))]


def test_a_gain_is_claimed_only_where_its_interval_excludes_zero() -> None:
    assert conclusion(sensitivity_table(FLAT), "objective.lambda_rank").startswith("No value has a C-index shown")
    said = conclusion(sensitivity_table(RISING), "objective.lambda_rank")
    assert said == (
        "C-index higher than at objective.lambda_rank = 0.0, by an interval that excludes 0, at: 1.0. "
        "The integrated Brier score is 0.1500 at 0.0 and at most 0.1900, at 1.0."
    )


def test_the_table_keeps_the_order_and_leaves_out_what_a_run_lacks() -> None:
    table = sensitivity_table(RISING)
    assert table["value"].to_list() == ["0.0", "0.5", "1.0"]
    assert table["verdict"].to_list() == ["", "no difference", "better"]
    assert table["ici"].null_count() == 3
    second = to_markdown(table, "objective.lambda_rank").splitlines()[3]
    assert second == "| 0.5 | 0.710 [0.680, 0.740] | +0.010 [-0.010, +0.030] | no difference | 0.1520 | 0.50 |  |  |"


def test_the_figure_has_a_panel_for_each_measure_and_a_mark_for_each_value() -> None:
    c_index, ibs, slope = sensitivity_plot(sensitivity_table(RISING), parameter="objective.lambda_rank").axes
    assert [label.get_text() for label in c_index.get_xticklabels()] == ["0.0", "0.5", "1.0"]
    assert list(ibs.lines[0].get_ydata()) == [0.150, 0.152, 0.190]
    assert list(slope.lines[0].get_ydata()) == [1.0, 0.5, 0.0]


def test_one_value_is_no_sensitivity_analysis() -> None:
    with pytest.raises(ValidationError, match="at least 2"):
        SensitivityConfig(values=(0.1,))
