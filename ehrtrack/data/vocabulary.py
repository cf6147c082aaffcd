"""From codes and numeric values to tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, NotRequired

import numpy as np
import polars as pl
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from ehrtrack.arrays import Bools, Float32s, Ints
from ehrtrack.data.events import BIRTH, DEATH, fingerprint_of, starts_with_any
from ehrtrack.data.histories import Histories
from ehrtrack.data.settings import check_patterns
from ehrtrack.errors import CheckpointError, ConfigError

PAD, UNK, CLS, MASK = 0, 1, 2, 3
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[MASK]")

NEVER_TOKENS = (f"{BIRTH}$", f"{DEATH}$", "OBSERVATION_PERIOD//")
"""Birth is carried by age, death is an outcome, and observation periods are the source's book-keeping."""


class Bins(NamedTuple):
    """The tokens that are bins of values.

    Attributes
    ----------
    names : the C codes that have some
    code : (V,) which of them a token is a bin of, -1 for none
    number : (V,) its number, 1 for the lowest values, 0 for no bin
    n_bins : (C,) how many a code has
    """

    names: tuple[str, ...]
    code: Ints
    number: Ints
    n_bins: Ints

    @property
    def level(self) -> Float32s:
        """(V,) from -1 in a code's lowest bin to 1 in its highest, 0 for no bin."""
        n_bins = self.n_bins[self.code] if len(self.n_bins) else np.ones(len(self.code), dtype=np.int64)
        level = (2 * self.number - 1 - n_bins) / np.maximum(n_bins - 1, 1)
        return np.where(self.code >= 0, level, 0).astype(np.float32)


