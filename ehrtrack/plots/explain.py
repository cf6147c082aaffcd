"""Figures of explanations: one subject's record along time, and the codes that carry the risk of a cohort."""

from __future__ import annotations

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrtrack.plots.style import BLUE, DPI, GREY, INK, RED, dress

RAISES, LOWERS = RED, BLUE
LONGEST_LABEL = 44
DAYS_PER_YEAR, YEARS_FROM_DAYS = 365.25, 1100.0
"""Records that are longer are shown in years."""


def short(label: str, longest: int = LONGEST_LABEL) -> str:
    """A label that is not longer.

    >>> short("a long description", 9)
    'a long d…'
    """
    return label if len(label) <= longest else label[: longest - 1] + "…"


def time_axis(days: list[float]) -> tuple[float, str]:
    """What days before the prediction time are divided by, and what the axis is called.

    >>> time_axis([20.0, 400.0])
    (1.0, 'days before the prediction')
    """
    if max(days, default=0.0) > YEARS_FROM_DAYS:
        return DAYS_PER_YEAR, "years before the prediction"
    return 1.0, "days before the prediction"


def timeline_plot(codes: pl.DataFrame, occurrences: pl.DataFrame, visits: pl.DataFrame, *, scale: str) -> Figure:
    """When codes with large contributions were written, beside these; and below, the contribution of each visit.

    Parameters
    ----------
    codes : label and contribution, from top to bottom
    occurrences : label and days before the prediction; a code without any is a static fact
    visits : days and contribution
    scale : what contributions are of
    """
    n_codes = codes.height
    figure = Figure(figsize=(11.5, 2.6 + 0.34 * n_codes), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(2.2, 1), height_ratios=(0.34 * n_codes + 0.5, 1.5))
    written, weights, by_visit = (figure.add_subplot(grid[place]) for place in ((0, 0), (0, 1), (1, 0)))
    unit, axis = time_axis(occurrences["days"].to_list() + visits["days"].to_list())
    labels, contributions = codes["label"].to_list(), codes["contribution"].to_list()
    for y, (label, contribution) in enumerate(zip(labels, contributions, strict=True)):
        days = occurrences.filter(pl.col("label") == label)["days"] / unit
        colour = _colour(contribution)
        if len(days):
            written.plot(days, [y] * len(days), "o", color=colour, markersize=5.5, alpha=0.75, markeredgewidth=0)
        else:
            written.annotate(
                "static", (0.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=GREY
            )
        weights.barh(y, contribution, color=colour, height=0.6)
    written.set_yticks(range(n_codes), [short(label).replace("$", r"\$") for label in labels])
    weights.set_yticks([])
    for ax in (written, weights):
        ax.set_ylim(n_codes - 0.4, -0.6)
    weights.axvline(0, color=GREY, linewidth=1)
    written.grid(axis="y", color="#EEEEEE", linewidth=0.8)
    dress(written, "When it was written", grid_axis="x")
    dress(weights, f"Contribution to the {scale}", grid_axis="x")
    _stems(by_visit, visits, unit)
    by_visit.set_xlabel(axis)
    by_visit.sharex(written)
    written.tick_params(axis="x", labelbottom=False)
    if not written.xaxis_inverted():
        written.invert_xaxis()
    key = figure.add_subplot(grid[1, 1])
    key.axis("off")
    for y, (colour, words) in enumerate(((RAISES, "raises the predicted risk"), (LOWERS, "lowers it"))):
        key.plot(0.02, 0.75 - 0.28 * y, "s", color=colour, markersize=8, transform=key.transAxes)
        key.text(0.07, 0.75 - 0.28 * y, words, transform=key.transAxes, va="center", fontsize=9, color=INK)
    return figure


def _stems(ax: Axes, visits: pl.DataFrame, unit: float) -> None:
    colours = [_colour(contribution) for contribution in visits["contribution"]]
    ax.vlines(visits["days"] / unit, 0, visits["contribution"], color=colours, linewidth=2)
    ax.axhline(0, color=GREY, linewidth=1)
    dress(ax, "Contribution of each visit")


def _colour(contribution: float) -> str:
    return RAISES if contribution > 0 else LOWERS


def contributions_plot(table: pl.DataFrame, *, scale: str) -> Figure:
    """Two panels: how far contributions of codes set subjects apart, and their mean where a subject has the code.

    Parameters
    ----------
    table : label, and of `evaluation.contributions.summarise_contributions` spread and mean with their bounds
    scale : what contributions are of
    """
    figure = Figure(figsize=(11.5, 1.5 + 0.34 * max(table.height, 1)), dpi=DPI, layout="constrained")
    size, effect = figure.subplots(1, 2, sharey=True)
    y = list(range(table.height))
    size.hlines(y, table["spread_lower"], table["spread_upper"], color=GREY, linewidth=2)
    size.plot(table["spread"], y, "o", color=INK, markersize=6)
    colours = [_colour(value) for value in table["mean_contribution"]]
    effect.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
    effect.hlines(y, table["mean_contribution_lower"], table["mean_contribution_upper"], color=colours, linewidth=2)
    effect.scatter(table["mean_contribution"], y, c=colours, s=36, zorder=3)
    labels = [short(label).replace("$", r"\$") for label in table["label"]]
    size.set_yticks(y, labels)
    size.set_ylim(table.height - 0.4, -0.6)
    size.set_xlim(left=0)
    size.set_xlabel(f"standard deviation of the contribution to the {scale}")
    effect.set_xlabel("mean contribution, subjects who have the code")
    dress(size, "What sets subjects apart", grid_axis="x")
    dress(effect, "Which way it works", grid_axis="x")
    for ax in (size, effect):
        ax.tick_params(axis="y", length=0)
    return figure
