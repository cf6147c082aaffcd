"""The report of a sweep: what the search chose, whether it is better than what it began with, and how it was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import polars as pl
import tomli_w

from ehrtrack.evaluation.labels import label
from ehrtrack.evaluation.metric_table import METRICS
from ehrtrack.evaluation.repeats import Configuration
from ehrtrack.reporting.comparison import differences_section, mean_text
from ehrtrack.reporting.cost import cost_section
from ehrtrack.reporting.document import Column, Document, Fact, Facts, Part, Prose, Row, Section, Table, Tone
from ehrtrack.reporting.main_table import results_section
from ehrtrack.reporting.material import Material, mean, scores
from ehrtrack.reporting.provenance import provenance_section
from ehrtrack.reporting.search_charts import search_charts
from ehrtrack.runlog import KEPT
from ehrtrack.search.outcome import front_of, trials_table
from ehrtrack.search.stored import Searched

MANY_DIGITS = 3
"""Significant digits of a drawn number, for people."""
_TONES: Mapping[str, Tone] = {"complete": "good", "failed": "bad", "pruned": "doubt"}


def sweep_document(searched: Searched, material: Material) -> Document:
    """The report.

    Parameters
    ----------
    material : of the refits, as the report of a study has it
    """
    plain = searched.config.model_dump(mode="json", exclude_none=True)
    material = replace(
        material,
        commands=("ehrtrack sweep --config sweep.toml", "ehrtrack report sweep.toml"),
        file=tomli_w.dumps({"search": plain}),
    )
    sections = [
        Section("answer", "Answer", _answer(searched, material)),
        Section("search", "The search", tuple([Prose(tuple(effort_text(searched))), *search_charts(searched)])),
        Section("trials", "Trials", (_trials(searched, material),)),
        results_section(material),
        differences_section(material),
        cost_section(material),
        provenance_section(material),
    ]
    return Document(material.study, material.settings.question, tuple(section for section in sections if section))


def chosen(material: Material) -> Configuration:
    """The configuration that the search chose, among its refits: what is not the reference if there is any."""
    references = [dict(material.settings.reference)]
    others = [one for one in material.configurations if dict(one.settings) not in references]
    return (others or list(material.configurations))[0]


def optimism(searched: Searched, material: Material) -> float | None:
    """By how much the trial's score is better than the mean of its refits on test subjects; None without those."""
    tested, metric = mean(scores(chosen(material), material.metric)), searched.scored_by[0]
    if tested is None or metric is not material.metric:
        return None
    sign = 1 if metric.better == "higher" else -1
    return sign * (searched.best.value - tested)


def sentences(searched: Searched, material: Material) -> list[str]:
    """What came out, in words."""
    best, metric = searched.best, searched.scored_by[0]
    one = chosen(material)
    settings = settings_text(best.overrides)
    by = " and ".join(
        f"{of.title} {value:{of.form}}" for of, value in zip(searched.scored_by, best.values, strict=True)
    )
    if best.is_default or not material.differences:
        said = [
            "The search found nothing better than the settings that it began with: trial "
            f"{best.slot + 1} has {searched.of_whom} {by}."
        ]
    else:
        of_choice = [difference for difference in material.differences if difference.metric == material.metric.key]
        found = " ".join(difference.sentence.rstrip(".") + "." for difference in of_choice)
        said = [
            found[:1].upper() + found[1:],
            f"The search chose trial {best.slot + 1} ({settings}), by {searched.of_whom} {by}.",
        ]
    tested = scores(one, material.metric)
    more = optimism(searched, material)
    if tested and more is not None:
        held = mean_text(scores(one, material.metric, KEPT), metric.form)
        seeds = f"{len(tested)} seed{'s' if len(tested) > 1 else ''}"
        n_trials = searched.effort.n_complete + searched.effort.n_pruned
        beside = (
            f"{more:{metric.form}} too good: the optimism of choosing the best of {n_trials} trials"
            if more > 0
            else f"{-more:{metric.form}} worse than that: no optimism shows"
        )
        said.append(
            f"Fitted again with {seeds} it has test {metric.title} {mean_text(tested, metric.form)} (validation "
            f"{held}). The best trial's score was {beside}."
        )
    return said


