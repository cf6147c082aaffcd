"""The answer: configurations beside each other, their differences, and how they depend on the number of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polars as pl

from ehrtrack import plots
from ehrtrack.evaluation.differences import differences_table, sentences
from ehrtrack.evaluation.labels import apart
from ehrtrack.evaluation.metric_table import METRICS
from ehrtrack.evaluation.repeats import Configuration, Difference
from ehrtrack.reporting import charts
from ehrtrack.reporting.document import Chart, Column, Fact, Facts, Part, Prose, Row, Section, Table, Tone
from ehrtrack.reporting.material import Material, mean, scores, spread
from ehrtrack.reporting.subjects import cohort_size

INTERVAL = "[95\u00a0%]"
"""In the head of a column of intervals; its space breaks no line."""
TONES: Mapping[str, Tone] = {"better": "good", "worse": "bad", "equivalent": "plain", "no difference shown": "doubt"}
_COLUMNS = (
    "asked", "question", "this", "to", "metric", "difference", "difference_lower", "difference_upper", "p", "p_holm",
    "finding", "is_equivalent", "margin", "method", "n_splits", "n_seeds", "sentence",
)  # fmt: skip
FINDING_COLOURS = {"better": "#0fa47a", "worse": "#d4602a", "equivalent": "#1a86c9"}


def answer_section(material: Material) -> Section:
    """The first screen: the answer, and the numbers that it rests on."""
    first, _, rest = material.answer.partition(". ")
    lead = Prose((f"{first}." if rest else first or "No configuration has a finished run.",), is_lead=True)
    others = [Prose(tuple(_paragraphs(rest, material)))] if rest else []
    return Section("answer", "Answer", (lead, Facts(tuple(_facts(material))), *others))


def _paragraphs(text: str, material: Material) -> list[str]:
    """A paragraph for what was asked by name, each."""
    for question in dict.fromkeys(asked.question for asked in material.settings.compare):
        text = text.replace(f" {question} ", f"\n{question} ")
    return [line for line in text.split("\n") if line.strip()]


def _facts(material: Material) -> list[Fact]:
    metric = material.metric
    facts = []
    best = material.best
    if best is not None:
        facts.append(_score_fact(f"best by validation, test {metric.title}", best, material))
        of_best = [difference.to for difference in _of_reference(material) if difference.this == best.label]
        facts += [
            _score_fact(f"its reference, test {metric.title}", material.of(label), material) for label in of_best[:1]
        ]
    n_better = sum(d.finding == "better" for d in _of_reference(material))
    facts.append(Fact("shown better than the reference", f"{n_better} of {len(_of_reference(material))}"))
    if size := cohort_size(material.cohort):
        horizon = f"risk within {float(material.horizon_days):,.0f} days" if material.horizon_days else ""
        facts.append(Fact("subjects in the cohort", size, horizon))
    n_runs = sum(len(one.repeats) for one in material.configurations)
    missing = f"; {len(material.missing)} missing" if material.missing else ""
    facts.append(Fact("runs", f"{n_runs}", f"of {len(material.configurations)} configurations{missing}"))
    return facts


def _score_fact(name: str, one: Configuration, material: Material) -> Fact:
    return Fact(name, mean_text(scores(one, material.metric), material.metric.form), one.label)


def mean_text(values: Sequence[float], form: str) -> str:
    """The mean with the standard deviation, which one value has not.

    >>> mean_text([0.70, 0.72], ".3f"), mean_text([0.7], ".3f"), mean_text([], ".3f")
    ('0.710 ± 0.014', '0.700', '–')
    """
    middle, around = mean(values), spread(values)
    if middle is None:
        return "–"
    return format(middle, form) + ("" if around is None else f" ± {format(around, form)}")


def _of_reference(material: Material) -> list[Difference]:
    return [difference for difference in material.differences if not difference.question]


def differences_section(material: Material) -> Section | None:
    """Paired differences: what was asked about by name, then every configuration against its reference."""
    if not material.differences:
        return None
    parts: list[Part] = []
    asked = [difference for difference in material.differences if difference.question]
    if asked:
        questions = dict.fromkeys(difference.question for difference in asked)
        told = (" ".join([one, *sentences([d for d in asked if d.question == one])]) for one in questions)
        parts.append(Prose(tuple(told), is_list=True))
    for metric in dict.fromkeys(difference.metric for difference in material.differences):
        of_metric = [difference for difference in material.differences if difference.metric == metric]
        parts += _forest(of_metric, metric, material)
    parts.append(_difference_table(material))
    return Section("differences", "Paired differences", tuple(parts))


def _forest(differences: Sequence[Difference], key: str, material: Material) -> list[Part]:
    title = METRICS[key].title
    tested = [(d, d.interval) for d in differences if d.interval is not None]
    if not tested:
        return []
    rows = [
        (
            f"{d.this} − {apart(d.this, d.to)[1]}",
            i.estimate,
            i.lower,
            i.upper,
            FINDING_COLOURS.get(d.finding, charts.GREY),
        )
        for d, i in tested
    ]
    margin = differences[0].margin
    shaded = f" Shaded: within the margin of equivalence, {margin:g}." if margin else ""
    caption = f"Differences in test {title} with 95 % intervals, paired by subject.{shaded}"
    name = "differences" if key == material.metric.key else f"differences_{key}"
    return [
        Chart(
            name,
            caption,
            lambda: plots.differences_plot(differences),
            charts.forest(rows, x="difference", at=0.0, margin=margin),
            height=70 + 32 * len(rows),
        )
    ]


def _difference_table(material: Material) -> Table:
    asked = pl.Series("asked", [_asked(difference) for difference in material.differences], dtype=pl.String)
    frame = differences_table(material.differences).with_columns(asked).select(_COLUMNS)
    methods = list(dict.fromkeys(difference.method for difference in material.differences))
    columns = (
        Column("configuration", _text("this")),
        Column("against", lambda row: apart(row["this"], row["to"])[1]),
        Column(f"difference {INTERVAL}", interval_text, is_right=True),
        Column("p", lambda row: p_text(row["p"]), is_right=True),
        Column("p (Holm)", lambda row: p_text(row["p_holm"]), is_right=True),
        Column("finding", _text("finding"), tone=lambda row: TONES.get(row["finding"], "plain")),
        Column("splits × seeds", lambda row: f"{row['n_splits']} × {row['n_seeds']}", is_right=True),
    )
    return Table(
        "differences",
        f"Paired differences; intervals by {' and '.join(methods)}.",
        _together(frame),
        columns,
        notes=(
            "p is two-sided; Holm's adjustment is over the differences asked about, and over those to the reference. "
            f"Equivalent: within ±{material.settings.margin:g} by two one-sided tests at 5 %.",
        ),
        rows_by="asked",
    )


def _asked(difference: Difference) -> str:
    """The head over a difference in the table."""
    metric = METRICS[difference.metric].title
    return f"{metric}: {difference.question}" if difference.question else f"{metric}, against the reference"


def _together(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with those under one head next to each other, heads in the order in which they are first met."""
    order = {head: number for number, head in enumerate(frame["asked"].unique(maintain_order=True))}
    return frame.sort(pl.col("asked").replace_strict(order, return_dtype=pl.Int64), maintain_order=True)


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name])


def interval_text(row: Row) -> str:
    """The difference of a row with its interval."""
    if row["difference"] is None:
        return "–"
    return f"{row['difference']:+.3f} [{row['difference_lower']:+.3f}, {row['difference_upper']:+.3f}]"


def p_text(p: float | None) -> str:
    """A p-value as papers print it.

    >>> p_text(0.0312), p_text(0.0001), p_text(None)
    ('0.031', '<0.001', '–')
    """
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"
