"""The record that a model reads of a subject, event by event, and what the model says of it with parts left out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.data.events import BIRTH, EVENT_SCHEMA, MedsDataset, open_dataset
from ehrtrack.data.histories import Histories, histories_of
from ehrtrack.data.settings import VisitUnit
from ehrtrack.data.visits import DAYS_PER_YEAR, known_events, visit_key
from ehrtrack.data.vocabulary import UNK, Vocabulary, slot_names, slots
from ehrtrack.errors import DataError
from ehrtrack.pipeline.predictor import Predictor

NO_TOKEN = -1
STATIC = 0
ROWS_AT_ONCE = 1_000_000
"""Events that are tokenised in one go, over all records that are scored together."""


@dataclass(frozen=True)
class Record:
    """What a model reads of a subject at a prediction time: E events, C codes, X visits.

    Attributes
    ----------
    events : those that are known by then, with the columns of `EVENT_SCHEMA`; static facts first, then by time
    code : (E,) which of `codes` an event is read as, `NO_TOKEN` if it is not read
    codes : C names. Bins of values are of their code, a group of codes is one, and so are all codes that the model does
        not know
    visit : (E,) `STATIC`, then 1 to X in time order, `NO_TOKEN` if it is not read
    visit_times : X times at which the visits began
    """

    subject_id: int
    prediction_time: datetime
    events: pl.DataFrame
    code: Ints
    codes: tuple[str, ...]
    visit: Ints
    visit_times: tuple[datetime, ...]

    @property
    def birth(self) -> datetime | None:
        """When the subject was born, if that is known."""
        births = self.events.filter(pl.col("code") == BIRTH)["time"].drop_nulls()
        return births[0] if len(births) else None

    @property
    def age_years(self) -> float | None:
        """At the prediction time."""
        return None if self.birth is None else _years(self.prediction_time - self.birth)

    def birth_at_age(self, years: float) -> datetime | None:
        """When the subject would be born to be so old at the prediction time; None if not before all that is known."""
        if self.birth is None:
            return None
        moved = self.prediction_time - timedelta(days=years * DAYS_PER_YEAR)
        others = self.events.filter(pl.col("code") != BIRTH)["time"].drop_nulls()
        return moved if not len(others) or moved <= others[0] else None


class Variant(NamedTuple):
    """A record that never was.

    Attributes
    ----------
    left_out : (E,) events that it lacks
    birth : another time of birth, or None
    """

    left_out: Bools
    birth: datetime | None = None


def read_records(predictor: Predictor, dataset: MedsDataset, times: pl.DataFrame) -> list[Record]:
    """The records of subjects at prediction times, in the order of `times` (subject_id, prediction_time).

    Raises
    ------
    DataError
        If a subject is not in the dataset.
    """
    of_subject = _events_of(dataset, times["subject_id"].unique())
    return [_read(predictor, of_subject[subject], time) for subject, time in times.iter_rows()]


def _events_of(dataset: MedsDataset, subject_ids: pl.Series) -> dict[int, pl.DataFrame]:
    events = dataset.scan().filter(pl.col("subject_id").is_in(subject_ids.to_list())).collect()
    parts = {part["subject_id"][0]: part for part in events.partition_by("subject_id", maintain_order=True)}
    missing = sorted(set(subject_ids.to_list()) - parts.keys())
    if missing:
        raise DataError(f"subject {missing[0]} is not in {dataset.path}; name one whose events are there")
    return parts


def _read(predictor: Predictor, events: pl.DataFrame, time: datetime) -> Record:
    data, vocabulary = predictor.folder.config.data, predictor.folder.vocabulary
    cutoffs = pl.DataFrame({"subject_id": events["subject_id"][:1], "cutoff": [time]}).with_columns(
        pl.col("cutoff").cast(pl.Datetime("us"))
    )
    known = known_events(events.lazy(), cutoffs, data.delay_hours).collect()
    names = _names(histories_of(known), vocabulary)
    codes = tuple(dict.fromkeys(name for name in names if name is not None))
    number = {name: place for place, name in enumerate(codes)}
    code = np.array([NO_TOKEN if name is None else number[name] for name in names], dtype=np.int64)
    visit, visit_times = _visits(known, code != NO_TOKEN, data.visits.unit)
    return Record(int(events["subject_id"][0]), time, known, code, codes, visit, visit_times)


def _names(events: Histories, vocabulary: Vocabulary) -> list[str | None]:
    """(E,) the code or group that each event is read as, None where it is not read."""
    slot, is_token = slots(events, vocabulary.value_edges, vocabulary.exclude)
    _, of_slot = slot_names(events.codes, vocabulary.value_edges, vocabulary.groups)
    read_as = [vocabulary.code_of_token[vocabulary.known.get(name, UNK)] for name in of_slot]
    return [read_as[place] if is_read else None for place, is_read in zip(slot, is_token, strict=True)]


def _visits(events: pl.DataFrame, is_token: Bools, unit: VisitUnit) -> tuple[Ints, tuple[datetime, ...]]:
    """The visit of each event as the tokeniser numbers them, and when the visits began."""
    keyed = events.select("time", key=visit_key(unit)).with_columns(is_token=pl.Series(is_token))
    starts = (
        keyed.filter(pl.col("is_token") & pl.col("key").is_not_null())
        .group_by("key")
        .agg(start=pl.col("time").min())
        .sort("start", "key")
        .with_row_index("visit", offset=STATIC + 1)
    )
    numbered = keyed.join(starts, on="key", how="left", maintain_order="left")
    visit = numbered.select(
        pl.when(~pl.col("is_token"))
        .then(NO_TOKEN)
        .otherwise(pl.col("visit").cast(pl.Int64).fill_null(STATIC))
        .alias("visit")
    )["visit"]
    return visit.to_numpy(), tuple(starts["start"].to_list())


def risks_of(predictor: Predictor, asked: Sequence[tuple[Record, Sequence[Variant]]]) -> list[Floats]:
    """What the model says of variants of records, (n,) of the n of each: risks at the horizon, of any cause.

    Each variant is a dataset's subject of its own, and goes through tokeniser and model as every other does. Who may be
    scored is not asked: a record without its first visits may be too short for the study.
    """
    flat = [(record, variant) for record, variants in asked for variant in variants]
    found = [_risks(predictor, part) for part in _parts(flat)]
    ends = np.cumsum([len(variants) for _, variants in asked])
    return np.split(np.concatenate(found), ends[:-1]) if found else []


def _parts(flat: Sequence[tuple[Record, Variant]]) -> Iterator[Sequence[tuple[Record, Variant]]]:
    """As many at a time as have `ROWS_AT_ONCE` events, or one."""
    start, n_events = 0, 0
    for number, (record, _) in enumerate(flat):
        if number > start and n_events + record.events.height > ROWS_AT_ONCE:
            yield flat[start:number]
            start, n_events = number, 0
        n_events += record.events.height
    if start < len(flat):
        yield flat[start:]


def _risks(predictor: Predictor, part: Sequence[tuple[Record, Variant]]) -> Floats:
    frames, first = [], 0
    for _, of_record in groupby(part, key=lambda pair: id(pair[0])):
        pairs = list(of_record)
        frames.append(_written(pairs[0][0], [variant for _, variant in pairs], first))
        first += len(pairs)
    at = pl.Series([record.prediction_time for record, _ in part], dtype=pl.Datetime("us"))
    cutoffs = pl.DataFrame({"subject_id": np.arange(len(part)), "cutoff": at})
    with tempfile.TemporaryDirectory() as folder:
        return predictor.predictions_at(as_dataset(pl.concat(frames), Path(folder)), cutoffs).risk


def _written(record: Record, variants: Sequence[Variant], first: int) -> pl.DataFrame:
    """The events of variants of a record, as subjects that are numbered from `first` on."""
    number, event = np.nonzero(np.stack([~variant.left_out for variant in variants]))
    birth = pl.Series([variant.birth for variant in variants], dtype=pl.Datetime("us"))
    moved = pl.when(pl.col("code") == BIRTH).then(pl.coalesce(pl.lit(birth.gather(number)), "time")).otherwise("time")
    events = record.events[event].with_columns(subject_id=pl.Series(first + number, dtype=pl.Int64), time=moved)
    return events.sort("subject_id", "time", nulls_last=False, maintain_order=True)


def as_dataset(events: pl.DataFrame, folder: Path) -> MedsDataset:
    """Events, by subject and time, as a dataset of one shard."""
    (folder / "data").mkdir(parents=True)
    events.select(*EVENT_SCHEMA).write_parquet(folder / "data" / "0.parquet")
    return open_dataset(folder)


def _years(span: timedelta) -> float:
    return span / timedelta(days=DAYS_PER_YEAR)
