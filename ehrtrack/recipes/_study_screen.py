"""How far a study is, as a terminal shows it: a line a configuration, with a sign for each of its repeats."""

from __future__ import annotations

from pathlib import Path

from ehrtrack.recipes._progress_table import HowFar, Line
from ehrtrack.recipes._terminal import LOGS
from ehrtrack.study.progress import Progress, by_configuration, progress
from ehrtrack.study.queue import Queue
from ehrtrack.study.results import finished_cells
from ehrtrack.tracking.client.queries import RunRecord


class StudyScreen:
    """A study's queue, looked at again and again; the tracking server is asked only when something was finished."""

    def __init__(self, queue: Queue) -> None:
        self.name = queue.study.name
        self._queue = queue
        self._done: set[str] | None = None
        self._records: dict[str, RunRecord] = {}

    @property
    def log(self) -> Path:
        """What is printed beside its cells."""
        return self._queue.study.runtime.cache / LOGS / self.name / "study.log"

    def read(self) -> HowFar:
        """See how far it is."""
        queued = self._queue.standing()
        done = {key for key, one in queued.items() if one.state == "done"}
        if done != self._done:
            self._records, self._done = finished_cells(self._queue.study), done
        return how_far(progress(self._queue.study, self._records, queued))


def how_far(now: Progress) -> HowFar:
    """As a table shows it; configurations with cells that run or failed come first, then those that are not done."""
    lines = []
    for name, cells in by_configuration(now.study).items():
        states = tuple(now.states[cell.key] for cell in cells)
        urgency = 0 if {"running", "failed"} & {*states} else 1 if {*states} != {"done"} else 2
        lines.append(Line(name, states, urgency, now.scores.get(name)))
    return HowFar(
        name=now.study.name,
        states=tuple(now.states.values()),
        left=now.left,
        best=now.best,
        ahead=next(iter(now.scores), ""),
        parts="configurations",
        titles=("configuration", f"validation {now.metric.title}" if now.metric is not None else "", "repeats"),
        lines=tuple(lines),
    )