class _Fields(TypedDict):
    """The JSON of a vocabulary."""

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)  # type: ignore[misc]

    tokens: tuple[str, ...]
    value_edges: dict[str, tuple[float, ...]]
    counts: tuple[int, ...]
    exclude: tuple[str, ...]
    groups: NotRequired[dict[str, str]]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens by index, specials first, then by falling count in the training events, then by name.

    `value_edges` maps a code to the inner edges of its value bins: value v has token `CODE//Qk` with k one
    more than the number of edges that are <= v. `counts` are the training events of each token, 0 for the
    specials. `groups` maps codes that mean the same to the one name that their tokens have (`slot_names`); they have
    the same edges, also those that no training record had. (In a vocabulary of before 2026-11-29 each has its own.)
    """

    tokens: tuple[str, ...]
    value_edges: dict[str, tuple[float, ...]]
    counts: tuple[int, ...] = ()
    exclude: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of each token."""
        return {token: index for index, token in enumerate(self.tokens)}

    @cached_property
    def known(self) -> dict[str, int]:
        """The index of each token but the specials: a code that is spelt like one of those is not it."""
        return {token: index for token, index in self.index.items() if index >= len(SPECIAL_TOKENS)}

    @property
    def fingerprint(self) -> str:
        """16 hex characters over all that decides which token an event becomes."""
        groups = (self.groups,) if self.groups else ()  # vocabularies of before there were any keep theirs
        return fingerprint_of("vocabulary", self.tokens, self.value_edges, self.exclude, *groups)

    @cached_property
    def code_of_token(self) -> tuple[str, ...]:
        """The code that each token is of, with or without a value; itself for a special, and for a group the group."""
        of_name = {name: code for code, name, _ in self._bin_names()}
        return tuple(of_name.get(token, token) for token in self.tokens)

    @cached_property
    def bins(self) -> Bins:
        """Which code's values each token is a bin of, and which; the codes of a group are one, with its name."""
        bin_of_name = {name: (code, k) for code, name, k in self._bin_names()}
        number: dict[str, int] = {}
        code, bin_number = np.full(len(self), -1, dtype=np.int64), np.zeros(len(self), dtype=np.int64)
        for token, name in enumerate(self.tokens):
            if name in bin_of_name:
                of_code, bin_number[token] = bin_of_name[name]
                code[token] = number.setdefault(of_code, len(number))
        most: Counter[str] = Counter()
        for of_code, k in bin_of_name.values():
            most[of_code] = max(most[of_code], k)
        return Bins(tuple(number), code, bin_number, np.array([most[of_code] for of_code in number], dtype=np.int64))

    def _bin_names(self) -> Iterator[tuple[str, str, int]]:
        """The code or group, the token's name and the number of each bin. One with a group of its own is none."""
        for code, edges in self.value_edges.items():
            name = self.groups.get(code, code)
            for k in range(1, len(edges) + 2):
                if f"{code}//Q{k}" not in self.groups:
                    yield name, f"{name}//Q{k}", k

    def to_json(self) -> str:
        fields = {
            "tokens": self.tokens,
            "value_edges": self.value_edges,
            "counts": self.counts,
            "exclude": self.exclude,
            "groups": self.groups,
        }
        return json.dumps(fields, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Raises CheckpointError if the text is no vocabulary."""
        try:
            fields = TypeAdapter(_Fields).validate_json(text)
            vocabulary = cls(
                tokens=fields["tokens"],
                value_edges=fields["value_edges"],
                counts=fields["counts"],
                exclude=check_patterns(fields["exclude"]),
                groups=fields.get("groups", {}),
            )
        except (ValueError, ConfigError) as error:
            raise CheckpointError(
                f"this is no vocabulary ({error!r}); take the vocabulary.json logged with the model"
            ) from error
        if len(vocabulary.index) < len(vocabulary):
            raise CheckpointError("a vocabulary has each token once; take the vocabulary.json logged with the model")
        if vocabulary.tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise CheckpointError(f"a vocabulary starts with {SPECIAL_TOKENS}, not {vocabulary.tokens[:4]}")
        return vocabulary

    def save(self, path: Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read the vocabulary: {error}") from error
        return cls.from_json(text)


def slots(
    events: Histories, value_edges: Mapping[str, tuple[float, ...]], exclude: tuple[str, ...]
) -> tuple[Ints, Bools]:
    """(E,) the slot of each event, a code with a bin of its values, and (E,) whether its code is not excluded.

    The first slot of a code is for events without a value, the others, where its values are cut, for its bins. Value
    v is in the bin that is one more than the number of edges <= v. `slot_names` says what the slots are called.
    """
    of_code = [value_edges.get(code, ()) for code in events.codes]
    n_edges = np.array([len(edges) for edges in of_code], dtype=np.int64)
    n_slots = np.where(n_edges > 0, n_edges + 2, 1)
    slot = (np.cumsum(n_slots) - n_slots)[events.code]
    with_value = np.flatnonzero(~np.isnan(events.value))
    cut = with_value[n_edges[events.code[with_value]] > 0]
    value, code = events.value[cut].astype(np.float64), events.code[cut]
    n_below = np.zeros(len(cut), dtype=np.int64)
    for edges in zip_longest(*of_code, fillvalue=np.inf):  # the first edge of each code, the second of each, ...
        n_below += value >= np.array(edges)[code]
    slot[cut] += 1 + np.minimum(n_below, n_edges[code])  # an infinite value is not beyond the last bin
    return slot, is_kept(events, exclude)


def is_kept(events: Histories, exclude: tuple[str, ...]) -> Bools:
    """(E,) whether the event's code matches none of the patterns at its start."""
    codes = pl.DataFrame({"code": events.codes}, schema={"code": pl.String})
    excluded: Bools = codes.with_columns(is_excluded=starts_with_any(exclude))["is_excluded"].to_numpy()
    return (~excluded)[events.code]


def slot_names(
    codes: Sequence[str], value_edges: Mapping[str, tuple[float, ...]], groups: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The code and the token's name of each slot: `CODE`, and where its values are cut `CODE//Q1`, `CODE//Q2`, ...

    What is in a group has the group's name instead: a token by its own name, else with its code, whose bins stay bins:
    where `A` is in group `B`, `A//Q1` becomes `B//Q1`.
    """
    pairs = []
    for code in codes:
        pairs.append((code, code))
        if edges := value_edges.get(code):
            pairs += [(code, f"{code}//Q{k + 1}") for k in range(len(edges) + 1)]
    grouped = [groups.get(name) or groups.get(code, code) + name.removeprefix(code) for code, name in pairs]
    return [code for code, _ in pairs], grouped
