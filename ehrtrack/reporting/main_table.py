"""The main table: a line a configuration, with the mean of each metric over its repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ehrtrack.evaluation.metric_table import METRICS, Entry, Metric
from ehrtrack.reporting.comparison import INTERVAL, TONES, interval_text
from ehrtrack.reporting.document import Column, Prose, Row, Section, Table
from ehrtrack.reporting.material import Material
from ehrtrack.runlog import KEPT, TEST


def results_section(material: Material) -> Section:
    """Scores of all configurations, the best by validation first, and their differences to the reference."""
    frame, metric = material.table, material.metric
    others = [one for one in METRICS.values() if one is not metric]
    table = Table(
        "main",
        "Configurations, the best by validation first: mean ± SD of their repeats. The table of costs "
        "has their costs, and the file of this one both.",
        frame,
        (
            Column("configuration", lambda row: row["configuration"]),
            Column("n", lambda row: str(row["n_repeats"]), is_right=True),
            *_scores(material, TEST, f"test {metric.title}", [metric]),
            *_differences(material, f"test {metric.title}"),
            *_scores(material, TEST, "test subjects", others),
            *_scores(material, KEPT, "validation", [metric, *others]),
        ),
        notes=(
            "n: finished repeats (seeds and splits). The order is by validation subjects; test subjects choose "
            "nothing. SD is that of repeats: it says how far chance in training and splitting reaches.",
        ),
    )
    n_repeats = frame["n_repeats"].unique().to_list()
    said = (
        ""
        if len(n_repeats) == 1
        else "Not all configurations have as many repeats: one that draws nothing at random is run once a split. "
    )
    said += (
        ""
        if max(n_repeats, default=0) > 1
        else "Each configuration was run once, so nothing says how far chance reaches."
    )
    return Section("results", "Results", (*([Prose((said.strip(),))] if said else []), table))


def _scores(material: Material, split: str, group: str, metrics: Sequence[Metric]) -> Iterator[Column]:
    """A column for each metric of a split that the frame has."""
    for metric in metrics:
        name = next(iter(Entry(metric, split).columns))
        if name in material.table.columns and f"{name}_sd" in material.table.columns:
            title = "mean ± SD" if group.endswith(metric.title) else metric.title
            yield Column(title, _mean(name, metric), is_right=True, group=group)


def _mean(name: str, metric: Metric) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        if row[name] is None:
            return ""
        around = row[f"{name}_sd"]
        return format(row[name], metric.form) + (
            "" if around is None else f" ± {format(around, metric.form.lstrip('+'))}"
        )

    return text


def _differences(material: Material, group: str) -> Iterator[Column]:
    """To the reference, in the metric of choice."""
    if not any(not difference.question for difference in material.differences):
        return
    yield Column(f"to the reference {INTERVAL}", _difference, is_right=True, group=group)
    yield Column(
        "finding", lambda row: row["finding"] or "", group=group, tone=lambda row: TONES.get(row["finding"], "plain")
    )


def _difference(row: Row) -> str:
    return "" if row["difference"] is None else interval_text(row)
