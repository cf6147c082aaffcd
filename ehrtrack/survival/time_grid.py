"""The grid of K time intervals on which survival is modelled, and where on it each subject leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Floats, Ints
from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.files import BROKEN, parse_json
from ehrtrack.survival.kaplan_meier import KaplanMeier


@dataclass(frozen=True)
class TimeGrid:
    """Interval k is (edges_days[k], edges_days[k + 1]]: open left, closed right, for k = 0 .. K - 1.

    Attributes
    ----------
    edges_days : tuple of float, length K + 1
        Days since the index date, strictly increasing, from 0 to the horizon.
    clock : KaplanMeier or None
        The population's curve. By it `survived` computes which share of an interval a censored subject was followed
        through; None computes the share in days. It is needed to fit and to score, and not to predict. It is not
        written to files, as it holds the days of single subjects.

    Examples
    --------
    An event on day 20 is in the second interval; who is censored on day 20 was seen through half of it, by days:

    >>> grid = TimeGrid((0, 10, 30))
    >>> grid.interval_of([20, 20], [True, False]).tolist()
    [1, 1]
    >>> grid.survived([20, 20], [True, False]).tolist()
    [1.0, 1.5]
    """

    edges_days: tuple[float, ...]
    clock: KaplanMeier | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges_days, dtype=np.float64)
        is_valid = len(edges) >= 2 and edges[0] == 0 and bool(np.all(np.diff(edges) > 0))
        if not is_valid or not np.all(np.isfinite(edges)):
            raise DataError(
                f"time grid with edges {self.edges_days}; needed are at least two finite edges in days, "
                "strictly increasing from 0; fit the grid with fit_time_grid"
            )

    @property
    def n_intervals(self) -> int:
        """K, the number of intervals."""
        return len(self.edges_days) - 1

    @property
    def horizon_days(self) -> float:
        """The last edge: risk is the probability of an event up to here."""
        return self.edges_days[-1]

    def interval_of(self, follow_up_days: npt.ArrayLike, is_event: npt.ArrayLike) -> Ints:
        """The number of intervals each subject is known to have survived, which is where it leaves the grid.

        An event in (edges[k], edges[k + 1]] gives k: the intervals before k were survived and k was not. A
        subject censored inside interval k gives k as well; `survived` adds how much of k it was seen through.
        A subject censored exactly at the upper edge of k was seen through the whole of k and gives k + 1; so
        one that is followed to the horizon gives K. This is why `is_event` is needed here.

        Parameters
        ----------
        follow_up_days : (B,) days from the index date to event or censoring, > 0
        is_event : (B,) bool

        Returns
        -------
        (B,) int64, within 0 .. K - 1 for events and 0 .. K for censored subjects.

        Raises
        ------
        DataError
            If a follow-up is not positive, or an event lies past the horizon.
        """
        days = np.asarray(follow_up_days, dtype=np.float64)
        event = np.asarray(is_event, dtype=bool)
        if not np.all(days > 0):
            worst = days[~(days > 0)][0]
            raise DataError(f"a follow-up of {worst} days; follow-up starts after the index date and must be > 0")
        if np.any(event & (days > self.horizon_days)):
            raise DataError(
                f"an event at {days[event].max():g} days lies past the horizon of {self.horizon_days:g}; "
                "censor follow-up at the horizon when the cohort is built"
            )
        upper_edges = np.asarray(self.edges_days[1:])
        n_edges_passed = np.searchsorted(upper_edges, days, side="left")  # upper edges strictly below `days`
        n_edges_reached = np.searchsorted(upper_edges, days, side="right")  # ... or equal to it
        return np.where(event, n_edges_passed, n_edges_reached).astype(np.int64)

    def survived(self, follow_up_days: npt.ArrayLike, is_event: npt.ArrayLike) -> Floats:
        """`interval_of`, and for a subject censored inside an interval the share of it that it was seen through.

        With S the curve of the clock, a subject censored at c within (a, b] was seen through

            f = 1 - (1 - S(b) / S(c)) / (1 - S(b) / S(a))

        of the interval: one less the risk that was left to it over the risk of the whole. Just after a, before anybody
        had an event, it is 0; where no event follows c in the interval, it is 1. With D events in the interval and n
        subjects who outlived it, the hazard of the greatest likelihood is D / (D + n + sum f). Efron's redistribution
        to the right (1967, Proc 5th Berkeley Symp 4:831-53), n_a (1 - S(b) / S(a)) = D + sum (1 - S(b) / S(c)) for the
        n_a who entered the interval, makes that 1 - S(b) / S(a): the optimum is the Kaplan-Meier curve, however the
        subjects of the clock were censored. A share of the days has this only where events and censorings are spread
        evenly over the interval; it is taken where there is no clock, and in an interval without an event of the clock.

        Parameters
        ----------
        follow_up_days : (B,) days from the index date to event or censoring, > 0
        is_event : (B,) bool

        Returns
        -------
        (B,) float64: k for an event in interval k, k + f for a subject censored in it, K at the horizon.

        Raises
        ------
        DataError
            As `interval_of`.
        """
        interval = self.interval_of(follow_up_days, is_event)
        survived = interval.astype(np.float64)
        inside = np.flatnonzero(~np.asarray(is_event, dtype=bool) & (interval < self.n_intervals))
        survived[inside] += self._share_seen(np.asarray(follow_up_days, dtype=np.float64)[inside], interval[inside])
        return survived

    def timed_by(self, follow_up_days: npt.ArrayLike, is_event: npt.ArrayLike) -> TimeGrid:
        """The same edges, with the Kaplan-Meier curve of these subjects as the clock."""
        return replace(self, clock=KaplanMeier.of(follow_up_days, is_event))

    def _share_seen(self, days: Floats, interval: Ints) -> Floats:
        """f of subjects censored at `days` inside `interval`."""
        edges = np.asarray(self.edges_days)
        share: Floats = (days - edges[interval]) / (edges[interval + 1] - edges[interval])
        if self.clock is not None:
            at_start, at_end = self._at_edges[interval], self._at_edges[interval + 1]
            at_days = self.clock.at(days)
            # f of the docstring, without its differences of ratios; S(c) = 0 leaves no event to come
            seen, whole = at_end * (at_start - at_days), at_days * (at_start - at_end)
            by_clock = np.divide(seen, whole, out=np.ones_like(share), where=whole > 0)
            share = np.where(at_start > at_end, by_clock, share)
        return share

    @cached_property
    def _at_edges(self) -> Floats:
        """(K + 1,) S of the clock at the edges."""
        assert self.clock is not None
        return self.clock.at(self.edges_days)

    def to_json(self) -> str:
        """The grid as JSON text."""
        return json.dumps({"edges_days": list(self.edges_days)})

    @classmethod
    def from_json(cls, text: str) -> TimeGrid:
        """The grid back from `to_json`.

        Raises
        ------
        CheckpointError
            If the text is not JSON with a list of numbers under ``edges_days``.
        """
        try:
            return cls(edges_days=tuple(float(edge) for edge in parse_json(text)["edges_days"]))
        except (*BROKEN, DataError) as error:
            raise CheckpointError(
                f"time grid {text[:60]!r} cannot be read ({error!r}); needed is JSON like "
                '{"edges_days": [0, 30, 365]}'
            ) from error


def fit_time_grid(
    follow_up_days: npt.ArrayLike,
    is_event: npt.ArrayLike,
    *,
    horizon_days: float,
    n_intervals: int,
) -> TimeGrid:
    """Intervals holding about equally many training events, so that each hazard is learned from as much data.

    Inner edges are the j / n_intervals quantiles of the event times. Quantiles that coincide are merged,
    and an edge with no event beyond it is dropped: every interval of the grid holds at least one training
    event, at the price of fewer intervals than asked for where event times are few or tied. The clock is the
    Kaplan-Meier curve of the same subjects.

    Parameters
    ----------
    follow_up_days : (B,) of the TRAINING subjects
    is_event : (B,) bool
    horizon_days : the last edge
    n_intervals : the most intervals wanted

    Raises
    ------
    DataError
        If there is no event in (0, horizon_days], or n_intervals is below 1.

    Examples
    --------
    Four events in two intervals, of which the first closes on the second event:

    >>> fit_time_grid([5, 10, 20, 25, 40], [True] * 4 + [False], horizon_days=30, n_intervals=2).edges_days
    (0.0, 10.0, 30.0)
    """
    if n_intervals < 1:
        raise DataError(f"n_intervals is {n_intervals}; a time grid needs at least 1")
    days = np.asarray(follow_up_days, dtype=np.float64)
    event_days = days[np.asarray(is_event, dtype=bool)]
    event_days = event_days[(event_days > 0) & (event_days <= horizon_days)]
    if event_days.size == 0:
        raise DataError(
            f"no event within {horizon_days:g} days among {days.size} training subjects; a time grid is "
            "made from event times: lengthen cohort.horizon_days or check cohort.outcome"
        )
    levels = np.arange(1, n_intervals) / n_intervals
    # inverted_cdf gives observed times, never a point between two: with (a, b] intervals each edge closes
    # on an event.
    inner = np.unique(np.quantile(event_days, levels, method="inverted_cdf"))
    inner = inner[inner < event_days.max()]
    grid = TimeGrid(edges_days=(0.0, *(float(edge) for edge in inner), float(horizon_days)))
    return grid.timed_by(days, is_event)
