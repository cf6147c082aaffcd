"""Which split a subject is in, by rules that look at more than the subject: its time, its group, the dataset's word."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl

from ehrtrack.data.events import BIRTH, MedsDataset, fingerprint_of
from ehrtrack.data.labels import read_subjects
from ehrtrack.data.outcomes import midnight
from ehrtrack.data.split_settings import ColumnSplit, DatasetSplit, Split, SplitConfig, TimeSplit
from ehrtrack.data.splits import SPLITS, assign_splits, by_share, uniform
from ehrtrack.data.tables import read_table
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.section import Section

SPLIT_TABLE = Path("metadata") / "subject_splits.parquet"
"""Where a MEDS dataset says which subjects are to train, tune and judge."""
OF_MEDS = {"train": "train", "tuning": "validation", "held_out": "test"}
MOST_NAMED = 10
"""Groups that a message names."""


class Step(NamedTuple):
    """What is asked of a row to be in a split.

    Attributes
    ----------
    name : as the flow of subjects into a cohort has it
    holds : over the columns of `with_splits`

    Examples
    --------
    >>> step = Step("has a group by data.split", pl.col("group").is_not_null())
    >>> pl.DataFrame({"group": ["ward 3", None]}).select(step.holds).to_series().to_list()
    [True, False]
    """

    name: str
    holds: pl.Expr


Divided = tuple[pl.DataFrame, list[Step]]


def with_splits(dataset: MedsDataset, rows: pl.DataFrame, split: Split) -> Divided:
    """The rows with the column `split`, and what a row has to be to be in one: what fails a step is left out.

    All rows that are kept of a subject are in one split.

    Parameters
    ----------
    rows : subject_id, time (index date or prediction time), with any other columns; a subject may have several

    Raises
    ------
    DataError
        If no row is on a side of the rule's dates, a group is named that nobody is in, or a table cannot be read.
    """
    return _OF_ROWS[type(split)](dataset, rows, split)


def split_records(dataset: MedsDataset, ends: pl.DataFrame, split: Split) -> pl.DataFrame:
    """Whole records with the column `split`, for pretraining; who is left out is counted aloud.

    By time, records are cut at the last event before `train_before`, and none is for testing.

    Parameters
    ----------
    ends : subject_id, cutoff (the end of the record); a subject once

    Raises
    ------
    DataError
        As `with_splits`, and if a rule other than the hash leaves nobody to train or to validate.
    """
    if isinstance(split, TimeSplit):
        rows, steps = _cut_records(dataset, ends, split)
    else:
        rows, steps = with_splits(dataset, ends.with_columns(time="cutoff"), split)
    for step in steps:
        kept = rows.filter(step.holds)
        if n_lost := rows.height - kept.height:
            print(f"left out: {n_lost:,} of {rows.height:,} subjects, not: {step.name}", flush=True)
        rows = kept
    rows = rows.select(*ends.columns, "split")
    counts = ", ".join(f"{(rows['split'] == name).sum()} {name}" for name in SPLITS)
    if not isinstance(split, SplitConfig) and not {"train", "validation"} <= set(rows["split"]):
        raise DataError(
            f"data.split.rule = {split.rule!r} leaves {counts} subjects of {ends.height}, and pretraining needs some "
            f"to train and some to validate; {split.remedy}"
        )
    return rows


def settle_split(split: Split, path: Path) -> Split:
    """The split to go on with, with its rule written out: the dataset's own where it has one and no rule is said.

    Parameters
    ----------
    path : of the dataset

    Raises
    ------
    ConfigError
        If the dataset has a split, and shares or a seed are asked for without a rule.

    Examples
    --------
    Of a dataset without a split of its own, the hash of the subject decides:

    >>> settle_split(SplitConfig(train=0.6), Path("data/meds")).rule
    'hash'
    """
    if "rule" in split.model_fields_set:
        return split
    if not (Path(path) / SPLIT_TABLE).is_file():
        return split.model_copy(update={"rule": split.rule})  # now it counts as said
    if not split.model_fields_set:
        print(
            f"{path} has a split of its own ({SPLIT_TABLE}), which is used: train, tuning to validate, held_out to "
            'test. Another one is asked for by data.split.rule, such as "hash"',
            flush=True,
        )
        return DatasetSplit(rule="dataset")
    asked = ", ".join(f"data.split.{name} = {getattr(split, name)}" for name in sorted(split.model_fields_set))
    raise ConfigError(
        f"{path} has a split of its own ({SPLIT_TABLE}), and {asked} asks for another one: subjects that it holds out "
        f'would train. Leave {asked} out to use it, or say data.split.rule = "hash" to split otherwise'
    )


def write_split(folder: Path, subjects: pl.DataFrame) -> None:
    """Say in a dataset's metadata which split its subjects are in.

    Parameters
    ----------
    folder : of the dataset
    subjects : subject_id, split

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_split(Path(folder), pl.DataFrame({"subject_id": [1, 2], "split": ["train", "validation"]}))
    ...     pl.read_parquet(Path(folder) / SPLIT_TABLE).rows()
    [(1, 'train'), (2, 'tuning')]
    """
    of_ehrtrack = {split: name for name, split in OF_MEDS.items()}
    table = subjects.select("subject_id", pl.col("split").replace_strict(of_ehrtrack)).unique().sort("subject_id")
    table.write_parquet(folder / SPLIT_TABLE, mkdir=True)


def table_fingerprint(dataset: MedsDataset, split: Split) -> str:
    """Of the table, beside the events, that says where subjects belong; empty where the rule reads none."""
    if isinstance(split, DatasetSplit):
        return fingerprint_of("split", _splits_of_meds(dataset).sort("subject_id"))
    if isinstance(split, ColumnSplit) and split.column:
        return fingerprint_of("split", subject_groups(dataset, split).sort("subject_id"))
    return ""


def n_read_in_pretraining(dataset: MedsDataset, subjects: pl.DataFrame, split: TimeSplit) -> int:
    """How many test subjects have a record before `train_before` that a pretraining by the same rule learns from.

    Parameters
    ----------
    subjects : subject_id, split
    """
    test = subjects.filter(pl.col("split") == "test").select("subject_id").unique()
    training = test.filter(_before(test["subject_id"], split) == "train")
    return _last_before(dataset, split).join(training, on="subject_id", how="semi").height


def subject_groups(dataset: MedsDataset, split: ColumnSplit) -> pl.DataFrame:
    """The group of each subject that has one: subject_id, group str.

    Raises
    ------
    DataError
        If there is no such table, column or code, or a subject is in two groups.
    """
    found = _groups_of_codes(dataset, split.code_prefix) if split.code_prefix else _groups_of_table(dataset, split)
    groups = found.filter(pl.col("group").str.len_chars() > 0).unique().sort("subject_id", "group")
    if groups.is_empty():
        raise DataError(f"nobody has a group by {_where(dataset, split)}; look there for how groups are written")
    twice = groups.filter(pl.col("subject_id").is_duplicated())
    if twice.height:
        first = twice["subject_id"][0]
        both = " and ".join(twice.filter(pl.col("subject_id") == first)["group"].to_list()[:MOST_NAMED])
        raise DataError(
            f"{twice['subject_id'].n_unique():,} of {groups['subject_id'].n_unique():,} subjects are in several groups "
            f"by {_where(dataset, split)} (first: subject {first}, in {both}), so that no split could hold each group "
            "whole; give a group a subject"
        )
    return groups


def _by_hash(_dataset: MedsDataset, rows: pl.DataFrame, split: SplitConfig) -> Divided:
    return rows.with_columns(assign_splits(rows["subject_id"], split)), []


def _by_time(_dataset: MedsDataset, rows: pl.DataFrame, split: TimeSplit) -> Divided:
    """By the period of the subject's first time, so that none is in two splits."""
    _check_dates(rows["time"], split)
    first = pl.col("time").min().over("subject_id")
    rows = rows.with_columns(
        _period(pl.col("time"), split).alias("period"),
        _period(first, split).alias("first_period"),
        _before(rows["subject_id"], split),
    )
    is_before = pl.col("period") == "before"
    rows = rows.with_columns(pl.when(is_before).then("split").otherwise(pl.lit("test")).alias("split"))
    return rows, [
        Step("asked about before split.train_before or from split.test_from on", pl.col("period") != "between"),
        Step("in the period of the subject's first time", pl.col("period") == pl.col("first_period")),
    ]


