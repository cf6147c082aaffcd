"""A sensitivity analysis: one setting at several values, and how discrimination and calibration depend on it.

Discrimination and calibration can pull apart: a loss that ranks subjects better may state worse probabilities.
DeepHit (Lee et al. 2018) adds such a loss; Kvamme et al. 2019 (J Mach Learn Res 20(129)) find its concordance high and
its Brier scores poor. Whether it is so is seen only where both are on one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ehrtrack.evaluation.benchmark import verdict_of
from ehrtrack.evaluation.metric_table import AUROC, CLASSES, TIMED_TASKS, Entry, interval_text, shown, with_bounds
from ehrtrack.runlog import TEST
from ehrtrack.search_space import Scalar
from ehrtrack.survival.resampling import Interval

SHOWN = sorted(shown("sensitivity"), key=lambda entry: entry.split != TEST)
"""What test subjects say, then what validation subjects do."""


def _column(entry: Entry, name: str) -> str:
    """The column of a metric or of a bound: those of test subjects do not name the split."""
    return name.removeprefix(f"{TEST}/") if entry.split == TEST else f"val_{entry.metric.key}"


MEASURES = {_column(entry, name): name for entry in SHOWN for name in entry.names}
"""Columns of the table, and the metrics of a run that they are."""


@dataclass(frozen=True)
class Point:
    """A run at one value.

    Attributes
    ----------
    value : the value of the setting
    run_id : the run with this value
    metrics : metrics of the run, by name
    difference : test C-index of the run minus that of the run at the first value, on the same subjects; None at the
        first value

    Examples
    --------
    >>> Point(value=0.1, run_id="a", metrics={"test/c_index": 0.7}).difference is None
    True
    """

    value: Scalar
    run_id: str
    metrics: Mapping[str, float]
    difference: Interval | None = None


def sensitivity_table(points: Sequence[Point]) -> pl.DataFrame:
    """One line a value, in the order given: the columns of `MEASURES`, the paired difference and its verdict.

    A measure that a run could not have is null.

    Examples
    --------
    >>> points = [
    ...     Point(0.0, "a", {"test/c_index": 0.70, "test/ibs": 0.12}),
    ...     Point(0.5, "b", {"test/c_index": 0.71, "test/ibs": 0.15}, Interval(0.01, -0.01, 0.03)),
    ... ]
    >>> sensitivity_table(points).select("value", "c_index", "ibs", "difference", "verdict").rows()
    [('0.0', 0.7, 0.12, None, ''), ('0.5', 0.71, 0.15, 0.01, 'no difference')]
    """
    lines = []
    for point in points:
        line: dict[str, object] = {"value": str(point.value)}
        line |= {column: point.metrics.get(metric) for column, metric in MEASURES.items()}
        difference = point.difference
        line |= {
            "difference": difference and difference.estimate,
            "difference_lower": difference and difference.lower,
            "difference_upper": difference and difference.upper,
            "verdict": verdict_of(difference) if difference else "",
            "run_id": point.run_id,
        }
        lines.append(line)
    numbers = {name: pl.Float64 for name in (*MEASURES, "difference", "difference_lower", "difference_upper")}
    return pl.DataFrame(lines, schema_overrides=numbers)


def conclusion(table: pl.DataFrame, parameter: str) -> str:
    """The conclusion from a table of `sensitivity_table`, in one to three sentences.

    Examples
    --------
    >>> first = Point(0.0, "a", {"test/c_index": 0.70, "test/ibs": 0.12})
    >>> second = Point(0.5, "b", {"test/c_index": 0.74, "test/ibs": 0.15}, Interval(0.04, 0.01, 0.07))
    >>> said, error = conclusion(sensitivity_table([first, second]), "objective.lambda_rank").split(". ")
    >>> print(said)
    C-index higher than at objective.lambda_rank = 0.0, by an interval that excludes 0, at: 0.5
    >>> print(error)
    The integrated Brier score is 0.1200 at 0.0 and at most 0.1500, at 0.5.
    """
    first = table.row(0, named=True)
    better = table.filter(pl.col("verdict") == "better")
    worse = table.filter(pl.col("verdict") == "worse")
    said = (
        f"C-index higher than at {parameter} = {first['value']}, by an interval that excludes 0, at: "
        f"{', '.join(better['value'])}."
        if better.height
        else f"No value has a C-index shown to be higher than that at {parameter} = {first['value']}."
    )
    if worse.height:
        said += f" It is lower at: {', '.join(worse['value'])}."
    if first["auroc"] is not None:
        return said.replace("C-index", AUROC.title)
    if first["ibs"] is None:
        return f"{said} The integrated Brier score has no value at {first['value']}."
    highest_ibs = table.sort("ibs", nulls_last=False).row(-1, named=True)
    return (
        f"{said} The integrated Brier score is {first['ibs']:.4f} at {first['value']} and at most "
        f"{highest_ibs['ibs']:.4f}, at {highest_ibs['value']}."
    )


def to_markdown(table: pl.DataFrame, parameter: str) -> str:
    """The table of `sensitivity_table` as Markdown.

    Examples
    --------
    >>> table = sensitivity_table([Point(0.0, "a", {"test/c_index": 0.70, "test/ibs": 0.12})])
    >>> print(to_markdown(table, "strategy.rank").splitlines()[2])
    | 0.0 | 0.700 |  |  | 0.1200 |  |  |  |
    """
    of_task = shown("sensitivity", CLASSES if table["auroc"].count() else TIMED_TASKS)
    first, *others = [entry for entry in SHOWN if entry in of_task]
    titles = [parameter, first.title(), "difference (95 % interval)", "verdict", *(entry.title() for entry in others)]
    lines = [" | ".join(titles), " | ".join("---" for _ in titles)]
    for row in table.iter_rows(named=True):
        difference = interval_text(row, *with_bounds("difference"), form="+.3f")
        cells = [row["value"], _cell(row, first), difference, row["verdict"], *(_cell(row, entry) for entry in others)]
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def _cell(row: Mapping[str, Any], entry: Entry) -> str:
    return interval_text(row, *(_column(entry, name) for name in entry.names), form=entry.metric.form)
