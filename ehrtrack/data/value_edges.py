"""The edges of value bins: quantiles of the training values of each code or group, counted shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from ehrtrack.arrays import Float32s, Floats, Ints
from ehrtrack.data.histories import Histories, run_starts
from ehrtrack.data.settings import VocabularyConfig
from ehrtrack.data.visits import NO_DELAYS, is_known
from ehrtrack.data.vocabulary import is_kept

MOST_DISTINCT_VALUES = 4_096
"""A code with more distinct training values has them rounded before its quantiles are taken, to bound memory."""

ROUNDED_BITS = 13
"""Bits of a 32-bit float that rounding drops: 10 of the mantissa stay, so values move down by 1 part in 1,024."""

Edges = dict[str, tuple[float, ...]]
NO_GROUPS: Mapping[str, str] = {}


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
