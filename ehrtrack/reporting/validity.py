"""Whether predictions can be believed: calibration, net benefit, groups of subjects, sanity and negative controls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import polars as pl
from matplotlib.figure import Figure

from ehrtrack import plots
from ehrtrack.privacy import count_text
from ehrtrack.reporting import charts, figures
from ehrtrack.reporting.comparison import INTERVAL, mean_text
from ehrtrack.reporting.document import Chart, Column, Part, Prose, Row, Section, Table, Tone
from ehrtrack.reporting.material import MEDIAN, Material, median_run
from ehrtrack.runlog import TEST
from ehrtrack.tracking.client.queries import RunRecord
from ehrtrack.training.sanity import STATES, State, worst

MOST_AT_ONCE = 8
"""Curves that a chart shows at first."""
STATE_TONES: Mapping[str, Tone] = {"ok": "good", "warn": "doubt", "fail": "bad"}
CALIBRATION_METRICS = {
    "calibration_slope": ("slope", ".2f"),
    "ici": ("ICI", ".3f"),
    "observed_to_expected": ("observed / expected", ".2f"),
    "brier": ("Brier score", ".4f"),
    "ibs": ("IBS", ".4f"),
}
_CONTROL = re.compile("^(control|canary)_")
"""Begins the checks of negative controls; the second of runs that were logged when these were called canaries."""
_VERDICT = re.compile(r"^- (\w+): \*\*(ok|warn|fail)\*\* — (.*)$", re.MULTILINE)


def calibration_section(material: Material) -> Section | None:
    """Observed against predicted risk at the horizon, and the numbers of all repeats; None without either."""
    parts: list[Part] = []
    having = _beside_best(material, "calibration_curve")
    at_horizon = {label: _at_horizon(tables["calibration_curve"]) for label, tables in having.items()}
    if at_horizon:
        parts.append(_calibration_chart(at_horizon, material))
    table = _calibration_table(material)
    return Section("calibration", "Calibration", (*parts, table)) if parts or len(table.columns) > 2 else None


def _having(material: Material, name: str) -> dict[str, Mapping[str, pl.DataFrame]]:
    """The evaluations that have a table, in the order of the configurations."""
    labels = [one.label for one in material.configurations]
    found = {label: material.evaluations.get(label, {}) for label in labels}
    return {label: tables for label, tables in found.items() if name in tables and tables[name].height}


def _beside_best(material: Material, name: str) -> dict[str, Mapping[str, pl.DataFrame]]:
    """Those of `_having` that compare with the best configuration."""
    return {label: tables for label, tables in _having(material, name).items() if label in material.beside_best}


def _at_horizon(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of the last day, in order; classes are of no day."""
    if "horizon_days" in table.columns:
        table = table.filter(pl.col("horizon_days") == pl.col("horizon_days").max())
    return table.sort("predicted")


def _calibration_chart(curves: Mapping[str, pl.DataFrame], material: Material) -> Chart:
    colours = charts.styles([one.label for one in material.configurations])
    points = {label: (curve["predicted"].to_list(), curve["observed"].to_list()) for label, curve in curves.items()}
    interactive = charts.lines(
        points,
        x="predicted risk",
        y="observed risk",
        colours=colours,
        hover="predicted %{x:.3f}: observed %{y:.3f}",
        shown=material.beside_best[:MOST_AT_ONCE],
    )
    end = max(value for xs, ys in points.values() for value in (*xs, *ys))
    interactive.add_shape(type="line", x0=0, y0=0, x1=end, y1=end, line={"dash": "dot", "width": 1.2}, layer="below")
    horizon = f" within {float(material.horizon_days):,.0f} days" if material.horizon_days else ""
    return Chart(
        "calibration",
        f"Observed against predicted risk{horizon}, as smooth curves; the dotted line is perfect."
        f"{material.at_labels} {MEDIAN}",
        lambda: _calibration_figure(points, material),
        interactive,
        height=500,
    )


def _calibration_figure(smooth: figures.Points, material: Material) -> Figure:
    """Groups of risk with their intervals, a panel a configuration; the smooth curves where no run has groups."""
    groups = {label: tables["calibration"] for label, tables in _beside_best(material, "calibration").items()}
    if groups:
        return plots.calibration_panels(groups)
    return figures.overlaid(smooth, x="predicted risk", y="observed risk")


def _calibration_table(material: Material) -> Table:
    there = [key for key in CALIBRATION_METRICS if any(_metric_values(material, key).values())]
    values = {key: _metric_values(material, key) for key in there}
    labels = [one.label for one in material.configurations]
    frame = pl.DataFrame(
        {"configuration": labels}
        | {key: [mean_text(values[key][label], CALIBRATION_METRICS[key][1]) for label in labels] for key in there}
    )
    return Table(
        "calibration",
        "Calibration of raw predictions on test subjects: mean ± SD of the repeats.",
        frame,
        (Column("configuration", lambda row: row["configuration"]), *map(_calibration_column, there)),
        notes=("A slope under 1 says that risks are too extreme. ICI: mean distance of predicted and observed risk.",),
    )