def _period(time: pl.Expr, split: TimeSplit) -> pl.Expr:
    later = pl.when(time >= midnight(split.test_from)).then(pl.lit("after")).otherwise(pl.lit("between"))
    return pl.when(time < midnight(split.train_before)).then(pl.lit("before")).otherwise(later)


def _before(subject_ids: pl.Series, split: TimeSplit) -> pl.Series:
    """Train or validation, for the subjects before `train_before`."""
    return by_share(uniform(subject_ids, split.seed), 1 - split.validation, 1)


def _check_dates(times: pl.Series, split: TimeSplit) -> None:
    dated = times.to_frame("time")
    sides = {
        "before split.train_before": (split.train_before, pl.col("time") < midnight(split.train_before)),
        "at or after split.test_from": (split.test_from, pl.col("time") >= midnight(split.test_from)),
    }
    for side, (date, is_there) in sides.items():
        if not dated.select(is_there.any()).item():
            raise DataError(
                f"no index date or prediction time is {side} = {date}: the {len(times)} there are run "
                f"{_span(times)}; choose a date between"
            )


def _span(times: pl.Series) -> str:
    ordered = times.sort().cast(pl.String)
    return f"from {ordered[0]} to {ordered[-1]}"


def _cut_records(dataset: MedsDataset, ends: pl.DataFrame, split: TimeSplit) -> Divided:
    last = _last_before(dataset, split)
    rows = ends.join(last, on="subject_id", how="left", maintain_order="left")
    if rows["last"].null_count() == rows.height:
        raise DataError(
            f"none of {rows.height} records has an event before split.train_before = {split.train_before}: they end "
            f"{_span(rows['cutoff'])}; choose a later date"
        )
    rows = rows.with_columns(_before(rows["subject_id"], split), cutoff=pl.min_horizontal("cutoff", "last"))
    return rows, [Step("has an event before split.train_before", pl.col("last").is_not_null())]


