"""The grid of K time intervals on which survival is modelled, and where on it each subject leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ehrtrack.errors import CheckpointError, DataError


@dataclass(frozen=True)
class TimeGrid:
    """Interval k is (edges_days[k], edges_days[k + 1]]: open left, closed right, for k = 0 .. K - 1.

    Attributes
    ----------
    edges_days : tuple of float, length K + 1
        Days since the index date, strictly increasing, from 0 to the horizon.
    """

    edges_days: tuple[float, ...]

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

    def interval_of(self, follow_up_days: npt.ArrayLike, is_event: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The number of intervals each subject is known to have survived, which is where it leaves the grid.

        An event in (edges[k], edges[k + 1]] gives k: the intervals before k were survived and k was not. A
        subject censored inside interval k gives k as well: nothing is known of the rest of k, so k adds
        nothing to the likelihood. A subject censored exactly at the upper edge of k was seen through the
        whole of k and gives k + 1; so one that is followed to the horizon gives K. This is why `is_event`
        is needed here.

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
            return cls(edges_days=tuple(float(edge) for edge in json.loads(text)["edges_days"]))
        except (ValueError, KeyError, TypeError) as error:
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
    event, at the price of fewer intervals than asked for where event times are few or tied.

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
    return TimeGrid(edges_days=(0.0, *(float(edge) for edge in inner), float(horizon_days)))
