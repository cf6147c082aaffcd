"""Observed survival of the groups that a model tells apart, by Kaplan and Meier."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import polars as pl

from ehrtrack import plots
from ehrtrack.data.labels import ANY_CAUSE, CAUSE
from ehrtrack.privacy import LEAST_COUNT, count_text
from ehrtrack.reporting import charts
from ehrtrack.reporting.document import Chart, Section
from ehrtrack.reporting.material import MEDIAN, Material
from ehrtrack.survival.calibration import risk_groups
from ehrtrack.survival.kaplan_meier import KaplanMeier

N_GROUPS = 3
N_DAYS = 60
"""Points of a curve: days of single events are not shown."""
COLOURS = (charts.COLOURS[0], charts.COLOURS[1], charts.COLOURS[3])
DASHES = ("solid", "dash", "dot", "dashdot")


def survival_by_risk(predictions: pl.DataFrame, n_groups: int = N_GROUPS) -> pl.DataFrame:
    """Kaplan-Meier survival of groups of rising predicted risk.

    Parameters
    ----------
    predictions : of test subjects, as a run logs them (`evaluation.predictions`)
    n_groups : by quantiles of risk; tied risks share a group

    Returns
    -------
    group, n_subjects, day and survival: a row for each of `N_DAYS` days of each group; without groups so small that
    their number is hidden.

    Examples
    --------
    >>> n = 30
    >>> risks = pl.DataFrame({"risk": [i / n for i in range(n)], "follow_up_days": [float(n - i) for i in range(n)]})
    >>> curves = survival_by_risk(risks.with_columns(is_event=True), n_groups=2)
    >>> curves.group_by("group", maintain_order=True).agg(pl.col("survival").mean().round(2)).rows()
    [('low risk', 0.77), ('high risk', 0.27)]
    """
    if CAUSE in predictions.columns:
        predictions = predictions.filter(pl.col(CAUSE) == ANY_CAUSE)
    risk, follow_up, event = (predictions[name].to_numpy() for name in ("risk", "follow_up_days", "is_event"))
    numbers = risk_groups(risk, n_groups)
    days = np.linspace(0, follow_up.max(), N_DAYS)
    found = []
    for number, name in enumerate(plots.group_labels(int(numbers.max()) + 1)):
        members = numbers == number
        if members.sum() >= LEAST_COUNT:
            of_group = {"day": days, "survival": KaplanMeier.of(follow_up[members], event[members]).at(days)}
            said = (pl.lit(name).alias("group"), pl.lit(int(members.sum())).alias("n_subjects"))
            found.append(pl.DataFrame(of_group).select(*said, "day", "survival"))
    return pl.concat(found) if found else pl.DataFrame(schema=["group", "n_subjects", "day", "survival"])


def survival_section(material: Material) -> Section | None:
    """The best configuration beside its reference; None where neither has predictions of times."""
    if not material.predictions:
        return None
    curves = {label: survival_by_risk(table) for label, table in material.predictions.items()}
    chart = Chart(
        "survival_by_risk",
        "Share of test subjects without the event, in thirds of predicted risk (Kaplan–Meier): "
        f"{' and '.join(curves)}. "
        f"The further apart the lines of one model, the better it tells subjects apart. {MEDIAN}",
        lambda: plots.kaplan_meier_panels(material.predictions),
        _chart(curves),
        height=460,
    )
    return Section("survival", "Survival by predicted risk", (chart,))


def _chart(curves: dict[str, pl.DataFrame]) -> go.Figure:
    figure = charts.base("days since the prediction time", "share without the event")
    for (label, table), dash in zip(curves.items(), DASHES, strict=False):
        for (name, rows), colour in zip(_groups(table), COLOURS, strict=False):
            figure.add_scatter(
                x=rows["day"].to_list(),
                y=rows["survival"].to_list(),
                name=f"{label}: {name}",
                mode="lines",
                line={"color": colour, "dash": dash, "shape": "hv", "width": 2.2},
                hovertemplate=f"day %{{x:.0f}}: %{{y:.3f}}<extra>{label}: {name}</extra>",
            )
    return figure


def _groups(table: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """Each group with its number of subjects, lowest risk first."""
    groups = table.partition_by("group", maintain_order=True)
    return [(f"{rows['group'][0]} (n = {count_text(int(rows['n_subjects'][0]))})", rows) for rows in groups]
