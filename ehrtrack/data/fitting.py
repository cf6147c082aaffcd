"""Fitting a vocabulary on training subjects, and its coverage: counted shard by shard, then added up.

What a shard counts depends on the shard alone, and the sums on no order, so any number of shards, workers and
machines comes to the same vocabulary. Of a subject with several cutoffs each event is counted once, up to the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Float32s, Floats, Ints
from ehrtrack.data.cutoffs import latest
from ehrtrack.data.events import MedsDataset, fingerprint_of
from ehrtrack.data.histories import Histories, distinct, read_shard, run_starts, subject_numbers
from ehrtrack.data.settings import VocabularyConfig
from ehrtrack.data.shards import ShardWork, read_kept
from ehrtrack.data.splits import SPLITS
from ehrtrack.data.tables import read_table
from ehrtrack.data.visits import NO_DELAYS, is_known
from ehrtrack.data.vocabulary import NEVER_TOKENS, SPECIAL_TOKENS, Vocabulary, is_kept, slot_names, slots
from ehrtrack.errors import DataError

MOST_DISTINCT_VALUES = 4_096
"""A code with more distinct training values has them rounded before its quantiles are taken, to bound memory."""

ROUNDED_BITS = 13
"""Bits of a 32-bit float that rounding drops: 10 of the mantissa stay, so values move down by 1 part in 1,024."""

Edges = dict[str, tuple[float, ...]]
NO_GROUPS: Mapping[str, str] = {}


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


def count_values(
    events: Histories, cutoffs: pl.DataFrame, exclude: tuple[str, ...], *, delay_hours: Mapping[str, float] = NO_DELAYS
) -> pl.DataFrame:
    """How often each code has each value: code, values list[f32] (rising), counts list[i64]."""
    is_counted = is_known(events, cutoffs, delay_hours) & ~np.isnan(events.value) & is_kept(events, exclude)
    key, count = np.unique(_value_key(events.code[is_counted], events.value[is_counted]), return_counts=True)
    place = (key >> 32).astype(np.int64)
    table = pl.DataFrame({"place": place, "values": _value_of(key), "counts": count})
    return (
        table.group_by("place", maintain_order=True)
        .agg("values", "counts")
        .select(pl.Series("code", events.codes, dtype=pl.String).gather(place[run_starts(place)]), "values", "counts")
    )


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


def value_edges(
    counts: Iterable[pl.DataFrame], config: VocabularyConfig, groups: Mapping[str, str] = NO_GROUPS
) -> Edges:
    """The inner edges of each code's value bins: quantiles (linear between neighbours) of its training values.

    The codes of a group are cut at the quantiles of all their values together, so that a bin means the same whichever
    code was recorded. Those of them that occur in no training record have these edges too: another dataset may use
    them.

    They are exact for a code with at most `MOST_DISTINCT_VALUES` distinct values. One with more has all its
    values rounded down to 10 bits of mantissa first, so that memory grows with the codes and not with the events.
    """
    shares = [k / config.n_value_bins for k in range(1, config.n_value_bins)]
    total = _ValueCounts()
    for table in counts:
        total.add(table)
    of_group: dict[str, dict[str, tuple[Floats, Ints]]] = {}
    for code, values, n_values in total.by_code():
        of_group.setdefault(groups.get(code, code), {})[code] = (values, n_values)
    edges = {}
    for group, members in of_group.items():
        _tell_of_units(group, members, config.min_values)
        values, n_values = _together(list(members.values()))
        if n_values.sum() >= config.min_values:
            found = {_quantile(values, n_values, share) for share in shares}
            # An edge at the lowest value would leave an empty bin below it; equal edges would leave one between them.
            edges[group] = tuple(sorted(edge for edge in found if edge > values[0]))
    edges = {group: inner for group, inner in edges.items() if inner}
    bins = {f"{code}//Q{k}" for code, inner in edges.items() for k in range(1, len(inner) + 2)}
    edges |= {code: edges[group] for code, group in groups.items() if group in edges and code not in bins}
    return dict(sorted(edges.items()))


def _together(members: Sequence[tuple[Floats, Ints]]) -> tuple[Floats, Ints]:
    """The values of several codes, rising, and their counts."""
    if len(members) == 1:
        return members[0]
    values, place = np.unique(np.concatenate([values for values, _ in members]), return_inverse=True)
    n_values = np.bincount(place, np.concatenate([counts for _, counts in members])).astype(np.int64)
    return values, n_values


def _tell_of_units(group: str, members: Mapping[str, tuple[Floats, Ints]], min_values: int) -> None:
    """Say aloud where the values of two codes of a group hardly meet: their units may differ."""
    enough = {code: of_code for code, of_code in members.items() if of_code[1].sum() >= min_values}
    ranges = {code: [_quantile(*of_code, share) for share in (0.1, 0.9)] for code, of_code in enough.items()}
    ordered = sorted(ranges, key=lambda code: ranges[code][0])
    for low, high in pairwise(ordered):
        if ranges[low][1] < ranges[high][0]:
            print(
                f"group {group}: four fifths of the values of {low} are from {ranges[low][0]:g} to {ranges[low][1]:g}, "
                f"and of {high} from {ranges[high][0]:g} to {ranges[high][1]:g}; their bins are cut together. If they "
                "are in different units, bring the values to one, or take one of the codes out of the group",
                flush=True,
            )


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


class _ValueCounts:
    """How often each code has each value, with a bound on the distinct values of a code."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self._is_rounded = np.zeros(0, dtype=bool)
        self._keys = np.zeros(0, dtype=np.uint64)  # code and value, rising
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, table: pl.DataFrame) -> None:
        places = np.array([self.codes.setdefault(code, len(self.codes)) for code in table["code"]], dtype=np.int64)
        self._is_rounded = np.pad(self._is_rounded, (0, len(self.codes) - len(self._is_rounded)))
        code = np.repeat(places, table["values"].list.len().to_numpy())
        keys = _value_key(code, table["values"].explode().to_numpy())
        self._merge(np.concatenate([self._keys, keys]), np.concatenate([self._counts, table["counts"].explode()]))
        n_distinct = np.bincount((self._keys >> 32).astype(np.int64), minlength=len(self.codes))
        is_new = (n_distinct > MOST_DISTINCT_VALUES) & ~self._is_rounded
        if is_new.any():
            self._is_rounded |= is_new
            self._merge(self._keys, self._counts)

    def _merge(self, keys: npt.NDArray[np.uint64], counts: Ints) -> None:
        is_rounded = self._is_rounded[(keys >> 32).astype(np.int64)]
        keys = np.where(is_rounded, keys >> ROUNDED_BITS << ROUNDED_BITS, keys)
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        first = run_starts(keys)
        self._keys = keys[first]
        self._counts = np.add.reduceat(counts, first) if len(first) else counts

    def by_code(self) -> Iterable[tuple[str, Floats, Ints]]:
        """Each code with its values, rising, and their counts."""
        bounds = np.searchsorted(self._keys, np.arange(len(self.codes) + 1, dtype=np.uint64) << 32)
        for code, place in self.codes.items():
            part = slice(bounds[place], bounds[place + 1])
            yield code, _value_of(self._keys[part]).astype(np.float64), self._counts[part]


def _value_key(code: npt.NDArray[np.integer], value: Float32s) -> npt.NDArray[np.uint64]:
    """Integers that sort by code, then by value: a float's bits do, once those of negative ones are turned over."""
    bits = value.astype(np.float32).view(np.uint32)
    rising = np.where(bits >> 31 == 0, bits | np.uint32(1 << 31), ~bits)
    return (code.astype(np.uint64) << np.uint64(32)) | rising


def _value_of(key: npt.NDArray[np.uint64]) -> Float32s:
    rising = (key & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return np.where(rising >> 31 == 1, rising & np.uint32(0x7FFFFFFF), ~rising).view(np.float32)


def _quantile(values: Floats, counts: Ints, share: float) -> float:
    """The quantile, linear between neighbours, of values that each occur `counts` times."""
    n_up_to = np.cumsum(counts)
    position = (n_up_to[-1] - 1) * share
    lower, upper = (
        values[np.searchsorted(n_up_to, rank, side="right")] for rank in (int(position), -int(-position // 1))
    )
    return float(lower if lower == upper else (position - int(position)) * (upper - lower) + lower)


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