def _calibration_column(key: str) -> Column:
    return Column(CALIBRATION_METRICS[key][0], lambda row: row[key], is_right=True)


def _metric_values(material: Material, key: str) -> dict[str, list[float]]:
    found = {}
    for one in material.configurations:
        values = [repeat.row.metrics.get(f"{TEST}/{key}") for repeat in one.repeats]
        found[one.label] = [value for value in values if value is not None]
    return found


def decision_section(material: Material) -> Section | None:
    """Net benefit by threshold; None where no run could have it."""
    having = _beside_best(material, "decision_curve")
    if not having:
        return None
    tables = {label: of_run["decision_curve"] for label, of_run in having.items()}
    points = {label: (t["threshold"].to_list(), t["net_benefit"].to_list()) for label, t in tables.items()}
    first = next(iter(tables.values()))
    everybody = (first["threshold"].to_list(), first["treat_all"].to_list())
    colours = charts.styles([one.label for one in material.configurations])
    interactive = charts.lines(
        points,
        x="threshold of risk",
        y="net benefit",
        colours=colours,
        hover="from %{x:.3f}: %{y:.4f}",
        shown=material.beside_best[:MOST_AT_ONCE],
    )
    interactive.add_scatter(
        x=everybody[0],
        y=everybody[1],
        name="act on everybody",
        mode="lines",
        line={"color": charts.GREY, "dash": "dot", "width": 1.4},
    )
    top = max(value for _, ys in points.values() for value in ys)
    interactive.update_yaxes(range=[-0.2 * top, 1.1 * top], zeroline=True)
    chart = Chart(
        "decision_curve",
        f"Net benefit of acting on subjects from a threshold of risk; 0 is to act on nobody."
        f"{material.at_labels} {MEDIAN}",
        lambda: figures.overlaid(
            points | {"act on everybody": everybody},
            x="act from this risk",
            y="net benefit",
            y_range=(-0.2 * top, 1.1 * top),
        ),
        interactive,
        height=460,
    )
    return Section("decision", "Decision curves", (chart,))


def subgroups_section(material: Material) -> Section | None:
    """Scores of groups for the best configuration and its reference, and the gaps between groups for all."""
    having = _having(material, "subgroups")
    if not having:
        return None
    gaps = _gap_table(material)
    best = material.best
    chosen = list(dict.fromkeys([*([best.label] if best else []), *material.references[:1]]))
    shown = [label for label in chosen if label in having] or list(having)[:1]
    parts: list[Part] = [_group_table({label: having[label]["subgroups"] for label in shown}, material)]
    parts += [
        Chart(
            f"subgroups_{number}",
            f"{material.metric.title} by group of test subjects: {label}. {MEDIAN}",
            _forest_of(having[label], material),
            is_file_only=True,
        )
        for number, label in enumerate(shown, start=1)
    ]
    return Section("subgroups", "Groups of subjects", (*parts, *([gaps] if gaps else [])))


def _forest_of(tables: Mapping[str, pl.DataFrame], material: Material) -> Callable[[], Figure]:
    return lambda: plots.subgroup_forest(tables["subgroups"], tables["subgroup_gaps"], material.metric)


def _group_table(of_labels: Mapping[str, pl.DataFrame], material: Material) -> Table:
    """The groups with the scores of some configurations side by side."""
    key = material.metric.key
    labels = list(of_labels)
    first = of_labels[labels[0]].select("attribute", "group", "n_subjects", "n_events")
    frame = first
    for number, label in enumerate(labels):
        scores = of_labels[label].select(
            "attribute",
            "group",
            **{f"{name}_{number}": pl.col(name) for name in (key, "lower", "upper")},
        )
        frame = frame.join(scores, on=["attribute", "group"], how="left", maintain_order="left")

    def score(number: int) -> Column:
        def text(row: Row) -> str:
            value, low, high = (row[f"{name}_{number}"] for name in (key, "lower", "upper"))
            return "too few" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"

        return Column(labels[number], text, is_right=True)

    return Table(
        "subgroups",
        f"Test {material.metric.title} by group of subjects, with 95 % bootstrap intervals. {MEDIAN}",
        frame.with_columns(pl.col("attribute").replace({"all": "all subjects"}).str.replace_all("_", " ")),
        (
            Column("group", lambda row: row["group"]),
            Column("subjects", lambda row: count_text(row["n_subjects"]), is_right=True),
            Column("events", lambda row: count_text(row["n_events"]), is_right=True),
            *(score(number) for number in range(len(labels))),
        ),
        rows_by="attribute",
    )


