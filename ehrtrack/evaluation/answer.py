"""What is found of configurations: their differences, one table, and the answer in words.

The answer says what wins, by how much and at what cost, and where the transformer does not win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import polars as pl

from ehrtrack.evaluation.benchmark import metric_of_choice
from ehrtrack.evaluation.differences import decimal, differences_over_repeats, sentences
from ehrtrack.evaluation.labels import SEPARATOR
from ehrtrack.evaluation.metric_table import Entry
from ehrtrack.evaluation.pairs import AskedOf
from ehrtrack.evaluation.repeats import Configuration, Difference, best_configurations_first
from ehrtrack.evaluation.study_table import study_markdown, study_table
from ehrtrack.runlog import TEST
from ehrtrack.survival.bootstrap import N_RESAMPLES

MAX_NAMED = 4
"""Configurations that a sentence lists by name; of more it says how many."""


@dataclass(frozen=True)
class Findings:
    """What may be said of some finished runs.

    Attributes
    ----------
    configurations : the best by mean validation score first
    differences : of each to the reference, and those that were asked about
    table : a line a configuration, as `study_table.study_table`
    answer : a short paragraph; empty where no run is finished
    currency : in which costs are

    Examples
    --------
    >>> from ehrtrack.evaluation.pairs import Questions
    >>> findings([], {}, Questions({"baseline.name": "cox"})).markdown
    'No run that can be compared is finished.'
    """

    configurations: tuple[Configuration, ...] = field(repr=False)
    differences: tuple[Difference, ...] = field(repr=False)
    table: pl.DataFrame = field(repr=False)
    answer: str
    currency: str

    @property
    def markdown(self) -> str:
        """The answer and the table, for a page."""
        return self._text(is_short=False)

    @property
    def short(self) -> str:
        """The answer and the main columns of the table, for a terminal."""
        return self._text(is_short=True)

    def _text(self, *, is_short: bool) -> str:
        if not self.configurations:
            return "No run that can be compared is finished."
        return f"{self.answer}\n\n{study_markdown(self.table, currency=self.currency, is_short=is_short)}"


def findings(
    found: Sequence[Configuration],
    predictions: Mapping[str, pl.DataFrame],
    questions: AskedOf,
    *,
    n_resamples: int = 4 * N_RESAMPLES,
    price_per_hour: float | None = None,
    currency: str = "EUR",
) -> Findings:
    """Put finished runs together; the same runs give the same findings.

    Parameters
    ----------
    found, predictions, questions, n_resamples : as `differences.differences_over_repeats` takes them
    price_per_hour, currency : of the machine

    Examples
    --------
    >>> from ehrtrack.evaluation.benchmark import RunRow
    >>> from ehrtrack.evaluation.pairs import Questions
    >>> from ehrtrack.evaluation.repeats import Repeat, configurations
    >>> scores = {"gru": 0.71, "cox": 0.74}
    >>> runs = [RunRow(name, "baseline", name, "c", metrics={"kept/c_index": c}) for name, c in scores.items()]
    >>> repeats = [Repeat(run, {"baseline.name": run.model}, 0, 400, 100) for run in runs]
    >>> found = findings(configurations(repeats), {}, Questions({"baseline.name": "cox"}))
    >>> [of.label for of in found.configurations], [one.finding for one in found.differences]
    (['cox', 'gru'], ['not tested'])
    """
    ordered = best_configurations_first(found)
    differences = differences_over_repeats(ordered, predictions, questions, n_resamples=n_resamples) if ordered else []
    return Findings(
        configurations=tuple(ordered),
        differences=tuple(differences),
        table=study_table(ordered, differences, price_per_hour=price_per_hour),
        answer=answer(differences, ordered, price_per_hour=price_per_hour, currency=currency) if ordered else "",
        currency=currency,
    )


def answer(
    differences: Sequence[Difference],
    found: Sequence[Configuration],
    *,
    price_per_hour: float | None = None,
    currency: str = "EUR",
) -> str:
    """A short paragraph for the first screen, of which each sentence rests on rows of the tables.

    Parameters
    ----------
    differences : from `differences.differences_over_repeats`
    found : the configurations, at least one
    price_per_hour, currency : of the machine

    Examples
    --------
    >>> from ehrtrack.evaluation.benchmark import RunRow
    >>> from ehrtrack.evaluation.differences import differences_over_repeats
    >>> from ehrtrack.evaluation.pairs import Questions
    >>> from ehrtrack.evaluation.repeats import Repeat, configurations
    >>> def run(name, kind, split, c_index):
    ...     metrics = {"kept/c_index": c_index, "test/c_index": c_index, "cost/train_seconds": 17.0}
    ...     return RunRow(f"{name} {split}", kind, name, f"split {split}", n_trainable=65780, metrics=metrics)
    >>> runs = [run("full", "finetune", split, 0.71 + noise) for split, noise in enumerate((0.001, 0.003, 0.002))]
    >>> runs += [run("cox", "baseline", split, 0.65) for split in range(3)]
    >>> found = configurations([Repeat(row, {"baseline.name": row.model}, 0, 400, 100) for row in runs])
    >>> shown = differences_over_repeats(found, {}, Questions({"baseline.name": "cox"}))
    >>> for sentence in answer(shown, found).split(". "):
    ...     print(sentence)
    Best by validation is full, with a test C-index of .712 (sd .001 over 3 runs); it trains 65,780 parameters in 17 s
    full is better than cox by .062 [.059, .065] in C-index (Nadeau and Bengio over 3 splits).
    """
    metric = metric_of_choice([row for of in found for row in of.rows])
    table = study_table(found, price_per_hour=price_per_hour)
    best = table.row(0, named=True)
    of_choice = [one for one in differences if one.metric == metric.key]
    to_reference = [one for one in of_choice if not one.question]
    told = [_best_text(best, Entry(metric, TEST), currency)]
    told += sentences([one for one in to_reference if one.this == best["configuration"]])
    told += _transformers_text(to_reference, found)
    for question, of_one in groupby((one for one in of_choice if one.question), key=lambda one: one.question):
        told.append(f"{question} {' '.join(sentences(list(of_one)))}")
    return " ".join(told)


def _best_text(best: dict[str, Any], entry: Entry, currency: str) -> str:
    """The configuration that validation chooses, and what it costs."""
    column = next(iter(entry.columns))
    score, sd, n_runs = best[column], best[f"{column}_sd"], best["n_repeats"]
    scored = "" if score is None else f", with a test {entry.metric.title} of {decimal(score)}"
    spread = "" if sd is None else f" (sd {decimal(sd)} over {n_runs} runs)"
    cost = []
    if best["n_trainable"] is not None:
        cost.append(f"trains {best['n_trainable']:,} parameters")
    if best["seconds"] is not None:
        cost.append(f"{'in' if cost else 'trains in'} {_seconds(best['seconds'])}")
    if best["cost"] is not None:
        cost.append(f"for {best['cost']:.2f} {currency}")
    return f"Best by validation is {best['configuration']}{scored}{spread}{'; it ' if cost else ''}{' '.join(cost)}."


def _transformers_text(to_reference: Sequence[Difference], found: Sequence[Configuration]) -> list[str]:
    """Which transformers are better than their references, and the references that none is better than."""
    transformers = {of.label for of in found if of.is_transformer}
    compared = [one for one in to_reference if one.this in transformers and one.to not in transformers]
    if len(compared) < 2:  # the one that there is has been told
        return []
    counted = [
        f"{len(labels)} {'is' if len(labels) == 1 else 'are'} {words}{_named(labels)}"
        for finding, words in _WORDS.items()
        if (labels := [one.this for one in compared if one.finding == finding])
    ]
    told = [f"Of {len(compared)} transformers beside their baselines, {_listed(counted)}."]
    references = list(dict.fromkeys(one.to for one in compared))
    unbeaten = [to for to in references if not any(one.to == to and one.finding == "better" for one in compared)]
    if unbeaten:
        told.append(f"No transformer is shown to be better than {_listed(_by_number(unbeaten), last='or')}.")
    return told


def _by_number(labels: Sequence[str]) -> list[str]:
    """Labels, of which those that differ by the number of labels alone are one.

    >>> _by_number(["cox · 512 labels", "cox · 128 labels", "lasso"])
    ['cox · 512 or 128 labels', 'lasso']
    """
    numbers: dict[str, list[str]] = {}
    for label in labels:
        head, separator, last = label.rpartition(SEPARATOR)
        is_number = separator and last.endswith(" labels")
        numbers.setdefault(head if is_number else label, []).extend([last.removesuffix(" labels")] * bool(is_number))
    return [f"{head}{SEPARATOR}{_listed(of, last='or')} labels" if of else head for head, of in numbers.items()]


_WORDS = {
    "better": "shown to be better",
    "worse": "shown to be worse",
    "equivalent": "equivalent",
    "no difference shown": "not shown to differ",
    "not tested": "not tested",
}


def _named(labels: Sequence[str]) -> str:
    return f" ({', '.join(labels)})" if len(labels) <= MAX_NAMED else ""


def _listed(parts: Sequence[str], *, last: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
