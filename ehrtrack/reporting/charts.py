"""Charts of the page, in plotly. Colours and sizes that depend on the reader's screen are the page's (`report.js`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go

# Okabe & Ito's colours, in tones that are seen on white and on black.
COLOURS = ("#1a86c9", "#e08a00", "#0fa47a", "#d4602a", "#9a6fbf", "#c0559a", "#5f8f2f", "#8a8f98")
DASHES = ("solid", "dash", "dot", "dashdot")
GREY = "#8a93a0"


def styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dash of each configuration, the same in all charts.

    >>> styles(["cox", "lora"])["lora"]
    ('#e08a00', 'solid')
    """
    pairs = ((colour, dash) for dash in cycle(DASHES) for colour in COLOURS)
    return dict(zip(labels, pairs, strict=False))


def lines(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    colours: Mapping[str, tuple[str, str]],
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    has_markers: bool = False,
    x_ticks: Sequence[float] = (),
    hover: str = "%{x:.4g}: %{y:.4f}",
    shown: Collection[str] = (),
) -> go.Figure:
    """A line a label, with bands where there are any.

    Parameters
    ----------
    points, bands : label -> x and y; label -> lower and upper end of the band, at the same x
    x, y : titles of the axes
    shown : labels that are shown at first; all if empty. A click in the legend shows the others
    x_ticks : what is marked on a logarithmic x axis; without them it is linear
    """
    figure = base(x, y)
    for label, (xs, ys) in points.items():
        colour, dash = colours[label]
        shared = {"legendgroup": label, "visible": not shown or label in shown}
        if bands and label in bands:
            low, high = bands[label]
            figure.add_scatter(
                x=[*xs, *reversed(xs)],
                y=[*high, *reversed(low)],
                fill="toself",
                fillcolor=_faint(colour),
                mode="lines",
                line={"width": 0},
                hoverinfo="skip",
                **shared,
            )
        figure.add_scatter(
            x=list(xs),
            y=list(ys),
            name=label,
            mode="lines+markers" if has_markers else "lines",
            line={"color": colour, "dash": dash, "width": 2.2},
            marker={"size": 7},
            hovertemplate=f"{hover}<extra>{label}</extra>",
            **shared,
        )
    if x_ticks:
        figure.update_xaxes(type="log", tickvals=list(x_ticks), ticktext=[f"{tick:,.0f}" for tick in x_ticks])
    return figure


def forest(
    rows: Sequence[tuple[str, float, float, float, str]], *, x: str, at: float | None, margin: float = 0.0
) -> go.Figure:
    """Estimates with intervals, the first on top.

    Parameters
    ----------
    rows : label, estimate, lower, upper, colour
    at : where the line of no effect is; None for none
    margin : of equivalence on either side of it, shaded
    """
    figure = base(x, "")
    labels = [row[0] for row in rows]
    if at is not None:
        figure.add_shape(
            type="line", x0=at, x1=at, y0=0, y1=1, yref="paper", line={"dash": "dot", "width": 1.4}, layer="below"
        )
    if at is not None and margin:
        figure.add_shape(
            type="rect",
            x0=at - margin,
            x1=at + margin,
            y0=0,
            y1=1,
            yref="paper",
            fillcolor="rgba(138,147,160,.16)",
            line={"width": 0},
            layer="below",
        )
    for label, estimate, lower, upper, colour in rows:
        figure.add_scatter(
            x=[estimate],
            y=[label],
            mode="markers",
            marker={"color": colour, "size": 10},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [upper - estimate],
                "arrayminus": [estimate - lower],
                "color": colour,
                "thickness": 2.2,
                "width": 0,
            },
            hovertemplate=f"%{{y}}: %{{x:.3f}} [{lower:.3f}, {upper:.3f}]<extra></extra>",
        )
    ends = [end for row in rows for end in row[2:4]] + ([] if at is None else [at - margin, at + margin])
    pad = 0.04 * (max(ends) - min(ends))
    figure.update_xaxes(range=[min(ends) - pad, max(ends) + pad])
    figure.update_yaxes(
        categoryorder="array", categoryarray=labels[::-1], showgrid=False, range=[-0.6, len(labels) - 0.4]
    )
    figure.update_layout(margin={"l": 10, "r": 16, "t": 8, "b": 44})
    return figure


def scatter(
    points: Mapping[str, tuple[float, float]],
    *,
    x: str,
    y: str,
    colours: Mapping[str, tuple[str, str]],
    front: Sequence[str],
    errors: Mapping[str, float],
    tick_format: str = "~s",
) -> go.Figure:
    """A point a label, on a logarithmic x axis, with a line along those that no other beats.

    Parameters
    ----------
    front : labels on the Pareto front, from left to right
    errors : label -> standard deviation of y
    tick_format : of the x axis, in the language of d3
    """
    figure = base(x, y)
    figure.add_scatter(
        x=[points[label][0] for label in front],
        y=[points[label][1] for label in front],
        mode="lines",
        line={"color": GREY, "dash": "dot", "width": 1.4, "shape": "hv"},
        hoverinfo="skip",
        name="not beaten by a cheaper one",
    )
    for label, (at_x, at_y) in points.items():
        figure.add_scatter(
            x=[at_x],
            y=[at_y],
            mode="markers",
            name=label,
            marker={"size": 11, "color": colours[label][0], "line": {"width": 1, "color": "rgba(255,255,255,.7)"}},
            error_y={"type": "data", "array": [errors.get(label, 0.0)], "thickness": 1.4, "width": 0},
            hovertemplate=f"%{{x:,.4~g}}: %{{y:.3f}}<extra>{label}</extra>",
        )
    figure.update_xaxes(type="log", dtick=1, tickformat=tick_format, minor={"ticks": "outside", "ticklen": 2})
    return figure


def base(x: str, y: str) -> go.Figure:
    """An empty chart with titled axes; its legend is the page's, which has room for long names on a narrow screen."""
    axis = {"ticks": "outside", "ticklen": 4, "showline": True, "zeroline": False, "title": {"standoff": 8}}
    layout = go.Layout(
        template=None,
        xaxis=axis | {"title": {"text": x, "standoff": 8}},
        yaxis=axis | {"title": {"text": y, "standoff": 8}},
        margin={"l": 56, "r": 16, "t": 10, "b": 48},
        showlegend=False,
        hovermode="closest",
        dragmode=False,
    )
    return go.Figure(layout=layout)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},.15)"
