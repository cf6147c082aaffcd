"""How far a study is at a moment: how its cells stand, which configuration is ahead, and what the rest takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ehrtrack.evaluation.benchmark import metric_of_choice
from ehrtrack.evaluation.differences import decimal
from ehrtrack.evaluation.metric_table import Metric
from ehrtrack.evaluation.repeats import Configuration, Repeat, best_configurations_first
from ehrtrack.study.cells import Cell, Study
from ehrtrack.study.pace import Pace, left_text
from ehrtrack.study.queue import Standing, State
from ehrtrack.study.results import repeats_of
from ehrtrack.tracking.client.queries import RunRecord

SIGNS: Mapping[str, str] = {
    "done": "done",
    "pruned": "pruned",
    "running": "runs",
    "waiting": "·",
    "failed": "FAILED",
    "blocked": "blocked",
}
"""What a cell of a study, or a trial of a sweep, which alone may be pruned, is shown as."""


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes
    ----------
    states : of the cells, by key
    ahead : configurations with finished runs, the best by mean validation score first
    pace : of the runs that are done
    """

    study: Study = field(repr=False)
    states: Mapping[str, State]
    ahead: tuple[Configuration, ...] = field(repr=False)
    pace: Pace = field(repr=False)

    @property
    def metric(self) -> Metric | None:
        """By which configurations are chosen; None before one of them has a finished run."""
        return metric_of_choice([row for of in self.ahead for row in of.rows]) if self.ahead else None

    @property
    def scores(self) -> dict[str, float]:
        """Mean validation score of each configuration that has one, the best first."""
        metric = self.metric
        if metric is None:
            return {}
        return {of.label: score for of in self.ahead if (score := of.validation_score(metric)) is not None}

    @property
    def best(self) -> str:
        """Which configuration is ahead, in words; empty where none has a score yet."""
        scores, metric = self.scores, self.metric
        if not scores or metric is None:
            return ""
        label, score = next(iter(scores.items()))
        n_done = sum(len(of.repeats) for of in self.ahead if of.label == label)
        n_all = len(by_configuration(self.study)[label])
        return f"{label}, validation {metric.title} {decimal(score)} ({n_done} of {n_all} done)"

    @property
    def left(self) -> str:
        """About how much time, and money where a price is given, the other cells take; empty where nothing is known."""
        return left_text(self.study, self.states, self.pace)


def progress(study: Study, records: Mapping[str, RunRecord], queued: Mapping[str, Standing]) -> Progress:
    """How far a study is, by what the tracking server and the queue say.

    Parameters
    ----------
    records : the finished runs, by the key of their cell
    queued : how cells stand in the queue, which knows those that run, wait or failed
    """
    pace, groups = Pace(), dict[str, list[tuple[Cell, Repeat]]]()
    for key, record in records.items():
        if "cost/total_seconds" in record.metrics:
            pace.note(study.by_key[key].configuration, record.metrics["cost/total_seconds"])
    repeats, _ = repeats_of(study, records)
    for key, repeat in repeats.items():
        cell = study.by_key[key]
        groups.setdefault(cell.configuration, []).append((cell, repeat))
    found = (Configuration(name, of[0][0].settings, tuple(repeat for _, repeat in of)) for name, of in groups.items())
    standing = standings(study, records, queued)
    states: dict[str, State] = {key: one.state for key, one in standing.items()}
    return Progress(study, states, tuple(best_configurations_first(found)), pace)


def standings(study: Study, records: Mapping[str, RunRecord], queued: Mapping[str, Standing]) -> dict[str, Standing]:
    """How each cell stands: done is what the tracking server has, and of the others the queue knows."""
    found = {key: one for key, one in queued.items() if one.state != "done"}
    return {
        cell.key: Standing("done") if cell.key in records else found.get(cell.key, Standing()) for cell in study.cells
    }


def by_configuration(study: Study) -> dict[str, list[Cell]]:
    """The cells of each configuration, which are its repeats."""
    groups: dict[str, list[Cell]] = {}
    for cell in study.cells:
        groups.setdefault(cell.configuration, []).append(cell)
    return groups


def counts_text(states: Iterable[str]) -> str:
    """How many cells or trials stand how.

    >>> counts_text(["waiting", "done", "waiting", "running"])
    '1 done, 1 running, 2 waiting'
    """
    all_of_them = list(states)
    return ", ".join(f"{all_of_them.count(state)} {state}" for state in SIGNS if state in all_of_them)
