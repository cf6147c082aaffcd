"""How far a sweep is, as a terminal shows it: a line a trial, with its score so far and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from ehrtrack.evaluation.differences import decimal
from ehrtrack.recipes._progress_table import HowFar, Line
from ehrtrack.recipes._terminal import LOGS
from ehrtrack.reporting.sweep import settings_text
from ehrtrack.search.drawing import DEFAULTS
from ehrtrack.search.outcome import ENDED, FAILURE, SLOT, hours_of
from ehrtrack.search.stored import Searched
from ehrtrack.search.worker import Worker
from ehrtrack.training.watch import time_text

STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.FAIL: "failed",
}


class SweepScreen:
    """A sweep's trials, looked at again and again.

    Parameters
    ----------
    study : that its runs belong to
    metrics : keys of those that trials are scored by
    """

    def __init__(self, study: str, worker: Worker, metrics: Sequence[str], cache: Path) -> None:
        self.name = f"sweep of {study}"
        self._worker = worker
        self._metrics = tuple(metrics)
        self._cache = cache

    @property
    def log(self) -> Path:
        """What is printed beside its trials."""
        return self._cache / LOGS / str(self._worker.study.study_name) / "sweep.log"

    def read(self) -> HowFar:
        """See how far it is."""
        worker = self._worker
        return how_far(self.name, Searched(worker.config, self._metrics, worker.trials(), worker.why_over()))


def how_far(name: str, searched: Searched) -> HowFar:
    """As a table shows it; trials that run or failed come first where there is no room for all, then the best."""
    trials = _last_of_each_place(searched.trials)
    n_begun = len(trials)
    n_waiting = 0 if searched.why_over else searched.config.n_trials - n_begun
    metric = searched.scored_by[0]
    worst_first = sorted(
        (score for trial in trials if (score := _score(trial)) is not None), reverse=metric.better == "lower"
    )
    lines: list[Line] = []
    best = ""
    is_any_done = any(trial.state == TrialState.COMPLETE for trial in trials)
    ahead = f"{searched.best.slot + 1}" if is_any_done else ""
    for trial in trials:
        place, score = f"{trial.user_attrs[SLOT] + 1}", _score(trial)
        settings = settings_text({**trial.user_attrs.get(DEFAULTS, {}), **trial.params}) or "defaults"
        if place == ahead:
            best = f"trial {place}, {searched.of_whom} {metric.title} {decimal(searched.best.value)} ({settings})"
        is_urgent = trial.state in (TrialState.RUNNING, TrialState.FAIL)
        n_better = len(lines) if score is None else len(worst_first) - 1 - worst_first.index(score)
        note = str(trial.user_attrs[FAILURE]) if FAILURE in trial.user_attrs else settings
        lines.append(Line(place, (STATES[trial.state],), -1 if is_urgent else n_better, score, note))
    return HowFar(
        name=name,
        states=(*(STATES[trial.state] for trial in trials), *["waiting"] * n_waiting),
        left=_left(searched, trials, n_waiting),
        best=best,
        ahead=ahead,
        parts="trials",
        titles=("trial", f"{searched.of_whom} {metric.title}", "", "settings"),
        lines=tuple(lines),
    )


def _last_of_each_place(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Of those in one place of the budget the one that ended well, or else the last; in the order of the places."""
    found = {trial.user_attrs[SLOT]: trial for trial in sorted(trials, key=lambda t: (t.state in ENDED, t.number))}
    return [found[place] for place in sorted(found)]


def _score(trial: FrozenTrial) -> float | None:
    """The first score, of a trial that has not ended well the one that it told last."""
    if trial.state == TrialState.COMPLETE:
        return float(trial.values[0])
    step = trial.last_step
    return None if step is None else trial.intermediate_values[step]


def _left(searched: Searched, trials: Sequence[FrozenTrial], n_waiting: int) -> str:
    """About how much time those take that have not ended, and why no other trial is begun."""
    n_ended = sum(trial.state in ENDED for trial in trials)
    n_left = n_waiting + sum(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in trials)
    if not n_ended or not n_left:
        return searched.why_over
    hours = hours_of(trials) / n_ended * n_left
    if searched.config.max_hours is not None:
        hours = min(hours, max(0.0, searched.config.max_hours - hours_of(trials)))
    n_workers = max(1, sum(trial.state == TrialState.RUNNING for trial in trials))
    return ", ".join(filter(None, [f"{time_text(3600 * hours / n_workers)} left", searched.why_over]))
