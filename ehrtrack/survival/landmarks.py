"""One model at several landmarks: a C-index over all of them, with an interval that keeps subjects together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Float32s, Floats, Ints
from ehrtrack.survival.bootstrap import N_RESAMPLES
from ehrtrack.survival.concordance import RankedSubjects
from ehrtrack.survival.metrics import checked_predictions, require_comparable_pair
from ehrtrack.survival.resampling import Interval, drawn_counts, percentile_interval


@dataclass(frozen=True)
class AtLandmark:
    """The subjects who are still followed at a landmark.

    Attributes
    ----------
    subject : (B,) identifiers; a subject has the same one at every landmark, and at each of its index dates
    risk, follow_up_days, is_event : (B,) from the landmark on, as in `metrics.c_index`

    Examples
    --------
    >>> at = AtLandmark(np.array([1, 2]), risk=[0.9, 0.2], follow_up_days=[10, 30], is_event=[True, False])
    >>> print(pooled_c_index([at], n_resamples=50))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ehrtrack.errors.NotMeasurable: 28 of 50 resamples have no value: too few events for an ...
    """

    subject: Ints
    risk: npt.ArrayLike
    follow_up_days: npt.ArrayLike
    is_event: npt.ArrayLike


def pooled_c_index(landmarks: Sequence[AtLandmark], *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Interval:
    """C-index of all pairs of subjects at the same landmark, with its percentile interval over resampled subjects.

    Two subjects are compared at each landmark at which both are still followed, and never across landmarks, where their
    remaining times do not compare. A subject that is drawn brings along its rows at all landmarks (a bootstrap of
    clusters, Davison & Hinkley 1997, section 3.8), for they are far from independent: as rows of different subjects
    they would make the interval too narrow. With one landmark it is `bootstrap.c_index_interval`.

    Raises
    ------
    NotMeasurable
        If a landmark has no comparable pair.

    Examples
    --------
    At the first landmark all pairs of 20 subjects are concordant, and at the second no pair of the 10 who are left:
    190 of 190 + 45.

    >>> days = np.arange(1, 21)
    >>> first = AtLandmark(days, risk=1 / days, follow_up_days=days, is_event=[True] * 20)
    >>> second = AtLandmark(days[10:], risk=days[10:], follow_up_days=days[10:] - 10, is_event=[True] * 10)
    >>> round(pooled_c_index([first, second], n_resamples=50).estimate, 3), round(190 / 235, 3)
    (0.809, 0.809)
    """
    drawn, ranked = np.unique(np.concatenate([at.subject for at in landmarks])), []
    for at in landmarks:
        risk, days, event = checked_predictions(at.risk, at.follow_up_days, at.is_event)
        require_comparable_pair(days, event)
        ranked.append((np.searchsorted(drawn, at.subject), RankedSubjects.of(risk, days, event)))

    def share(counts: Float32s) -> Floats:
        """(R,) of concordant among comparable pairs; NaN without one."""
        comparable, concordant = np.zeros(len(counts)), np.zeros(len(counts))
        for place, subjects in ranked:
            of_landmark = subjects.resampled_pairs(counts[:, place])
            comparable += of_landmark[0]
            concordant += of_landmark[1]
        found: Floats = np.full(len(counts), np.nan)
        return np.divide(concordant, comparable, out=found, where=comparable > 0)

    estimate = share(np.ones((1, len(drawn)), np.float32))[0]
    resampled = [share(counts) for _, counts in drawn_counts(len(drawn), n_resamples=n_resamples, seed=seed)]
    return percentile_interval(float(estimate), np.concatenate(resampled))
