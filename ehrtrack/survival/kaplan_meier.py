"""Kaplan and Meier's estimate as a step curve (1958, JASA 53:457-81)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Floats


@dataclass(frozen=True)
class KaplanMeier:
    """The share of subjects free of the event, day by day.

    Attributes
    ----------
    event_days : (M,) the days on which somebody had the event, rising
    survival : (M + 1,) S before the first of them, which is 1, and from each of them on

    Examples
    --------
    >>> curve = KaplanMeier.of([10, 20, 30], [True, False, True])
    >>> curve.event_days.tolist(), curve.survival.round(3).tolist()
    ([10.0, 30.0], [1.0, 0.667, 0.0])
    """

    event_days: Floats
    survival: Floats

    @classmethod
    def of(cls, follow_up_days: npt.ArrayLike, is_event: npt.ArrayLike) -> KaplanMeier:
        """The estimate of B subjects. Where an event and a censoring fall on one day, the event came first.

        Examples
        --------
        >>> KaplanMeier.of([10, 20, 20, 30], [True, True, False, False]).at([5, 10, 25]).tolist()
        [1.0, 0.75, 0.5]
        """
        days, event = np.asarray(follow_up_days, dtype=np.float64), np.asarray(is_event, dtype=bool)
        event_days, n_events = np.unique(days[event], return_counts=True)
        n_at_risk = days.size - np.searchsorted(np.sort(days), event_days, side="left")
        return cls(event_days, np.concatenate([[1.0], np.cumprod(1 - n_events / n_at_risk)]))

    def at(self, days: npt.ArrayLike) -> Floats:
        """S at the end of some days; past the last event it stays as it is."""
        survival: Floats = self.survival[np.searchsorted(self.event_days, days, side="right")]
        return survival
