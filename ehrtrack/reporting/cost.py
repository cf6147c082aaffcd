"""What each configuration costs, and what that buys."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import polars as pl

from ehrtrack import plots
from ehrtrack.reporting import charts
from ehrtrack.reporting.document import Chart, Column, Row, Section, Table
from ehrtrack.reporting.material import Material, mean, scores, spread

SECONDS, SECONDS_PER_HOUR = "cost/train_seconds", 3600


def cost_section(material: Material) -> Section:
    """Parameters, megabytes, time and money of each configuration, and the metric against two of them."""
    charts_ = [
        _against(material, "n_trainable", "trainable parameters"),
        _against(material, "seconds", "training time (seconds)"),
    ]
    return Section("cost", "Cost", (_cost_table(material), *(chart for chart in charts_ if chart)))


def _cost_table(material: Material) -> Table:
    settings, frame = material.settings, material.table
    shown = {
        "n_parameters": ("total", ",.0f", "parameters"),
        "n_trainable": ("trainable", ",.0f", "parameters"),
        "checkpoint_mb": ("full model", ",.2f", "MB"),
        "adapter_mb": ("adapter", ",.2f", "MB"),
        "peak_memory_mb": ("peak memory", ",.0f", "MB"),
        "tokens_per_second": ("tokens/s", ",.0f", ""),
        "tflops_per_second": ("TFLOP/s of the model", ".3g", "device"),
        "utilisation": ("of its peak", ".1%", "device"),
        "gpu_busy": ("busy", ".0%", "device"),
        "joules": ("energy (J)", ",.0f", "device"),
        "seconds": ("training (s)", ",.1f", "time"),
        "hours": ("run (h)", ",.3f", "time"),
        "cost": (f"cost ({settings.currency})", ",.3f", ""),
    }
    of_device = [name for name, (_, _, group) in shown.items() if group == "device"]
    unknown = [name for name in of_device if name in frame.columns and frame[name].is_null().all()]
    present = [name for name in shown if name in frame.columns and name not in unknown]
    columns = [
        Column(title, _number(name, form), is_right=True, group=group)
        for name, (title, form, group) in shown.items()
        if name in present
    ]
    return Table(
        "cost",
        "What one repeat of a configuration costs: means of the repeats.",
        frame.select("configuration", *present),
        (Column("configuration", lambda row: row["configuration"]), *columns),
        notes=tuple(_notes(material)),
    )


def _notes(material: Material) -> Iterator[str]:
    price, currency = material.settings.price_per_hour, material.settings.currency
    seconds = [record.metrics[SECONDS] for record in material.pretrainings if SECONDS in record.metrics]
    if seconds:
        n, of_price = (
            len(seconds),
            "" if price is None else f", {sum(seconds) / SECONDS_PER_HOUR * price:,.2f} {currency}",
        )
        what = "A pretraining is" if n == 1 else f"{n} pretrainings are"
        yield f"{what} shared by the runs that start from it, and not counted here: {sum(seconds):,.0f} s{of_price}."
    if price is None:
        yield "The study's file names no price_per_hour, so there is no cost in money."


def _number(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: "" if row[name] is None else format(row[name], form)


def _against(material: Material, name: str, title: str) -> Chart | None:
    """The metric against a cost; None where fewer than two configurations have both."""
    metric = material.metric
    points, errors = {}, {}
    costs = dict(zip(material.table["configuration"], material.table[name], strict=True))
    for one in map(material.of, material.beside_best):
        x, y = costs.get(one.label), mean(scores(one, metric))
        if x and y is not None:
            points[one.label] = (x, y)
            errors[one.label] = spread(scores(one, metric)) or 0.0
    if len(points) < 2:
        return None
    labels = list(points)
    costs_shown, scores_shown = ([point[axis] for point in points.values()] for axis in (0, 1))
    front = [labels[place] for place in plots.pareto_front(costs_shown, scores_shown, metric)]
    shown = material.table.filter(pl.col("configuration").is_in(labels))
    quantity = f"test {metric.title}"
    return Chart(
        f"score_by_{name}",
        f"Test {metric.title} (mean ± SD) by {title}; the line joins those that no cheaper one beats."
        f"{material.at_labels}",
        lambda: plots.performance_plot(shown, metric, cost=name, title=title),
        charts.scatter(
            points,
            x=title,
            y=quantity,
            colours=charts.styles([one.label for one in material.configurations]),
            front=front,
            errors=errors,
            tick_format="~s" if name == "n_trainable" else "~g",
        ),
        height=440,
    )
