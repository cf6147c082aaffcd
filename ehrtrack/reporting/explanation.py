"""Explanations as a reader sees them: the page of one subject, and what carries the risk of a study's test subjects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import plotly.graph_objects as go
import polars as pl
from matplotlib.figure import Figure

from ehrtrack import plots
from ehrtrack.evaluation.metric_table import interval_text
from ehrtrack.pipeline.explain import CONTRIBUTION, POINTS, Explanation, days_before
from ehrtrack.plots.explain import short, time_axis
from ehrtrack.privacy import count_text
from ehrtrack.reporting import charts
from ehrtrack.reporting.comparison import INTERVAL
from ehrtrack.reporting.document import Chart, Column, Document, Fact, Facts, Part, Prose, Row, Section, Table
from ehrtrack.reporting.material import ExplainedRun, Material

RAISES, LOWERS = charts.COLOURS[3], charts.COLOURS[0]
N_PRINTED_VISITS = 3
N_SHOWN = 15
"""Codes of a cohort's summary in a figure and in the page."""
NO_CAUSE = (
    "A contribution describes the model: what it reads out of a record. It does not say what causes the outcome, "
    "nor what would happen if a diagnosis were not made or a drug not given."
)


@dataclass(frozen=True)
class Told:
    """How an explanation is told.

    Attributes
    ----------
    subject : what the subject is called
    study, model, run_id : the model, and the study and the run that made it
    descriptions : what codes mean, where it is known
    rest : contribution and risk points of all codes but those shown, and how many there are
    n_shown : codes that are listed
    has_dates : whether dates may be told; else days before the prediction alone
    horizon : of the risk, in words; empty of classes
    """

    subject: str
    study: str
    model: str
    run_id: str
    descriptions: Mapping[str, str]
    rest: tuple[int, float, float]
    n_shown: int
    has_dates: bool
    horizon: str


def scale_of(*, has_classes: bool) -> str:
    """What contributions are of, in words."""
    return "log odds" if has_classes else "log cumulative hazard"


def how(explained: Explanation) -> str:
    """What a contribution is, in a sentence."""
    scale = scale_of(has_classes=explained.has_classes)
    if explained.method == "occlusion":
        return (
            f"By occlusion: the contribution of a code is what the {scale} loses when the record is written without "
            "its events, and goes through the same model; in points, what the risk loses. Contributions need not "
            "add up, as codes stand for each other and act together; a code that every subject has is compared with a "
            "record such as the model never saw."
        )
    return (
        f"By integrated gradients: contributions add up to the difference in the {scale} to a record with the same "
        f"visits of which no code is known ({explained.base:+.2f}, here {explained.total:+.2f}; off by "
        f"{abs(explained.gap or 0):.3f})."
    )


def not_explained(explained: Explanation) -> str:
    """What has no contribution of its own."""
    if explained.method == "occlusion":
        age = "" if explained.age is not None else "the age, "
    else:
        age = "the age at each visit, " if explained.age is not None else "the age, "
    return (
        f"Not explained by themselves: {age}when visits were and how long ago. A code's contribution is that of its "
        "being there at its times."
    )


def document_of(explained: Explanation, told: Told) -> Document:
    """The page of a subject: its risk, the codes that contribute most, when they were written, and its visits."""
    facts = [
        Fact("predicted risk", f"{explained.risk:.1%}", told.horizon),
        Fact("model", told.model, f"run {told.run_id}"),
        Fact("prediction time", _date(explained.prediction_time) if told.has_dates else "not told"),
        Fact("read of the record", f"{explained.codes.height} codes", f"at {explained.visits.height} visits"),
    ]
    said = Prose((how(explained), not_explained(explained), NO_CAUSE))
    lead = Section("answer", "Answer", (Facts(tuple(facts)), said))
    parts: tuple[Part, ...] = (_timeline(explained, told), _codes_table(explained, told))
    sections = [lead, Section("codes", "Codes", parts)]
    if explained.visits.height:
        sections.append(Section("visits", "Visits", (_visits_table(explained, told),)))
    question = f"What gives subject {told.subject} a risk of {explained.risk:.0%}?"
    return Document(told.study, question, tuple(sections))


def timeline(explained: Explanation, told: Told) -> Figure:
    """The figure of a subject's record."""
    codes, occurrences, visits = _along_time(explained, told)
    return plots.timeline_plot(codes, occurrences, visits, scale=scale_of(has_classes=explained.has_classes))