def _last_before(dataset: MedsDataset, split: TimeSplit) -> pl.DataFrame:
    """The `last` event before `train_before` of each subject that has one, birth aside."""
    is_before = pl.col("time") <= midnight(split.train_before) - timedelta(microseconds=1)
    events = dataset.scan().filter(is_before & (pl.col("code") != BIRTH))
    return events.group_by("subject_id").agg(last=pl.col("time").max()).collect(engine="streaming")


def _by_column(dataset: MedsDataset, rows: pl.DataFrame, split: ColumnSplit) -> Divided:
    groups = subject_groups(dataset, split)
    _check_names(groups["group"].unique(), split, _where(dataset, split))
    placed = groups.with_columns(_place(groups["group"], split))
    rows = rows.join(placed, on="subject_id", how="left", maintain_order="left")
    return rows, [Step("has a group by data.split", pl.col("group").is_not_null())]


def _place(group: pl.Series, split: ColumnSplit) -> pl.Series:
    """The split of each group: where it is named, else by its hash."""
    test, validation = split.share("test"), split.share("validation")
    drawn = by_share(uniform(group, split.seed), 1 - test - validation, 1 - test)
    is_named = {name: group.is_in(split.named(name)) for name in ("validation", "test")}
    frame = pl.DataFrame({"split": drawn, **is_named})
    named = pl.when("test").then(pl.lit("test")).when("validation").then(pl.lit("validation"))
    return frame.select(named.otherwise("split").alias("split")).to_series()


def _check_names(groups: pl.Series, split: ColumnSplit, where: str) -> None:
    for part in ("validation", "test"):
        unknown = [name for name in split.named(part) if name not in groups]
        if unknown:
            there = groups.sort()
            more = f" and {len(there) - MOST_NAMED:,} more" if len(there) > MOST_NAMED else ""
            raise DataError(
                f"split.{part} names {', '.join(unknown)}, and nobody is in such a group by {where}; there are "
                f"{', '.join(there.head(MOST_NAMED))}{more}"
            )


def _groups_of_table(dataset: MedsDataset, split: ColumnSplit) -> pl.DataFrame:
    table = read_table(_group_table(dataset, split), ("subject_id", split.column), "data.split")
    column = table[split.column]
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        column = whole if (whole == column).all() else column  # where some are missing, pandas makes numbers floats
    group = column.cast(pl.String).str.strip_chars().fill_null("").alias("group")
    return pl.DataFrame([read_subjects(table["subject_id"], dataset), group]).drop_nulls("subject_id")


def _groups_of_codes(dataset: MedsDataset, prefix: str) -> pl.DataFrame:
    is_group = pl.col("time").is_null() & pl.col("code").str.starts_with(prefix)
    group = pl.col("code").str.strip_prefix(prefix).alias("group")
    return dataset.scan().filter(is_group).select("subject_id", group).collect(engine="streaming")


def _group_table(dataset: MedsDataset, split: ColumnSplit) -> Path:
    return split.path or dataset.path / "metadata" / "subjects.parquet"


def _where(dataset: MedsDataset, split: ColumnSplit) -> str:
    if split.code_prefix:
        return f"split.code_prefix = {split.code_prefix!r} (static facts whose code starts so)"
    return f"split.column = {split.column!r} of {_group_table(dataset, split)}"


def _by_dataset(dataset: MedsDataset, rows: pl.DataFrame, _split: DatasetSplit) -> Divided:
    table = _splits_of_meds(dataset)
    known = table.with_columns(pl.col("split").replace_strict(OF_MEDS, default=None, return_dtype=pl.String))
    rows = rows.join(known, on="subject_id", how="left", maintain_order="left")
    return rows, [Step(f"train, tuning or held_out in {SPLIT_TABLE}", pl.col("split").is_not_null())]


def _splits_of_meds(dataset: MedsDataset) -> pl.DataFrame:
    """The dataset's own split: subject_id, split (in MEDS's words).

    Raises
    ------
    DataError
        If there is none, or a subject is in two splits.
    """
    path = dataset.path / SPLIT_TABLE
    table = read_table(path, ("subject_id", "split"), 'data.split.rule = "dataset"')
    splits = table.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String)).unique()
    twice = splits.filter(pl.col("subject_id").is_duplicated()).sort("subject_id")
    if twice.height:
        raise DataError(
            f"{path} puts {twice['subject_id'].n_unique():,} subjects into several splits (first: subject "
            f"{twice['subject_id'][0]}); keep one row a subject"
        )
    return splits


_OF_ROWS: dict[type[Section], Callable[..., Divided]] = {
    SplitConfig: _by_hash,
    TimeSplit: _by_time,
    ColumnSplit: _by_column,
    DatasetSplit: _by_dataset,
}
