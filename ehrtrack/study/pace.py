"""How long the rest of a study takes, by the cells that were run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping


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


def _flat(lists: Iterable[list[float]]) -> list[float]:
    return [value for values in lists for value in values]