def effort_text(searched: Searched) -> list[str]:
    """What the search took, in words."""
    effort, config = searched.effort, searched.config
    n_failed = sum(state == "failed" for state in trials_table(searched.trials, searched.metrics)["state"])
    said = [
        f"{effort.n_complete + effort.n_pruned} trials: {effort.n_complete} complete, {effort.n_pruned} pruned"
        + (f"; {n_failed} failed." if n_failed else ".")
    ]
    if effort.n_epochs:
        said.append(
            f"They trained {effort.n_epochs:,} epochs; without pruning they would have trained some "
            f"{effort.n_epochs_without:,.0f}, so that {effort.saved:.0%} were saved."
        )
    if searched.why_over:
        said.append(f"The search ended before {config.n_trials} trials: {searched.why_over}.")
    if config.folds:
        said.append(
            f"Each trial was fitted {config.folds} times, and scored once on each of {config.folds} parts of training "
            "and validation subjects; its score is the mean."
        )
    return said


def settings_text(settings: Mapping[str, str | int | float | bool]) -> str:
    """Settings of a trial for people, with few digits.

    >>> settings_text({"strategy.rank": 8, "strategy.dropout": 0.123456})
    'r8 · dropout 0.123'
    """
    few = {path: float(f"{of:.{MANY_DIGITS}g}") if isinstance(of, float) else of for path, of in settings.items()}
    return label(few, list(few))


def _answer(searched: Searched, material: Material) -> tuple[Part, ...]:
    first, *others = sentences(searched, material)
    metric, effort = searched.scored_by[0], searched.effort
    facts = [Fact(f"best trial, {searched.of_whom} {metric.title}", f"{searched.best.value:{metric.form}}")]
    one = chosen(material)
    facts.append(
        Fact(
            f"refitted, test {material.metric.title}",
            mean_text(scores(one, material.metric), material.metric.form),
            one.label,
        )
    )
    if (more := optimism(searched, material)) is not None:
        facts.append(Fact("optimism", f"{more:+{metric.form}}", "best trial's score less the refits' on test subjects"))
    facts.append(Fact("trials", str(effort.n_complete + effort.n_pruned), f"{effort.n_pruned} pruned"))
    if effort.n_epochs:
        facts.append(Fact("epochs saved by pruning", f"{effort.saved:.0%}", f"{effort.n_epochs:,} were trained"))
    return (Prose((first,), is_lead=True), Facts(tuple(facts)), *([Prose(tuple(others))] if others else []))


def _trials(searched: Searched, material: Material) -> Table:
    frame = trials_table(searched.trials, searched.metrics, searched.runs)
    front = {trial.number for trial in front_of(searched.trials, searched.directions)}
    frame = frame.with_columns(is_best=pl.col("number").is_in(sorted(front)))
    first = searched.scored_by[0]
    frame = frame.sort(first.key, descending=first.better == "higher", nulls_last=True, maintain_order=True)
    known = {"number", "trial", "state", "last_epoch", "seconds", "is_default", "runs", "is_best", *searched.metrics}
    drawn = [name for name in frame.columns if name not in known]

    def page(row: Row) -> str:
        return material.pages.get(row["runs"].split(" ")[0], "")

    return Table(
        "trials",
        f"Every trial, the best by {searched.of_whom} {first.title} first.",
        frame,
        (
            Column("trial", lambda row: str(row["trial"]), is_right=True, link=page),
            Column("state", _state, tone=lambda row: _TONES.get(row["state"], "plain")),
            *(Column(METRICS[key].title, _number(key, METRICS[key].form), is_right=True) for key in searched.metrics),
            Column("last epoch", _number("last_epoch", ""), is_right=True),
            Column("seconds", _number("seconds", ".0f"), is_right=True),
            *(Column(name, _number(name, ""), is_right=True) for name in drawn),
        ),
        notes=(
            "One trial has the settings of the configuration itself; a value that lies outside of what is searched is "
            "in no chart. A trial that was cut off is there once more, as the trial that went on with it.",
        ),
    )


def _state(row: Row) -> str:
    return f"{row['state']}{', best' if row['is_best'] else ''}{', defaults' if row['is_default'] else ''}"


def _number(name: str, form: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = row[name]
        if value is None:
            return ""
        return format(value, form or f".{MANY_DIGITS}g") if isinstance(value, float) else str(value)

    return text
