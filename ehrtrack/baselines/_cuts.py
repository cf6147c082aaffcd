"""Numbers cut into at most 255 parts, as trees of histograms ask for them: once, with one sort a column.

scikit-learn cuts by itself wherever it fits, and where rows have weights it sorts a column anew for each of 254
quantiles (`sklearn.ensemble._hist_gradient_boosting.binning`, 1.9): nine tenths of the time on recorded values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehrtrack.arrays import Floats, Ints

N_PARTS = 255
"""What a byte counts, beside one for what is missing."""


@dataclass(frozen=True)
class Cuts:
    """Where the columns of a table are cut.

    Attributes
    ----------
    edges : of each column, rising: a value is in the part of the first edge that it does not exceed, or in the last
        part

    Examples
    --------
    >>> cuts = Cuts.of(np.array([[1.0], [2.0], [4.0], [np.nan]]), np.ones(4))
    >>> cuts.edges[0].tolist(), cuts.part(np.array([[1.5], [9.0], [np.nan]])).ravel().tolist()
    ([1.5, 3.0], [0.0, 2.0, nan])
    """

    edges: tuple[Floats, ...]

    @classmethod
    def of(cls, x: Floats, weight: Floats) -> Cuts:
        """Halfway between the values of a column that has few; else into parts of equal weight.

        Parameters
        ----------
        x : (R, D) with NaN where a value is missing
        weight : (R,)
        """
        return cls(tuple(_edges(column, weight) for column in x.T))

    def part(self, x: Floats) -> Floats:
        """(R, D) the number of the part that each value is in, from 0; NaN where it is missing."""
        parts = [np.searchsorted(edges, column, side="left") for edges, column in zip(self.edges, x.T, strict=True)]
        return np.where(np.isnan(x), np.nan, np.column_stack(parts))

    def value(self, column: Ints, part: Floats) -> Floats:
        """(N,) the values that part columns (N,) where their parts do: at most `part` there is at most this here.

        Where a part is behind the last edge, such as infinity, which parts missing from present, it stays as it is.
        """
        found = part.copy()
        for place, (of, number) in enumerate(zip(column, part, strict=True)):
            if number < len(self.edges[of]):
                found[place] = self.edges[of][int(number)]
        return found


def _edges(column: Floats, weight: Floats) -> Floats:
    is_there = ~np.isnan(column) & (weight > 0)
    values = column[is_there]
    distinct = np.unique(values)
    if len(distinct) <= N_PARTS:
        halfway: Floats = (distinct[1:] + distinct[:-1]) / 2
        return halfway
    shares = np.arange(1, N_PARTS) / N_PARTS
    return np.unique(np.quantile(values, shares, weights=weight[is_there], method="inverted_cdf"))