def _along_time(explained: Explanation, told: Told) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Labels and contributions of the codes shown; when they were written; and visits: in days before."""
    top = explained.top(told.n_shown)
    label = {code: label_of(code, told.descriptions) for code in top["code"]}
    codes = top.select(pl.col("code").replace_strict(label, return_dtype=pl.String).alias("label"), CONTRIBUTION)
    seen = explained.occurrences.filter(pl.col("code").is_in(list(label)), pl.col("time").is_not_null())
    written = seen.select(pl.col("code").replace_strict(label, return_dtype=pl.String).alias("label"), "time", "value")
    return codes, _with_days(written, explained), _with_days(explained.visits, explained)


def _with_days(frame: pl.DataFrame, explained: Explanation) -> pl.DataFrame:
    days = [days_before(explained.prediction_time, moment) for moment in frame["time"]]
    return frame.with_columns(pl.Series("days", days, dtype=pl.Float64))


def label_of(code: str, descriptions: Mapping[str, str]) -> str:
    """A code with what it means."""
    said = descriptions.get(code, "")
    return f"{code} · {said}" if said and said != code else code


def _timeline(explained: Explanation, told: Told) -> Chart:
    codes, occurrences, visits = _along_time(explained, told)
    height = 260 + 26 * codes.height
    return Chart(
        "timeline",
        "When the codes that contribute most were written, their contributions, and below those of the visits.",
        lambda: timeline(explained, told),
        _interactive(codes, occurrences, visits, told, scale_of(has_classes=explained.has_classes), height),
        height=height,
        suffixes=("png",),
    )


def _interactive(
    codes: pl.DataFrame, occurrences: pl.DataFrame, visits: pl.DataFrame, told: Told, scale: str, height: int
) -> go.Figure:
    unit, axis = time_axis(occurrences["days"].to_list() + visits["days"].to_list())
    figure = charts.base(axis, "")
    split = 150 / height  # the visits' share of the height
    shared = {"ticks": "outside", "ticklen": 4, "showline": True, "zeroline": True}
    figure.update_layout(
        barmode="overlay",
        xaxis={"domain": [0, 0.66], "anchor": "y2", "autorange": "reversed", "zeroline": False},
        yaxis={
            "domain": [split + 0.08, 1],
            "categoryorder": "array",
            "categoryarray": codes["label"].to_list()[::-1],
            "tickmode": "array",
            "tickvals": codes["label"].to_list(),
            "ticktext": [short(label, 34) for label in codes["label"]],
        },
        xaxis2=shared | {"domain": [0.7, 1], "anchor": "y", "title": {"text": scale, "standoff": 8}},
        yaxis2=shared | {"domain": [0, split], "anchor": "x", "title": {"text": "visits", "standoff": 8}},
        margin={"l": 10, "r": 16, "t": 10, "b": 48},
    )
    for is_raising, colour, name in ((True, RAISES, "raises the risk"), (False, LOWERS, "lowers it")):
        signed = (pl.col(CONTRIBUTION) > 0) == is_raising
        of_sign = codes.filter(signed)
        seen = occurrences.filter(pl.col("label").is_in(of_sign["label"].to_list()))
        stems = visits.filter(signed)
        shown = {"name": name, "legendgroup": name, "marker": {"color": colour}}
        hover = [_moment(row, told) for row in seen.iter_rows(named=True)]
        figure.add_scatter(
            x=(seen["days"] / unit).to_list(),
            y=seen["label"].to_list(),
            mode="markers",
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            **shown | {"marker": {"color": colour, "size": 9, "opacity": 0.8}},
        )
        figure.add_bar(
            x=of_sign[CONTRIBUTION].to_list(),
            y=of_sign["label"].to_list(),
            orientation="h",
            xaxis="x2",
            hovertemplate="%{y}: %{x:+.3f}<extra></extra>",
            **shown,
        )
        figure.add_bar(
            x=(stems["days"] / unit).to_list(),
            y=stems[CONTRIBUTION].to_list(),
            yaxis="y2",
            width=_span(visits, unit) / 150,
            text=[_moment(row, told) for row in stems.iter_rows(named=True)],
            textposition="none",
            hovertemplate="%{text}: %{y:+.3f}<extra></extra>",
            **shown,
        )
    return figure


def _span(visits: pl.DataFrame, unit: float) -> float:
    days = visits["days"].to_list()
    return max(max(days, default=1.0) / unit, 1e-3)


def _moment(row: Row, told: Told) -> str:
    """When something was, and the value of what was measured."""
    when = f"{row['days']:,.0f} days before" + (f", {_date(row['time'])}" if told.has_dates else "")
    value = "" if row.get("value") is None else f": {row['value']:.4g}"
    what = f"{row['label']}{value}<br>" if "label" in row else f"visit {row['visit']}, {row['n_codes']} codes<br>"
    return what + when


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def when_of(row: Row, explained: Explanation, *, has_dates: bool) -> str:
    """When a code was written: once, or from when to when."""
    if row["first_time"] is None:
        return "static"

    def told_as(moment: datetime) -> str:
        return _date(moment) if has_dates else f"{days_before(explained.prediction_time, moment):,.0f} days before"

    first, last = told_as(row["first_time"]), told_as(row["last_time"])
    return first if first == last else f"{first} to {last}"


def _codes_table(explained: Explanation, told: Told) -> Table:
    frame = explained.codes if told.has_dates else explained.codes.drop("first_time", "last_time")
    shown = explained.top(told.n_shown)
    columns = (
        Column("code", lambda row: label_of(row["code"], told.descriptions)),
        Column("written", lambda row: when_of(_row(explained, row), explained, has_dates=told.has_dates)),
        Column("visits", lambda row: f"{row['n_visits']:,}" if row["n_visits"] else "–", is_right=True),
        Column("contribution", lambda row: f"{row[CONTRIBUTION]:+.3f}", is_right=True),
        Column("risk, points", lambda row: points_text(row[POINTS]), is_right=True),
    )
    notes = tuple(rest_text(explained, told.rest))
    return Table("codes", "Codes by the size of their contribution.", frame.head(shown.height), columns, notes)


def _row(explained: Explanation, row: Row) -> Row:
    return explained.codes.row(by_predicate=pl.col("code") == row["code"], named=True)


def points_text(points: float | None) -> str:
    """Percentage points of risk; nothing where the method has none.

    >>> points_text(3.28), points_text(None)
    ('+3.3', '')
    """
    return "" if points is None else f"{points:+.1f}"


def rest_text(explained: Explanation, rest: tuple[int, float, float]) -> list[str]:
    """What the codes that are not shown come to, and the age."""
    n_rest, contribution, points = rest
    said = []
    if n_rest:
        together = "left out together" if explained.method == "occlusion" else "added up"
        in_points = f", {points_text(points)} points" if explained.method == "occlusion" else ""
        said.append(f"{n_rest:,} other codes, {together}: {contribution:+.3f}{in_points}.")
    if explained.method == "occlusion":
        said.append(f"All codes, left out together: {explained.total - explained.base:+.3f}.")
    if explained.age is not None and explained.reference_years is not None:
        of_age, points_of_age = explained.age
        years = "not known" if explained.age_years is None else f"{explained.age_years:.0f}"
        compared = f"Age {years}, compared with {explained.reference_years:.0f}"
        if points_of_age is None:
            said.append(f"{compared} (the training mean), as it acts on the hazard directly: {of_age:+.3f}.")
        else:
            said.append(f"{compared}: {of_age:+.3f}, {points_text(points_of_age)} points.")
    return said


def _visits_table(explained: Explanation, told: Told) -> Table:
    visits = _with_days(explained.visits, explained).sort(pl.col(CONTRIBUTION).abs(), descending=True)
    frame = visits if told.has_dates else visits.drop("time")
    when = [Column("date", lambda row: _date(row["time"]))] if told.has_dates else []
    columns = (
        *when,
        Column("days before", lambda row: f"{row['days']:,.0f}", is_right=True),
        Column("codes", lambda row: f"{row['n_codes']:,}", is_right=True),
        Column("contribution", lambda row: f"{row[CONTRIBUTION]:+.3f}", is_right=True),
        Column("risk, points", lambda row: points_text(row[POINTS]), is_right=True),
    )
    return Table("visits", "Visits by the size of their contribution.", frame, columns)


def subject_lines(explained: Explanation, told: Told) -> list[str]:
    """What is printed of a subject."""
    of_horizon = f" {told.horizon}" if told.horizon else ""
    lines = [
        f"subject {told.subject} at {explained.prediction_time:%Y-%m-%d}: risk{of_horizon} {explained.risk:.1%}, by "
        f"{told.model}, run {told.run_id}",
        "",
        "contribution  points  code",
    ]
    for row in explained.top(told.n_shown).iter_rows(named=True):
        when = when_of(row, explained, has_dates=told.has_dates)
        visits = f", {row['n_visits']} visit{'s' * (row['n_visits'] > 1)}" if row["n_visits"] else ""
        lines.append(
            f"{row[CONTRIBUTION]:>+12.3f}  {points_text(row[POINTS]):>6}  "
            f"{label_of(row['code'], told.descriptions)} ({when}{visits})"
        )
    lines += [f"  {line}" for line in rest_text(explained, told.rest)]
    largest = explained.visits.sort(pl.col(CONTRIBUTION).abs(), descending=True).head(N_PRINTED_VISITS)
    for row in largest.iter_rows(named=True):
        points = f", {points_text(row[POINTS])} points" if row[POINTS] is not None else ""
        codes = f"{row['n_codes']} code{'s' * (row['n_codes'] > 1)}"
        lines.append(f"  visit of {row['time']:%Y-%m-%d} ({codes}): {row[CONTRIBUTION]:+.3f}{points}")
    return [*lines, "", how(explained), not_explained(explained), NO_CAUSE]


def cohort_lines(shown: pl.DataFrame, said: str, scale: str) -> list[str]:
    """What is printed of a cohort's summary."""
    lines = [f"what carries the risk ({said}); contributions to the {scale} [95 %]", ""]
    lines.append(f"{'spread':>22}  {'of those who have it':>24}  {'share':>5}  code")
    for row in shown.iter_rows(named=True):
        spread, effect = (
            interval_text(row, name, f"{name}_lower", f"{name}_upper", form=form)
            for name, form in (("spread", ".3f"), ("mean_contribution", "+.3f"))
        )
        lines.append(f"{spread:>22}  {effect:>24}  {row['share_subjects']:>5.0%}  {row['label']}")
    return [*lines, "", NO_CAUSE]


