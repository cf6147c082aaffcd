"""How long the rest of a study takes, by the cells that were run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping

from ehrtrack.study.cells import Study
from ehrtrack.study.queue import State
from ehrtrack.training.watch import time_text


class Pace:
    """Seconds that cells took, by their configuration.

    Examples
    --------
    Of two configurations one was run: the other is taken to need as long.

    >>> pace = Pace()
    >>> pace.note("cox", 2.0)
    >>> pace.seconds_left({"cox": 1, "full": 1}, n_workers=2)
    2.0
    >>> pace.note("full", 60.0)
    >>> pace.seconds_left({"cox": 1, "full": 1}, n_workers=1)
    62.0
    """

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def note(self, configuration: str, seconds: float) -> None:
        """A cell of a configuration has taken so long."""
        self._seconds.setdefault(configuration, []).append(seconds)

    def seconds_left(self, n_left: Mapping[str, int], *, n_workers: int) -> float | None:
        """What cells of each configuration will take workers who share them; None before any was run."""
        if not self._seconds:
            return None
        means = {configuration: statistics.fmean(seconds) for configuration, seconds in self._seconds.items()}
        of_others = statistics.fmean(_flat(self._seconds.values()))
        total = sum(number * means.get(configuration, of_others) for configuration, number in n_left.items())
        return total / max(1, n_workers)


def left_text(study: Study, states: Mapping[str, State], pace: Pace) -> str:
    """About how much time, and money where a price is given, a study's cells take that are not done.

    Empty where none is left, or nothing is known.

    Parameters
    ----------
    states : of the cells, by key; as many workers share what is left as cells run
    """
    cells = study.by_key
    rest = Counter(cells[key].configuration for key, state in states.items() if state in ("waiting", "running"))
    n_workers = sum(state == "running" for state in states.values())
    seconds = pace.seconds_left(rest, n_workers=n_workers)
    if not seconds:
        return ""
    settings = study.settings
    if settings.price_per_hour is None:
        return f"{time_text(seconds)} left"
    cost = settings.price_per_hour * seconds * max(1, n_workers) / 3600
    return f"{time_text(seconds)} and {cost:.2f} {settings.currency} left"


def _flat(lists: Iterable[list[float]]) -> list[float]:
    return [value for values in lists for value in values]
