"""Drift: whether the codes and values of new records are like those that a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
import polars as pl

from ehrtrack.arrays import Float32s, Floats, Ints
from ehrtrack.data.cutoffs import one_history_a_cutoff
from ehrtrack.data.histories import Histories, subject_numbers
from ehrtrack.data.visits import DAYS_PER_YEAR, NO_DELAYS, is_known
from ehrtrack.data.vocabulary import UNK, Vocabulary, slot_names, slots
from ehrtrack.errors import CheckpointError

MOST_YEARS = 10_000
LEAST_VALUES = 100
"""Values of a code, in training and among the new ones, from which their bins are compared."""

MOST_MORE_UNKNOWN = 0.05
"""Share of events of unknown codes over that of training above which the codes have drifted."""

MOST_PSI = 0.25
"""Population stability index of a code's values over which they have drifted (Siddiqi 2006, Credit Risk Scorecards)."""

MOST_MORE_OUTERMOST = 0.2
"""Share of values in the lowest or the highest bins over that of training above which the values have drifted."""

SILENT_YEARS = 10
"""From the last event to the prediction time: a record that is silent for longer, and for more than twice as long as
any of the model's cohort, does not go up to that time. It is far from what is usual, as people do stay away for years.
"""

LEAST_SHARE = 0.01
"""An empty bin counts as this share: the index has logarithms, and shares of training are kept to two decimals."""

CODES_SHOWN = 5


@dataclass(frozen=True)
class Seen:
    """What a model saw of codes and values in training. It does not tell how often a code was recorded.

    Attributes
    ----------
    share_unknown : of the training events, those whose token is not in the vocabulary
    bin_shares : of a code with `LEAST_VALUES` training values or more, the share in each of its bins, lowest first
    silent_years : longest time from a subject's last event to its index date, in whole years (rounded up)
    """

    share_unknown: float
    bin_shares: dict[str, tuple[float, ...]]
    silent_years: int

    @classmethod
    def of(cls, n_events: Ints, vocabulary: Vocabulary, silent_days: Float32s) -> Seen:
        """Of events (V,) by token, from `events_by_token`, and of each subject's days from its last event."""
        shares = {
            code: tuple(round(float(share), 2) for share in in_bins / in_bins.sum())
            for code, in_bins in _values_in_bins(n_events, vocabulary).items()
            if in_bins.sum() >= LEAST_VALUES
        }
        share_unknown = float(n_events[UNK] / max(n_events.sum(), 1))
        return cls(round(share_unknown, 4), shares, ceil(float(silent_days.max(initial=0)) / DAYS_PER_YEAR))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Seen:
        """Raises CheckpointError if the fields are of something else."""
        try:
            shares = {str(code): tuple(map(float, found)) for code, found in fields["bin_shares"].items()}
            seen = cls(float(fields["share_unknown"]), shares, int(fields["silent_years"]))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"what the model saw in training cannot be read: {error!r}") from error
        all_shares = [seen.share_unknown, *(share for of_code in shares.values() for share in of_code)]
        if not all(0 <= share <= 1 for share in all_shares) or not 0 <= seen.silent_years <= MOST_YEARS:
            raise CheckpointError("what the model saw in training cannot be read: it has no shares and years")
        return seen


