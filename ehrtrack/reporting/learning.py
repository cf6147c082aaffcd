"""How networks learned: the metric by which they are chosen, epoch by epoch."""

from __future__ import annotations

import polars as pl

from ehrtrack import plots
from ehrtrack.reporting import charts
from ehrtrack.reporting.document import Chart, Section
from ehrtrack.reporting.material import Material


def learning_section(material: Material) -> Section | None:
    """A learning curve of each configuration that had epochs; None where none had two."""
    table = material.learning
    if table is None or table["epoch"].n_unique() < 2:
        return None
    metric = material.metric
    quantity = f"validation {metric.title}"
    chart = Chart(
        "learning_curves",
        f"{metric.title} of validation subjects after each epoch, the mean of the repeats as far as all of them "
        f"have the epoch.{material.at_labels}",
        lambda: plots.learning_curves(table, quantity=quantity),
        charts.lines(
            mean_curves(table),
            x="epoch",
            y=quantity,
            colours=charts.styles([one.label for one in material.configurations]),
            hover="epoch %{x:.0f}: %{y:.3f}",
        ),
    )
    return Section("learning", "Learning curves", (chart,))


def mean_curves(table: pl.DataFrame) -> dict[str, tuple[list[float], list[float]]]:
    """Epochs and means of each configuration, as far as all of its repeats have the epoch.

    Parameters
    ----------
    table : configuration, repeat, epoch, value

    Examples
    --------
    >>> rows = [("full", 0, 1, 0.6), ("full", 0, 2, 0.7), ("full", 1, 1, 0.5)]
    >>> mean_curves(pl.DataFrame(rows, schema=["configuration", "repeat", "epoch", "value"], orient="row"))
    {'full': ([1.0], [0.55])}
    """
    found = {}
    for (label,), rows in table.group_by("configuration", maintain_order=True):
        by_epoch = rows.group_by("epoch").agg(pl.col("value").mean(), pl.len()).sort("epoch")
        whole = by_epoch.filter(pl.col("len") == rows["repeat"].n_unique())
        found[str(label)] = (whole["epoch"].cast(pl.Float64).to_list(), whole["value"].to_list())
    return found