def _gap_table(material: Material) -> Table | None:
    rows = [
        {"configuration": label, **row}
        for label, tables in _having(material, "subgroup_gaps").items()
        for row in tables["subgroup_gaps"].iter_rows(named=True)
    ]
    if not rows:
        return None
    return Table(
        "subgroup_gaps",
        f"Gaps in {material.metric.title} between the best and the worst group of an attribute, with 95 % intervals. "
        f"{MEDIAN}",
        pl.DataFrame(rows, infer_schema_length=None),
        (
            Column("configuration", lambda row: row["configuration"]),
            Column("attribute", lambda row: row["attribute"].replace("_", " ")),
            Column(
                f"gap {INTERVAL}",
                lambda row: f"{row['gap']:.3f} [{row['lower']:.3f}, {row['upper']:.3f}]",
                is_right=True,
            ),
            Column("best group", lambda row: row["highest"]),
            Column("worst group", lambda row: row["lowest"]),
        ),
    )


def sanity_section(material: Material) -> Section | None:
    """What every run says of its own sanity, and its negative controls with the planted leak."""
    states = {
        one.label: _states([material.records.get(r.row.run_id) for r in one.repeats]) for one in material.configurations
    }
    checks = list(dict.fromkeys(check for of_one in states.values() for check in of_one))
    if not checks and not material.controls:
        return None
    parts: list[Part] = []
    if checks:
        parts.append(_verdict_table(states, checks))
        parts += _reasons(material)
    parts += _controls(material)
    return Section("sanity", "Sanity and negative controls", tuple(parts))


def _states(records: Sequence[RunRecord | None]) -> dict[str, list[State]]:
    """Check -> its state in each run."""
    found: dict[str, list[State]] = {}
    for record in records:
        for name, value in (record.tags if record else {}).items():
            if name.startswith("sanity.") and name != "sanity.verdict" and value in STATES:
                found.setdefault(name.removeprefix("sanity."), []).append(value)
    return found


def _verdict_table(states: Mapping[str, Mapping[str, list[State]]], checks: Sequence[str]) -> Table:
    def text(found: Sequence[State]) -> str:
        if not found:
            return ""
        said = worst(found)
        n = sum(state == said for state in found)
        return said if n == len(found) else f"{said} ({n} of {len(found)})"

    frame = pl.DataFrame(
        [
            {"configuration": label, **{check: text(of_one.get(check, [])) for check in checks}}
            for label, of_one in states.items()
        ]
    )

    def column(check: str) -> Column:
        return Column(
            check,
            lambda row: row[check],
            tone=lambda row: STATE_TONES.get(row[check].split(" ")[0], "plain"),
        )

    return Table(
        "sanity",
        "Verdicts of each run on itself; of several repeats the worst, and how many have it.",
        frame,
        (Column("configuration", lambda row: row["configuration"]), *map(column, checks)),
    )


def _reasons(material: Material) -> list[Part]:
    """Why a check of the repeat in the middle is not ok."""
    rows = []
    for one in material.configurations:
        record = material.records.get(median_run(one))
        note = record.tags.get("mlflow.note.content", "") if record else ""
        rows += [
            {"configuration": one.label, "check": check, "state": state, "reason": reason}
            for check, state, reason in _VERDICT.findall(note)
            if state != "ok"
        ]
    if not rows:
        return []
    return [
        Table(
            "sanity_reasons",
            f"What is not ok, and why. {MEDIAN}",
            pl.DataFrame(rows),
            (
                Column("configuration", lambda row: row["configuration"]),
                Column("check", lambda row: row["check"]),
                Column("", lambda row: row["state"], tone=lambda row: STATE_TONES[row["state"]]),
                Column("reason", lambda row: row["reason"]),
            ),
        )
    ]


def _controls(material: Material) -> list[Part]:
    if not material.controls:
        said = (
            "No negative control was run in this study: `ehrtrack negative-controls` trains twins with permuted "
            "labels, another future and a planted leak."
        )
        return [Prose((said,))]
    rows = []
    for record in material.controls:
        note = record.tags.get("mlflow.note.content", "")
        rows += [
            {"run": record.run_id[:8], "control": _CONTROL.sub("", check), "state": state, "reason": reason}
            for check, state, reason in _VERDICT.findall(note)
        ]
    return [
        Table(
            "controls",
            "Negative controls: twins with permuted labels, another future, and a planted leak.",
            pl.DataFrame(rows, schema=dict.fromkeys(("run", "control", "state", "reason"), pl.String)),
            (
                Column("control", lambda row: row["control"]),
                Column("", lambda row: row["state"], tone=lambda row: STATE_TONES[row["state"]]),
                Column("found", lambda row: row["reason"]),
                Column("run", lambda row: row["run"]),
            ),
        )
    ]
