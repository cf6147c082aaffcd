"""What was measured on one split: numbers, tables, and what has no value with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import polars as pl

from ehrtrack.errors import NotMeasurable
from ehrtrack.evaluation.metric_table import METRICS, interval_text, with_bounds
from ehrtrack.survival.resampling import Interval

Value = TypeVar("Value")


@dataclass
class Report:
    """The measures of one split: numbers, intervals and tables, and the reasons of the measures without a value.

    Attributes
    ----------
    metrics : numbers by key, without the split; of an interval the estimate, and its bounds as ``_lower``, ``_upper``
    intervals : the intervals among the metrics, by key
    tables : tables by name
    left_out : by the measure's name, the reason why it has no value

    Examples
    --------
    >>> report = Report()
    >>> report.add({"c_index": Interval(0.7, 0.6, 0.8), "ici": 0.02})
    >>> sorted(report.metrics), report.text("c_index")
    (['c_index', 'c_index_lower', 'c_index_upper', 'ici'], '0.700 [0.600, 0.800]')
    """

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def measure(self, name: str, compute: Callable[[], Value]) -> Value | None:
        """What `compute` gives; None where it has no value on these subjects, which is left out with its reason."""
        try:
            return compute()
        except NotMeasurable as reason:
            self.left_out[name] = str(reason)
            return None

    def include(self, measure: str, compute: Callable[[], Found]) -> None:
        """Add what `compute` gives, if it has a value on these subjects."""
        self.add(self.measure(measure, compute) or {})

    def add(self, found: Found) -> None:
        """Add numbers and intervals to the metrics, tables to the tables; of a report all that it has."""
        if isinstance(found, Report):
            self.metrics |= found.metrics
            self.intervals |= found.intervals
            self.tables |= found.tables
            self.left_out |= found.left_out
            return
        for name, value in found.items():
            if isinstance(value, pl.DataFrame):
                self.tables[name] = value
            elif isinstance(value, Interval):
                self.intervals[name] = value
                self.metrics |= value.to_metrics(name)
            else:
                self.metrics[name] = value

    def prefixed(self, prefix: str) -> Report:
        """The numbers and the reasons under names that begin with a prefix."""
        return Report(
            metrics={f"{prefix}{name}": value for name, value in self.metrics.items()},
            left_out={f"{prefix}{name}": reason for name, reason in self.left_out.items()},
        )

    def text(self, key: str) -> str:
        """A metric of the table as a run's description has it: with its interval, or why it has none."""
        metric, value = METRICS[key], self.metrics.get(key)
        if value is None:
            return f"none ({self.left_out[key]})"
        missing = self.left_out.get(f"{key}_interval")
        if missing is not None:
            return f"{value:{metric.form}} (no interval: {missing})"
        return interval_text(self.metrics, *with_bounds(key), form=metric.form)

    def left_out_table(self) -> pl.DataFrame:
        """Columns measure, reason."""
        rows = {"measure": list(self.left_out), "reason": list(self.left_out.values())}
        return pl.DataFrame(rows, schema={"measure": pl.String, "reason": pl.String})


Values = Mapping[str, float | Interval | pl.DataFrame]
Found = Values | Report
"""What a measure gives: values by key, or a report where some of them may have no value."""
