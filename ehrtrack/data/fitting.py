"""Fitting a vocabulary on training subjects, and its coverage: counted shard by shard, then added up.

What a shard counts depends on the shard alone, and the sums on no order, so any number of shards, workers and
machines comes to the same vocabulary. Of a subject with several cutoffs each event is counted once, up to the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from ehrtrack.arrays import Ints
from ehrtrack.data.cutoffs import latest
from ehrtrack.data.events import MedsDataset, fingerprint_of
from ehrtrack.data.histories import Histories, distinct, read_shard, subject_numbers
from ehrtrack.data.settings import VocabularyConfig
from ehrtrack.data.shards import ShardWork, read_kept
from ehrtrack.data.splits import SPLITS
from ehrtrack.data.tables import read_table
from ehrtrack.data.value_edges import Edges, count_values, value_edges
from ehrtrack.data.visits import NO_DELAYS, is_known
from ehrtrack.data.vocabulary import NEVER_TOKENS, SPECIAL_TOKENS, Vocabulary, slot_names, slots
from ehrtrack.errors import DataError


def fit_vocabulary(
    dataset: MedsDataset,
    cutoffs: pl.DataFrame,
    config: VocabularyConfig,
    work: ShardWork,
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
) -> Vocabulary:
    """The vocabulary of what is known of the training subjects at their cutoffs.

    Parameters
    ----------
    cutoffs : columns subject_id, cutoff, split
    delay_hours : as of `is_known`

    Raises
    ------
    DataError
        If no token reaches `min_subjects`, or `groups` cannot be read.
    """
    edges = {}
    groups = read_groups(config.groups) if config.groups else {}
    exclude = NEVER_TOKENS + config.exclude
    if config.n_value_bins > 1:
        training = latest(cutoffs.filter(pl.col("split") == "train"))
        key = fingerprint_of("values", training, exclude, *_told(delay_hours))
        shared = work.share(training, key)
        function = partial(_count_values, cutoffs=shared, exclude=exclude, delay_hours=delay_hours)
        edges = value_edges(map(read_kept, work.tables(dataset, function, "values", key)), config, groups)
    counts = _name_counts(dataset, cutoffs, edges, exclude, groups, work, delay_hours=delay_hours)
    return choose_tokens(counts, edges, groups, config)


def read_groups(path: Path) -> dict[str, str]:
    """The group of each code of a table with the columns code and group; a code that is its own group is left out.

    Raises
    ------
    DataError
        If the file is missing or lacks a column, a cell is empty, or a code is in two groups.
    """
    table = read_table(path, ("code", "group"), "data.vocabulary.groups")
    table = table.select(pl.col("code", "group").cast(pl.String)).unique(maintain_order=True)
    if table.null_count().sum_horizontal().item():
        raise DataError(f"{path} has rows without a code or a group; take them out")
    twice = table.filter(pl.col("code").is_duplicated())
    if twice.height:
        raise DataError(f"{path} puts {twice['code'][0]!r} in {' and in '.join(twice['group'][:2])}; keep one")
    return dict(table.filter(pl.col("code") != pl.col("group")).iter_rows())


def count_tokens(
    dataset: MedsDataset,
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary,
    work: ShardWork,
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
) -> pl.DataFrame:
    """The sums of `count_names` over the shards, by the names that the vocabulary gives.

    Parameters
    ----------
    cutoffs : columns subject_id, cutoff, split
    delay_hours : as of `is_known`
    """
    edges, exclude, groups = vocabulary.value_edges, vocabulary.exclude, vocabulary.groups
    return _name_counts(dataset, cutoffs, edges, exclude, groups, work, delay_hours=delay_hours)


def coverage(
    dataset: MedsDataset,
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary,
    work: ShardWork,
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
) -> pl.DataFrame:
    """How much of each split's events the vocabulary knows.

    Parameters
    ----------
    cutoffs : columns subject_id, cutoff, split
    delay_hours : as of `is_known`

    Returns
    -------
    split, n_events, share_known, share_unk, n_unk_codes; one row a split
    """
    return share_known(count_tokens(dataset, cutoffs, vocabulary, work, delay_hours=delay_hours), vocabulary)


def count_names(
    events: Histories,
    cutoffs: pl.DataFrame,
    edges: Mapping[str, tuple[float, ...]],
    exclude: tuple[str, ...],
    groups: Mapping[str, str],
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
) -> pl.DataFrame:
    """How many events and subjects there are of each token's name: split, code, name, n_events, n_subjects.

    Codes can share a name, as those of a group, or `LAB//Q1` and the first bin of `LAB`; its subjects are then in the
    first row.
    """
    slot, is_token = slots(events, edges, exclude)
    is_counted = is_known(events, cutoffs, delay_hours) & is_token
    codes, names = slot_names(events.codes, edges, groups)
    n_names, n_subjects_here = max(len(names), 1), len(events.subjects)
    pair = (events.spread(np.arange(n_subjects_here) * n_names) + slot)[is_counted]
    pair, n_of_pair = distinct(pair, n_subjects_here * n_names)
    subject, slot = np.divmod(pair, n_names)
    row, _ = subject_numbers(events.subjects, cutoffs["subject_id"].to_numpy())
    split = cutoffs["split"].cast(pl.Enum(SPLITS)).to_physical().to_numpy()[row].astype(np.int64)  # of each subject
    cell = split[subject] * n_names + slot  # a slot of a split
    n_cells = len(SPLITS) * n_names
    n_events = np.bincount(cell, n_of_pair, minlength=n_cells).astype(np.int64)
    occurring = np.flatnonzero(n_events)
    if len(set(names)) < len(names):
        cell = _same_name(occurring, names, n_cells)[cell]
        cell = distinct(subject * n_cells + cell, n_subjects_here * n_cells)[0] % n_cells
    n_subjects = np.bincount(cell, minlength=n_cells)
    split_number, slot_number = np.divmod(occurring, n_names)
    return pl.DataFrame(
        {
            "split": pl.Series(SPLITS, dtype=pl.String).gather(split_number),
            "code": pl.Series(codes, dtype=pl.String).gather(slot_number),
            "name": pl.Series(names, dtype=pl.String).gather(slot_number),
            "n_events": n_events[occurring],
            "n_subjects": n_subjects[occurring],
        }
    )


def _same_name(occurring: Ints, names: Sequence[str], n_cells: int) -> Ints:
    """(n_cells,) the first occurring cell of the same split and name."""
    same = np.arange(n_cells)
    first: dict[tuple[int, str], int] = {}
    for cell in occurring.tolist():
        split, slot = divmod(cell, len(names))
        same[cell] = first.setdefault((split, names[slot]), cell)
    return same


def choose_tokens(counts: pl.DataFrame, edges: Edges, groups: dict[str, str], config: VocabularyConfig) -> Vocabulary:
    """The vocabulary out of the counts of the training split: those of `count_names`, added up."""
    table = (
        counts.filter(pl.col("split") == "train")
        .group_by("name")
        .agg(pl.col("n_events").sum(), pl.col("n_subjects").sum())
        .filter(pl.col("n_subjects") >= config.min_subjects)
        .filter(~pl.col("name").is_in(SPECIAL_TOKENS))
        .sort("n_events", "name", descending=[True, False])
    )
    if table.is_empty():
        raise DataError(
            f"no code is recorded for at least vocabulary.min_subjects = {config.min_subjects} training "
            "subjects; lower it, or look at data.path and the cohort"
        )
    return Vocabulary(
        tokens=SPECIAL_TOKENS + tuple(table["name"].to_list()),
        value_edges=edges,
        counts=(0,) * len(SPECIAL_TOKENS) + tuple(table["n_events"].to_list()),
        exclude=NEVER_TOKENS + config.exclude,
        groups=groups,
    )


def share_known(counts: pl.DataFrame, vocabulary: Vocabulary) -> pl.DataFrame:
    """`coverage` out of the counts of `count_names`, added up."""
    unknown = ~pl.col("name").is_in(list(vocabulary.known))
    n_unknown = pl.col("n_events").filter(unknown).sum()
    table = counts.group_by("split").agg(
        pl.col("n_events").sum(),
        share_known=(pl.col("n_events").sum() - n_unknown) / pl.col("n_events").sum(),
        share_unk=n_unknown / pl.col("n_events").sum(),
        n_unk_codes=pl.col("code").filter(unknown).n_unique().cast(pl.Int64),
    )
    return pl.DataFrame({"split": SPLITS}).join(table, on="split", how="inner", maintain_order="left")


def add_counts(counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The sums of the tables of `count_names` over the shards."""
    columns = ("split", "code", "name")
    total: pl.DataFrame | None = None
    for table in counts:
        together = table if total is None else pl.concat([total, table])
        total = together.group_by(columns).agg(pl.col("n_events").sum(), pl.col("n_subjects").sum())
    assert total is not None  # a dataset has a shard
    return total


