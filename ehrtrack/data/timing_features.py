"""Counts of tokens, and when they came: what a sequence knows and a bag of codes does not, as plain columns.

Times are exact. Values are known as far as the tokens tell them: by the number of their bin, 1 being the lowest.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ehrtrack.arrays import Float32s, Floats, Ints
from ehrtrack.data.count_features import count_features, opens_visit
from ehrtrack.data.histories import run_starts
from ehrtrack.data.store import TokenStore
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary


def timing_features(store: TokenStore, vocabulary: Vocabulary) -> pl.DataFrame:
    """One row a row of the store, in its order. What a subject does not have is missing (NaN).

    Returns
    -------
    The columns of `count_features`; days_since_visit and n_visits_last_year; and, each f32,

    - for each code ``days_since_first CODE`` and ``days_since_last CODE``, from its visits to the cutoff;
    - for each code with bins of values ``last CODE``, ``mean CODE``, ``lowest CODE``, ``highest CODE`` and
      ``trend CODE`` (last - first), in bins. Of several bins in one visit, the highest is first or last.
    """
    row = np.repeat(np.arange(len(store)), store.n_tokens)  # (T,)
    days = _days_to_cutoff(store, row)
    is_recent_visit = opens_visit(store, row) & (store.visit > 0) & (days <= 365)
    columns: dict[str, Float32s] = {
        "days_since_visit": store.end_gap_days,
        "n_visits_last_year": np.bincount(row[is_recent_visit], minlength=len(store)).astype(np.float32),
    }
    codes, code_of_token, bin_of_token = _codes(vocabulary)
    code = code_of_token[store.token]  # (T,)
    used = np.flatnonzero((store.visit > 0) & (code >= 0))
    used = used[np.argsort(code[used], kind="stable")]  # by code, then subject, then time
    bounds = np.searchsorted(code[used], np.arange(len(codes) + 1))
    for number, name in enumerate(codes):
        tokens = used[bounds[number] : bounds[number + 1]]
        summary = _summary(row[tokens], days[tokens], bin_of_token[store.token[tokens]])
        for what, values in summary.items():
            column = np.full(len(store), np.nan, dtype=np.float32)
            column[row[tokens][run_starts(row[tokens])]] = values
            columns[f"{what} {name}"] = column
    return count_features(store, vocabulary).hstack(pl.DataFrame(columns))


def _summary(row: Ints, days: Floats, value_bin: Floats) -> dict[str, Floats]:
    """Of one code's tokens, sorted by subject and time: each an array with an entry a subject that has some."""
    if not len(row):
        return {}
    first = run_starts(row)
    last = np.append(first[1:], len(row)) - 1
    summary = {"days_since_first": days[first], "days_since_last": days[last]}
    if np.isnan(value_bin).any():
        return summary
    same_first, same_last = _highest_of_visit(row, days, value_bin, first), value_bin[last]
    return summary | {
        "last": same_last,
        "mean": np.add.reduceat(value_bin, first) / np.diff(np.append(first, len(row))),
        "lowest": np.minimum.reduceat(value_bin, first),
        "highest": np.maximum.reduceat(value_bin, first),
        "trend": same_last - same_first,
    }


def _highest_of_visit(row: Ints, days: Floats, value_bin: Floats, first: Ints) -> Floats:
    """The highest bin of the first visit of each subject."""
    visit = np.cumsum(np.append(True, (row[1:] != row[:-1]) | (days[1:] != days[:-1])))
    highest = np.maximum.reduceat(value_bin, run_starts(visit))
    chosen: Floats = highest[visit[first] - 1]
    return chosen


def _codes(vocabulary: Vocabulary) -> tuple[list[str], Ints, Floats]:
    """The codes; (V,) the number of each token's code, -1 for specials; (V,) its bin, NaN for a code without bins."""
    bins = vocabulary.bins
    code_of_token = np.full(len(vocabulary), -1, dtype=np.int64)
    number: dict[str, int] = {}
    has_bins = set(bins.names)
    for index in range(len(SPECIAL_TOKENS), len(vocabulary)):
        code = token = vocabulary.tokens[index]
        if bins.code[index] >= 0:
            code = bins.names[bins.code[index]]
        elif token in has_bins:  # a code with bins that also comes without a value is two columns
            code = f"{token} (no value)"
        code_of_token[index] = number.setdefault(code, len(number))
    return list(number), code_of_token, np.where(bins.code >= 0, bins.number, np.nan)


def _days_to_cutoff(store: TokenStore, row: Ints) -> Floats:
    """(T,) days from each token's visit to its subject's cutoff."""
    gaps = np.where(opens_visit(store, row), store.gap_days, 0).astype(np.float64)
    elapsed = np.append(0, np.cumsum(gaps))  # days through the visits of all subjects, one after the other
    at_end = elapsed[store.offsets[1:]]
    until: Floats = at_end[row] - elapsed[1:] + store.end_gap_days[row]
    return until
