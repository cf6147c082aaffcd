"""A study's results in short: a line a configuration, with the mean over its repeats."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import polars as pl

from ehrtrack.evaluation.benchmark import metric_of_choice
from ehrtrack.evaluation.repeats import Repeat
from ehrtrack.runlog import TEST
from ehrtrack.study.labels import labels_of
from ehrtrack.study.results import StudyResults


def summary_table(results: StudyResults) -> pl.DataFrame:
    """Of each configuration its label, its number of repeats, mean and spread of the metric of choice, and seconds."""
    groups = _by_configuration(results.repeats)
    if not groups:
        return pl.DataFrame(schema={"configuration": pl.String, "n": pl.Int64, "mean": pl.Float64, "sd": pl.Float64})
    metric = metric_of_choice([repeat.row for repeat in results.repeats])
    rows = []
    for label, repeats in groups.items():
        scores = [repeat.row.metrics[name] for repeat in repeats if (name := metric.named(TEST)) in repeat.row.metrics]
        seconds = [repeat.row.seconds for repeat in repeats if repeat.row.seconds is not None]
        rows.append(
            {
                "configuration": label,
                "n": len(repeats),
                "mean": statistics.fmean(scores) if scores else None,
                "sd": statistics.stdev(scores) if len(scores) > 1 else None,
                "seconds": statistics.fmean(seconds) if seconds else None,
            }
        )
    schema = {"mean": pl.Float64, "sd": pl.Float64, "seconds": pl.Float64}
    return pl.DataFrame(rows, schema_overrides=schema).sort("mean", descending=True, nulls_last=True)


def _by_configuration(repeats: Sequence[Repeat]) -> dict[str, list[Repeat]]:
    labels = labels_of([repeat.settings for repeat in repeats])
    groups: dict[str, list[Repeat]] = {}
    for label, repeat in zip(labels, repeats, strict=True):
        groups.setdefault(label, []).append(repeat)
    return groups


def to_markdown(table: pl.DataFrame, title: str) -> str:
    """The table for people.

    >>> row = {"configuration": ["cox"], "n": [3], "mean": [0.7], "sd": [0.02], "seconds": [1.0]}
    >>> print(to_markdown(pl.DataFrame(row), "test C-index"))
    | configuration | n | test C-index | seconds |
    |---|---|---|---|
    | cox | 3 | 0.700 ± 0.020 | 1 |
    """
    lines = [f"| configuration | n | {title} | seconds |", "|---|---|---|---|"]
    for row in table.iter_rows(named=True):
        score = "" if row["mean"] is None else f"{row['mean']:.3f}"
        score += "" if row["sd"] is None else f" ± {row['sd']:.3f}"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append(f"| {row['configuration']} | {row['n']} | {score} | {seconds} |")
    return "\n".join(lines)
