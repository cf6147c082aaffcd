"""How scores depend on the number of labels, and how many a transformer needs to equal a baseline with all of them."""

from __future__ import annotations

import polars as pl

from ehrtrack import plots
from ehrtrack.evaluation.label_curve import label_curves, label_efficiency
from ehrtrack.evaluation.metric_table import number_text
from ehrtrack.reporting import charts
from ehrtrack.reporting.document import Chart, Column, Part, Prose, Row, Section, Table
from ehrtrack.reporting.material import Material


def label_curve_section(material: Material) -> Section | None:
    """The metric by the number of labelled training subjects; None where that is not varied."""
    curves = label_curves(material.configurations)
    if curves["n_labels"].n_unique() < 2 or curves["model"].n_unique() == curves.height:
        return None
    needed = label_efficiency(material.configurations)
    parts: list[Part] = [Prose(tuple(f"{text}." for text in needed["text"]), is_list=True)] if needed.height else []
    parts += [_chart(curves, needed, material), _scores(curves, material)]
    return Section("labels", "Label curve", (*parts, *([_needed_table(needed, material)] if needed.height else [])))


def _chart(curves: pl.DataFrame, needed: pl.DataFrame, material: Material) -> Chart:
    quantity = f"test {material.metric.title}"
    models = {str(model): of_one for (model,), of_one in curves.group_by("model", maintain_order=True)}
    points, bands = {}, {}
    for model, of_one in models.items():
        x, y = of_one["n_labels"].to_list(), of_one["score"]
        sd = of_one["sd"].fill_null(0.0)
        points[model] = (x, y.to_list())
        bands[model] = ((y - sd).to_list(), (y + sd).to_list())
    interactive = charts.lines(
        points,
        x="labelled training subjects",
        y=quantity,
        colours=charts.styles(list(models)),
        bands=bands,
        has_markers=True,
        x_ticks=_apart(sorted(set(curves["n_labels"]))),
        hover="%{x:,.0f} labels: %{y:.3f}",
    )
    target = ""
    if needed.height:
        height = needed["target"][0]
        interactive.add_shape(
            type="line",
            x0=0,
            x1=1,
            xref="paper",
            y0=height,
            y1=height,
            line={"dash": "dot", "width": 1.2},
            layer="below",
        )
        target = f" Dotted: {needed['reference'][0]}."
    return Chart(
        "label_curve",
        f"Test {material.metric.title} by the number of labelled training subjects; bands are ± 1 SD of the repeats."
        f"{target}",
        lambda: plots.label_curve_plot(curves, needed),
        interactive,
        height=460,
    )


def _apart(numbers: list[float]) -> list[float]:
    """Those that can be written on a logarithmic axis without one over another."""
    kept: list[float] = []
    for number in numbers:
        if not kept or number > 1.25 * kept[-1]:
            kept.append(number)
    return kept


def _scores(curves: pl.DataFrame, material: Material) -> Table:
    """A row a model, a column for each number of labels."""
    form = material.metric.form
    numbers = sorted({round(number) for number in curves["n_labels"]})
    cells: dict[str, dict[int, str]] = {}
    for row in curves.iter_rows(named=True):
        around = "" if row["sd"] is None else f" ± {format(row['sd'], form)}"
        cells.setdefault(row["model"], {})[round(row["n_labels"])] = format(row["score"], form) + around

    def column(number: int) -> Column:
        return Column(
            f"{number:,}",
            lambda row: cells[row["model"]].get(number, ""),
            is_right=True,
            group="labelled training subjects (mean of the repeats)",
        )

    wide = curves.with_columns(n_labels=pl.col("n_labels").round().cast(pl.Int64)).pivot(
        "n_labels", index="model", values=["score", "sd"]
    )
    return Table(
        "label_curve",
        f"Test {material.metric.title} by the number of labelled training subjects: mean ± SD of the repeats.",
        wide,
        (Column("model", lambda row: row["model"]), *map(column, numbers)),
    )


def _needed_table(needed: pl.DataFrame, material: Material) -> Table:
    def share(row: Row) -> str:
        return "" if row["n_labels"] is None else f"{row['n_labels'] / row['all_labels']:.0%}"

    def labels(row: Row) -> str:
        if row["n_labels"] is None:
            return "not reached"
        return f"{'≤ ' if row['is_upper_bound'] else ''}{row['n_labels']:,.0f}"

    return Table(
        "label_efficiency",
        f"Labels that a transformer needs to equal {needed['reference'][0]}, the best count baseline by validation "
        f"(test {material.metric.title} {format(needed['target'][0], material.metric.form)}).",
        needed,
        (
            Column("model", lambda row: row["model"]),
            Column("labels needed", labels, is_right=True),
            Column("of all", share, is_right=True),
            Column("events among them", lambda row: number_text(row["n_events"], ",.0f"), is_right=True),
        ),
        notes=("Between the numbers that were tried, scores are interpolated on the logarithm of the number.",),
    )
