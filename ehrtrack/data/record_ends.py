"""Where the whole records end that pretraining reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ehrtrack.arrays import Ints
from ehrtrack.data.events import BIRTH, DEATH, MedsDataset
from ehrtrack.data.histories import NO_TIME, read_shard
from ehrtrack.data.settings import KEEP_UNKNOWN, Births, PretrainingRecords
from ehrtrack.data.shards import ShardWork, in_two_shards, read_kept
from ehrtrack.data.split_rules import split_records
from ehrtrack.data.split_settings import Split
from ehrtrack.data.visits import MAX_AGE_YEARS, years_since
from ehrtrack.errors import DataError


def record_cutoffs(dataset: MedsDataset, split: Split, work: ShardWork, *, births: Births = "required") -> pl.DataFrame:
    """Where each whole record ends, for pretraining: at death, else at the last event; or earlier (`split_records`).

    Returns
    -------
    subject_id, cutoff datetime[us], split; sorted by subject_id. Subjects with no dated event are left out. So are,
    counted aloud, those who are older than `MAX_AGE_YEARS` there, those who are in no split, and with
    ``births = "left_out"`` those without a birth by then.

    Raises
    ------
    DataError
        If a subject lies in two shards, or there is nobody in a split that is needed.
    """
    tables = [read_kept(file) for file in work.tables(dataset, _record_ends, "records", "ends and births")]
    ends = pl.concat(tables).sort("subject_id")
    twice = ends.filter(pl.col("subject_id").is_duplicated())
    if not twice.is_empty():
        first = twice["subject_id"][0]
        shards = [s for s, t in zip(dataset.shards, tables, strict=True) if first in t["subject_id"]]
        raise DataError(in_two_shards(first, shards))
    ends = ends.drop_nulls("cutoff")
    if n_old := int(ends["is_too_old"].sum()):
        if n_old == ends.height:
            raise DataError(
                f"all {n_old} subjects are older than {MAX_AGE_YEARS} years where their records end; "
                f"look at the {BIRTH} events of the dataset"
            )
        print(
            f"left out: {n_old} of {ends.height} subjects, who are older than {MAX_AGE_YEARS} years where their "
            "records end",
            flush=True,
        )
    ends = split_records(dataset, ends.filter(~pl.col("is_too_old")).drop("is_too_old"), split)
    return (_with_births(ends) if births == "left_out" else ends).drop("birth")


def end_at_index(ends: pl.DataFrame, index_dates: pl.DataFrame, records: PretrainingRecords) -> pl.DataFrame:
    """The records without what came after a subject's first index date, from where its outcome is foretold.

    Of a subject with several index dates the first counts. What was done is told aloud, with numbers.

    Parameters
    ----------
    ends : of `record_cutoffs`
    index_dates : columns subject_id, cutoff: those of a cohort, of whatever split
    records : ``cut`` ends them there, ``leave_out`` leaves these subjects out, ``whole`` changes nothing

    Raises
    ------
    DataError
        If no training or validation record is left.

    Examples
    --------
    >>> from datetime import datetime
    >>> ends = pl.DataFrame({"subject_id": [1, 2], "cutoff": [datetime(2020, 5, 1)] * 2, "split": ["train"] * 2})
    >>> index_dates = pl.DataFrame({"subject_id": [2, 2], "cutoff": [datetime(2020, 2, 1), datetime(2020, 1, 1)]})
    >>> end_at_index(ends, index_dates, "cut")["cutoff"].dt.month().to_list()
    pretraining reads the records of 1 of 2 subjects, who are in the cohort, up to their index dates
    [5, 1]
    """
    if records == "whole":
        return ends
    first = index_dates.group_by("subject_id").agg(pl.col("cutoff").min().alias("index_date"))
    joined = ends.join(first, on="subject_id", how="left", maintain_order="left")
    in_cohort = pl.col("index_date").is_not_null()
    n_in_cohort = joined.filter(in_cohort).height
    who = f"{n_in_cohort:,} of {ends.height:,} subjects, who are in the cohort"
    if records == "leave_out":
        print(f"pretraining leaves out the records of {who}", flush=True)
        kept = joined.filter(~in_cohort).drop("index_date")
        left = set(kept["split"])
        if not {"train", "validation"} <= left:
            raise DataError(
                f'data.pretraining_records = "leave_out" leaves {kept.height:,} records, and none in the '
                f"{' and '.join(sorted({'train', 'validation'} - left))} split to pretrain on: nearly everybody is in "
                'the cohort; say "cut"'
            )
        return kept
    print(f"pretraining reads the records of {who}, up to their index dates", flush=True)
    return joined.with_columns(cutoff=pl.min_horizontal("cutoff", "index_date")).drop("index_date")


def _with_births(ends: pl.DataFrame) -> pl.DataFrame:
    """The records of those whose birth is known where they end; the others are counted aloud."""
    born = ends.filter(pl.col("birth") <= pl.col("cutoff"))
    n_unknown = ends.height - born.height
    if n_unknown == ends.height:
        raise DataError(f"none of {n_unknown} subjects has a {BIRTH} event in its record; {KEEP_UNKNOWN}")
    if n_unknown:
        print(
            f"left out: {n_unknown} of {ends.height} subjects, who have no {BIRTH} event in their records; "
            f"{KEEP_UNKNOWN}",
            flush=True,
        )
    return born


def _record_ends(shard: Path) -> pl.DataFrame:
    """subject_id, cutoff, birth and is_too_old of a shard's subjects; the dates are null where there is none."""
    events = read_shard(shard)
    never = np.iinfo(np.int64).max
    birth, death = (events.earliest(code, np.full(len(events.starts), never)) for code in (BIRTH, DEATH))
    birth_code = events.codes.index(BIRTH) if BIRTH in events.codes else -1
    last = _latest(np.where(events.code == birth_code, NO_TIME, events.time_us), events.starts)
    end = np.where(death < never, death, np.where(last > NO_TIME, last, birth))
    years = years_since(np.where(birth < never, birth, NO_TIME), end)
    is_too_old = (end != never) & (years >= MAX_AGE_YEARS + 1)
    ends = pl.DataFrame({"subject_id": events.subjects, "cutoff": end, "birth": birth, "is_too_old": is_too_old})
    dates = pl.col("cutoff", "birth")
    return ends.with_columns(pl.when(dates != never).then(dates.cast(pl.Datetime("us"))))


def _latest(time_us: Ints, starts: Ints) -> Ints:
    return np.maximum.reduceat(time_us, starts) if len(starts) else time_us
