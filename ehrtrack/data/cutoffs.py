"""Cutoffs: until when the events of a subject are known, once or at several times a subject.

What reads events knows a subject by its id and asks for one cutoff. Where a subject has several, its history is laid
out once for each of them, under the number of the cutoff's row, so that nothing else has to know of it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from ehrtrack.arrays import Ints
from ehrtrack.data.histories import Histories, times_us
from ehrtrack.errors import DataError


def has_several(cutoffs: pl.DataFrame) -> bool:
    """Whether a subject has more than one cutoff, from a column subject_id."""
    return bool(cutoffs["subject_id"].is_duplicated().any())


def check_different(cutoffs: pl.DataFrame) -> None:
    """Raises DataError if a subject has the same cutoff twice, from columns subject_id and cutoff."""
    if cutoffs.n_unique(["subject_id", "cutoff"]) < cutoffs.height:
        twice = cutoffs.filter(pl.struct("subject_id", "cutoff").is_duplicated()).row(0, named=True)
        raise DataError(
            f"subject {twice['subject_id']} has the cutoff {twice['cutoff']} more than once; give each a subject once"
        )


def latest(cutoffs: pl.DataFrame) -> pl.DataFrame:
    """The last cutoff of each subject, in the order of the subjects' first rows: for what counts an event once.

    >>> from datetime import date
    >>> dates = [date(2020, 1, 1), date(2020, 3, 1), date(2020, 2, 1)]
    >>> times = pl.DataFrame({"subject_id": [7, 7, 3], "cutoff": dates})
    >>> latest(times).rows()
    [(7, datetime.date(2020, 3, 1)), (3, datetime.date(2020, 2, 1))]
    """
    if not has_several(cutoffs):
        return cutoffs
    others = [pl.col(name).first() for name in cutoffs.columns if name not in ("subject_id", "cutoff")]
    grouped = cutoffs.group_by("subject_id", maintain_order=True)
    return grouped.agg(pl.col("cutoff").max(), *others).select(cutoffs.columns)


def row_keys(cutoffs: pl.DataFrame) -> Ints:
    """(N,) what `one_history_a_cutoff` calls the rows: their subjects, or where one has several, the rows' numbers."""
    return np.arange(cutoffs.height) if has_several(cutoffs) else cutoffs["subject_id"].to_numpy()


def one_history_a_cutoff(events: Histories, cutoffs: pl.DataFrame) -> tuple[Histories, pl.DataFrame]:
    """Histories and cutoffs in which each subject is there once, under the names of `row_keys`.

    Where a subject has several cutoffs, the events up to each of them are there once for each. Otherwise both are
    returned as they are.

    Parameters
    ----------
    cutoffs : columns subject_id, cutoff (datetime[us]), in any order
    """
    if not has_several(cutoffs):
        return events, cutoffs
    keys = row_keys(cutoffs)
    row = np.flatnonzero(np.isin(cutoffs["subject_id"].to_numpy(), events.subjects))
    subject = np.searchsorted(events.subjects, cutoffs["subject_id"].to_numpy()[row])
    first = events.starts[subject]
    n_events = _ends(events, subject, times_us(cutoffs["cutoff"])[row]) - first
    before = np.cumsum(n_events) - n_events
    place = np.repeat(first - before, n_events) + np.arange(n_events.sum())
    laid_out = replace(
        events,
        subject_id=np.repeat(keys[row], n_events),
        time_us=events.time_us[place],
        code=events.code[place],
        value=events.value[place],
        visit_id=None if events.visit_id is None else events.visit_id.gather(place),
    )
    return laid_out, cutoffs.with_columns(pl.Series("subject_id", keys))


def _ends(events: Histories, subject: Ints, cutoff_us: Ints) -> Ints:
    """(R,) the place just past the last event of some subjects, by number, at or before a time."""
    times = np.unique(events.time_us)
    # A subject's events are in order of time, so that subject and rank of the time rise together.
    rank = events.spread(np.arange(len(events.starts))) * len(times) + np.searchsorted(times, events.time_us)
    ends: Ints = np.searchsorted(rank, subject * len(times) + np.searchsorted(times, cutoff_us, side="right"))
    return ends
