"""Events in memory where a dataset on disk would stand: a few subjects, asked about at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import polars as pl

from ehrtrack.data.events import EVENT_SCHEMA, MedsDataset, check_schema
from ehrtrack.data.histories import Histories, check_times, histories_of, read_shard
from ehrtrack.errors import DataError

NAME = Path("the events")
"""What events that are in no file are called in messages."""


@dataclass(frozen=True)
class HeldEvents:
    """MEDS events of a frame; `held_events` makes one.

    Attributes
    ----------
    frame : with the columns of `EVENT_SCHEMA`
    """

    frame: pl.DataFrame
    shards: ClassVar[tuple[Path, ...]] = ()

    def scan(self) -> pl.LazyFrame:
        """All events, as `MedsDataset.scan`."""
        return self.frame.lazy()

    @cached_property
    def histories(self) -> Histories:
        """All events, sorted by subject and time."""
        events = histories_of(self.frame)
        check_times(events.time_us, f"{NAME}: events")
        return events


def held_events(frame: pl.DataFrame) -> HeldEvents:
    """Check a frame of MEDS events as the shards of a dataset are checked; columns that it lacks are null.

    Raises
    ------
    DataError
        If a needed column is missing, a column has a wrong type, or an event is of no subject.

    Examples
    --------
    >>> from datetime import datetime
    >>> frame = pl.DataFrame({"subject_id": [7], "time": [datetime(2020, 1, 1)], "code": ["ICD10//I21"]})
    >>> held_events(frame).histories.codes
    ('ICD10//I21',)
    """
    check_schema(frame.schema, NAME)
    if frame["subject_id"].null_count():
        raise DataError(
            f"{NAME}: {frame['subject_id'].null_count()} of {frame.height} have no subject_id; give each its"
        )
    absent = [pl.lit(None).alias(name) for name in EVENT_SCHEMA if name not in frame.columns]
    return HeldEvents(frame.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in EVENT_SCHEMA.items()))


def shards_of(events: MedsDataset | HeldEvents, *, has_visit_ids: bool) -> Iterator[tuple[Path, Histories]]:
    """The events shard by shard, each with what it is called in messages; those in memory are one shard."""
    if isinstance(events, HeldEvents):
        yield NAME, events.histories
        return
    for shard in events.shards:
        yield shard, read_shard(shard, has_visit_ids=has_visit_ids)