@dataclass(frozen=True)
class Drift:
    """New records against those of training.

    Attributes
    ----------
    n_events, n_unknown : events that become tokens, and those whose token the vocabulary does not have
    share_unknown_then : the latter's share in training; None where the model's folder does not say
    n_values : values that lie in a bin of a code that is compared
    outermost, outermost_then : shares of these in the lowest and in the highest bin of their codes, here and in
        training, for the same codes as often as here
    n_codes : codes with enough values here and then
    moved : of these, the ones whose values lie otherwise than in training, with their population stability index
    """

    n_events: int
    n_unknown: int
    share_unknown_then: float | None
    n_values: int
    outermost: tuple[float, float]
    outermost_then: tuple[float, float]
    n_codes: int
    moved: dict[str, float]

    @classmethod
    def between(cls, n_events: Ints, vocabulary: Vocabulary, seen: Seen | None) -> Drift:
        """Of events (V,) by token, against what the model saw."""
        then = {} if seen is None else seen.bin_shares
        found = {
            code: (in_bins, np.array(then[code]))
            for code, in_bins in _values_in_bins(n_events, vocabulary).items()
            if len(then.get(code, ())) == len(in_bins)
        }
        total = sum(float(in_bins.sum()) for in_bins, _ in found.values())
        enough = {code: pair for code, pair in found.items() if pair[0].sum() >= LEAST_VALUES}
        indices = {code: stability_index(in_bins / in_bins.sum(), shares) for code, (in_bins, shares) in enough.items()}

        def outermost(place: int) -> tuple[float, float]:
            here = sum(float(in_bins[place]) for in_bins, _ in found.values())
            before = sum(float(in_bins.sum() * shares[place]) for in_bins, shares in found.values())
            return (here / total, before / total) if total else (0.0, 0.0)

        (low, low_then), (high, high_then) = outermost(0), outermost(-1)
        return cls(
            n_events=int(n_events.sum()),
            n_unknown=int(n_events[UNK]),
            share_unknown_then=None if seen is None else seen.share_unknown,
            n_values=int(total),
            outermost=(low, high),
            outermost_then=(low_then, high_then),
            n_codes=len(enough),
            moved={code: psi for code, psi in sorted(indices.items(), key=lambda x: -x[1]) if psi > MOST_PSI},
        )

    @property
    def share_unknown(self) -> float:
        """Of the events, those whose token the vocabulary does not have; 0 where there is no event."""
        return self.n_unknown / self.n_events if self.n_events else 0.0

    @property
    def has_new_codes(self) -> bool:
        """Whether many more events than in training are of codes that the model does not know."""
        then = self.share_unknown_then
        return then is not None and self.share_unknown > then + MOST_MORE_UNKNOWN

    @property
    def has_new_extremes(self) -> bool:
        """Whether many more values than in training are low or high for their code."""
        pairs = zip(self.outermost, self.outermost_then, strict=True)
        return self.n_values >= LEAST_VALUES and any(here > then + MOST_MORE_OUTERMOST for here, then in pairs)

    @property
    def is_over_limit(self) -> bool:
        """Whether codes or values are so far from those of training that risks are in doubt."""
        return self.has_new_codes or self.has_new_extremes or bool(self.moved)

    def to_lines(self) -> list[str]:
        """Counts for people."""
        then = (
            "not kept in this model's folder" if self.share_unknown_then is None else f"{self.share_unknown_then:.1%}"
        )
        lines = [
            f"codes: {self.n_unknown:,} of {self.n_events:,} events ({self.share_unknown:.1%}; in training {then}) are "
            "of codes that the model does not know" + (_WARNING if self.has_new_codes else "")
        ]
        if self.n_values:
            (low, high), (low_then, high_then) = self.outermost, self.outermost_then
            lines.append(
                f"values: of {self.n_values:,}, {low:.0%} lie in the lowest bin of their code (in training "
                f"{low_then:.0%}) and {high:.0%} in the highest ({high_then:.0%})"
                + (_WARNING if self.has_new_extremes else "")
            )
        if self.n_codes:
            worst = ", ".join(f"{code} {psi:.2f}" for code, psi in list(self.moved.items())[:CODES_SHOWN])
            lines.append(
                f"values of {len(self.moved)} of {self.n_codes} codes lie otherwise than in training (population "
                f"stability index over {MOST_PSI:g})" + (f": {worst}{_WARNING}" if self.moved else "")
            )
        return lines

    def to_json(self) -> str:
        """All counts, as text."""
        return json.dumps(asdict(self) | {"is_over_limit": self.is_over_limit})


_WARNING = "; the risks are in doubt: map codes and units to those of training, or train on this data"


def silent_days_limit(seen: Seen | None) -> float:
    """How long a record may have been silent before the prediction time."""
    return DAYS_PER_YEAR * max(SILENT_YEARS, 2 * seen.silent_years if seen else 0)


def events_by_token(counts: pl.DataFrame, vocabulary: Vocabulary) -> Ints:
    """(V,) events of each token, [UNK] for those that are of none, from the counts of `fitting.count_names`."""
    token = np.array([vocabulary.known.get(name, UNK) for name in counts["name"]], dtype=np.int64)
    n_events = np.zeros(len(vocabulary), dtype=np.int64)
    np.add.at(n_events, token, counts["n_events"].to_numpy())
    return n_events


def unknown_events(
    events: Histories, cutoffs: pl.DataFrame, vocabulary: Vocabulary, delay_hours: Mapping[str, float] = NO_DELAYS
) -> tuple[Ints, Ints]:
    """How many events that become tokens are known at each of N cutoffs, and how many of these no token knows.

    Parameters
    ----------
    cutoffs : columns subject_id, cutoff; a subject may have several
    delay_hours : as of `is_known`

    Returns
    -------
    (N,) and (N,)
    """
    events, keyed = one_history_a_cutoff(events, cutoffs)
    slot, is_token = slots(events, vocabulary.value_edges, vocabulary.exclude)
    is_counted = is_known(events, keyed, delay_hours) & is_token
    _, names = slot_names(events.codes, vocabulary.value_edges, vocabulary.groups)
    is_unknown = np.array([name not in vocabulary.known for name in names], dtype=bool)
    row, _ = subject_numbers(events.subjects, keyed["subject_id"].to_numpy())
    row_of_event, n_rows = events.spread(row)[is_counted], cutoffs.height
    n_unknown = np.bincount(row_of_event[is_unknown[slot[is_counted]]], minlength=n_rows)
    return np.bincount(row_of_event, minlength=n_rows), n_unknown


def stability_index(here: Floats, then: Floats) -> float:
    """The population stability index, sum (p - q) log(p / q), of the shares of bins here and in training."""
    p, q = np.maximum(here, LEAST_SHARE), np.maximum(then, LEAST_SHARE)
    return float(((p - q) * np.log(p / q)).sum())


def _values_in_bins(n_events: Ints, vocabulary: Vocabulary) -> dict[str, Ints]:
    """How many values of each code lie in each of its bins, lowest first."""
    bins = vocabulary.bins
    is_bin = bins.code >= 0
    table = np.zeros((len(bins.names), max(bins.n_bins, default=0)), dtype=np.int64)
    table[bins.code[is_bin], bins.number[is_bin] - 1] = n_events[is_bin]
    return {name: table[k, : bins.n_bins[k]] for k, name in enumerate(bins.names)}
