"""Numbers as they were recorded: the last, mean, lowest and highest value of each code, and how many there are.

Tokens tell in which bin a value lies. What reads tables may read the numbers themselves, by the same rule of what is
known at the prediction time (`visits.is_known`), and by the same names: codes of a group are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from ehrtrack.arrays import Float32s, Ints
from ehrtrack.data.count_features import count_features
from ehrtrack.data.cutoffs import one_history_a_cutoff
from ehrtrack.data.events import MedsDataset, fingerprint_of
from ehrtrack.data.histories import Histories, read_shard, run_starts, subject_numbers
from ehrtrack.data.shards import ShardWork, read_kept
from ehrtrack.data.store import TokenStore
from ehrtrack.data.visits import NO_DELAYS, is_known
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary, is_kept
from ehrtrack.errors import DataError

SUMMARIES = ("last_value", "mean_value", "lowest_value", "highest_value", "n_values")
"""What is told of a code's values. A column of `value_features` is called by one of these and the code."""

SCHEMA = pl.Schema({"row": pl.Int64(), "code": pl.String()} | dict.fromkeys(SUMMARIES, pl.Float32()))


def value_summaries(
    dataset: MedsDataset,
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary,
    work: ShardWork,
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
) -> pl.DataFrame:
    """Summaries of the values that are known of subjects at their cutoffs, of codes that the vocabulary knows.

    Shards are read one by one, and what is found in each is kept in the cache: a row a cutoff and code, whatever the
    number of events.

    Parameters
    ----------
    cutoffs : columns subject_id, cutoff; a subject may have several
    delay_hours : as of `is_known`

    Returns
    -------
    row i64 (of `cutoffs`), code str, and the columns `SUMMARIES` f32; sorted by code and row
    """
    cutoffs = cutoffs.select("subject_id", "cutoff")
    key = fingerprint_of("summaries", cutoffs, vocabulary.exclude, vocabulary.groups, dict(delay_hours))
    function = partial(
        _summarise_shard,
        cutoffs=work.share(cutoffs, key),
        exclude=vocabulary.exclude,
        groups=vocabulary.groups,
        delay_hours=delay_hours,
    )
    return _together(map(read_kept, work.tables(dataset, function, "summaries", key)), vocabulary)


def summaries_of(
    shards: Iterable[Histories],
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary,
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
) -> pl.DataFrame:
    """As `value_summaries`, of events that are in memory: no file is written."""
    by_name = vocabulary.exclude, vocabulary.groups
    tables = (summarise(events, cutoffs, *by_name, delay_hours=delay_hours) for events in shards)
    return _together(tables, vocabulary)


def _together(tables: Iterable[pl.DataFrame], vocabulary: Vocabulary) -> pl.DataFrame:
    """The summaries of all shards, of codes that the vocabulary knows."""
    known = vocabulary.code_of_token[len(SPECIAL_TOKENS) :]
    return pl.concat([table.filter(pl.col("code").is_in(known)) for table in tables]).sort("code", "row")


def _summarise_shard(
    shard: Path,
    *,
    cutoffs: Path,
    exclude: tuple[str, ...],
    groups: Mapping[str, str],
    delay_hours: Mapping[str, float],
) -> pl.DataFrame:
    return summarise(read_shard(shard), pl.read_ipc(cutoffs), exclude, groups, delay_hours=delay_hours)