def explanation_section(material: Material) -> Section | None:
    """Which codes carry the risk of test subjects, of each model that was explained; None where none was."""
    if not material.explanations:
        return None
    parts: list[Part] = [Prose((NO_CAUSE,))]
    for number, (label, explained) in enumerate(material.explanations.items(), start=1):
        parts += [
            _cohort_chart(f"contributions_{number}", label, explained),
            _cohort_table(f"contributions_{number}", label, explained),
        ]
    return Section("explanation", "What carries the risk", tuple(parts))


def _cohort_chart(name: str, label: str, explained: ExplainedRun) -> Chart:
    shown = explained.table.head(N_SHOWN)
    rows = [
        (
            row["label"],
            row["mean_contribution"],
            row["mean_contribution_lower"],
            row["mean_contribution_upper"],
            RAISES if row["mean_contribution"] > 0 else LOWERS,
        )
        for row in shown.iter_rows(named=True)
    ]
    return Chart(
        name,
        f"{label}: mean contribution to the {explained.scale} of subjects who have a code, with bootstrap intervals; "
        f"the codes that set subjects apart most, from the top. {explained.said}.",
        lambda: plots.contributions_plot(shown, scale=explained.scale),
        charts.forest(rows, x=f"mean contribution to the {explained.scale}", at=0.0) if rows else None,
        height=120 + 28 * len(rows),
    )


def _cohort_table(name: str, label: str, explained: ExplainedRun) -> Table:
    def interval(column: str) -> Any:
        return lambda row: interval_text(row, column, f"{column}_lower", f"{column}_upper", form=".3f")

    columns = (
        Column("code", lambda row: row["label"]),
        Column("subjects", lambda row: count_text(row["n_subjects"]), is_right=True),
        Column("share", lambda row: f"{row['share_subjects']:.0%}", is_right=True),
        Column(f"spread {INTERVAL}", interval("spread"), is_right=True),
        Column(f"mean size {INTERVAL}", interval("mean_size"), is_right=True),
        Column(f"mean of those who have it {INTERVAL}", interval("mean_contribution"), is_right=True),
        Column("raises it in", lambda row: f"{row['share_raising']:.0%}", is_right=True),
    )
    caption = f"{label}: codes by the spread of their contribution over all subjects. {explained.said}."
    notes = (
        "Spread: standard deviation over all subjects; those without the code have 0. What all have alike tells nobody "
        "apart, however large it is. Mean size: of contributions without their signs.",
        "Codes of fewer than 11 of these subjects are not shown.",
    )
    return Table(name, caption, explained.table.head(N_SHOWN), columns, notes)