def _name_counts(
    dataset: MedsDataset,
    cutoffs: pl.DataFrame,
    edges: Edges,
    exclude: tuple[str, ...],
    groups: dict[str, str],
    work: ShardWork,
    *,
    delay_hours: Mapping[str, float],
) -> pl.DataFrame:
    cutoffs = latest(cutoffs)
    key = fingerprint_of("names", cutoffs, edges, exclude, groups, *_told(delay_hours))
    function = partial(
        _count_names,
        cutoffs=work.share(cutoffs, key),
        edges=edges,
        exclude=exclude,
        groups=groups,
        delay_hours=delay_hours,
    )
    return add_counts(map(read_kept, work.tables(dataset, function, "names", key)))


def _told(delay_hours: Mapping[str, float]) -> list[Mapping[str, float]]:
    """What a key has of the delays: nothing where there are none, as before there were any."""
    return [delay_hours] if delay_hours else []


def _count_values(
    shard: Path, *, cutoffs: Path, exclude: tuple[str, ...], delay_hours: Mapping[str, float]
) -> pl.DataFrame:
    return count_values(read_shard(shard), pl.read_ipc(cutoffs), exclude, delay_hours=delay_hours)


def _count_names(
    shard: Path,
    *,
    cutoffs: Path,
    edges: Edges,
    exclude: tuple[str, ...],
    groups: dict[str, str],
    delay_hours: Mapping[str, float],
) -> pl.DataFrame:
    return count_names(read_shard(shard), pl.read_ipc(cutoffs), edges, exclude, groups, delay_hours=delay_hours)