def summarise(
    events: Histories,
    cutoffs: pl.DataFrame,
    exclude: tuple[str, ...] = (),
    groups: Mapping[str, str] | None = None,
    *,
    delay_hours: Mapping[str, float] = NO_DELAYS,
) -> pl.DataFrame:
    """As `value_summaries`, of the subjects of a shard and of every code.

    Static facts come before all others. Of several values of one time, the one that the dataset has last is the last.
    """
    events, cutoffs = one_history_a_cutoff(events, cutoffs)
    is_used = is_known(events, cutoffs, delay_hours) & np.isfinite(events.value) & is_kept(events, exclude)
    number: dict[str, int] = {}
    group_of = {} if groups is None else groups
    of_code = np.array(
        [number.setdefault(group_of.get(code, code), len(number)) for code in events.codes], dtype=np.int64
    )
    row, _ = subject_numbers(events.subjects, cutoffs["subject_id"].to_numpy())
    cell = (events.spread(row) * max(len(number), 1) + of_code[events.code])[is_used]  # a row and a code
    order = np.argsort(cell, kind="stable")  # the events of a cell stay in order of time
    cell, value = cell[order], events.value[is_used][order]
    first = run_starts(cell)
    n_values = np.diff(first, append=len(cell))
    if not len(cell):
        return pl.DataFrame(schema=SCHEMA)
    row_of_cell, code_of_cell = np.divmod(cell[first], len(number))
    summaries = {
        "last_value": value[first + n_values - 1],
        "mean_value": np.add.reduceat(value.astype(np.float64), first) / n_values,
        "lowest_value": np.minimum.reduceat(value, first),
        "highest_value": np.maximum.reduceat(value, first),
        "n_values": n_values,
    }
    code = pl.Series("code", list(number), dtype=pl.String).gather(code_of_cell)
    return pl.DataFrame({"row": row_of_cell, "code": code} | summaries).cast(SCHEMA)


def value_features(store: TokenStore, vocabulary: Vocabulary, summaries: pl.DataFrame) -> pl.DataFrame:
    """One row a row of the store, in its order. What a subject does not have is missing (NaN), and its number 0.

    Parameters
    ----------
    summaries : of `value_summaries`, by the cutoffs of the store

    Returns
    -------
    The columns of `count_features` but those of bins, whose place the numbers take; and, each f32, ``last_value CODE``,
    ``mean_value CODE``, ``lowest_value CODE``, ``highest_value CODE`` and ``n_values CODE`` of each code of which a
    subject of the table has a value.

    Raises
    ------
    DataError
        If the summaries are not of these rows.
    """
    rows = summaries["row"].to_numpy()
    if len(rows) and rows.max() >= len(store):
        raise DataError(
            f"summaries of values go up to row {rows.max()}, and the token store has {len(store)} rows; make both from "
            "the same cutoffs"
        )
    bins = vocabulary.bins
    counts = count_features(store, vocabulary)
    counts = counts.drop(token for token, code in zip(vocabulary.tokens, bins.code, strict=True) if code >= 0)
    codes, starts = _runs(summaries["code"])
    found = {name: summaries[name].to_numpy() for name in SUMMARIES}
    columns: dict[str, Float32s] = {}
    for place, code in enumerate(codes):
        part = slice(starts[place], starts[place + 1])
        for name in SUMMARIES:
            column = np.full(len(store), 0 if name == "n_values" else np.nan, dtype=np.float32)
            column[rows[part]] = found[name][part]
            columns[f"{name} {code}"] = column
    return counts.hstack(pl.DataFrame(columns)) if columns else counts


def _runs(codes: pl.Series) -> tuple[list[str], Ints]:
    """The codes of a sorted column, and where each begins, with the end."""
    runs = codes.rle().struct.unnest()
    lengths = runs["len"].to_numpy().astype(np.int64)
    return runs["value"].to_list(), np.concatenate([[0], np.cumsum(lengths)])


def with_absent_values(features: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """The features with a column of missing values for each of `names` that tells of values which no subject here has.

    Columns of `value_features` depend on what the subjects have: in a shard with nobody's troponin there is none of it.

    Examples
    --------
    >>> features = pl.DataFrame({"age_years": [60.0]})
    >>> with_absent_values(features, ["last_value LAB//troponin", "n_values LAB//troponin", "A"]).row(0)
    (60.0, nan, 0.0)
    """
    absent = [name for name in names if name not in features.columns and name.split(" ", 1)[0] in SUMMARIES]
    filling = {name: 0.0 if name.startswith("n_values ") else float("nan") for name in absent}
    return features.with_columns(pl.lit(value, pl.Float32).alias(name) for name, value in filling.items())
