"""From codes and numeric values to tokens: fitted on training subjects only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
from pydantic import Field, field_validator

from ehrtrack.data.events import BIRTH, DEATH, fingerprint_of, starts_with_any
from ehrtrack.errors import CheckpointError, ConfigError, DataError
from ehrtrack.section import Section

PAD, UNK, CLS, MASK = 0, 1, 2, 3
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[MASK]")

NEVER_TOKENS = (f"{BIRTH}$", f"{DEATH}$", "OBSERVATION_PERIOD//")
"""Birth is carried by age, death is an outcome, and observation periods are the source's book-keeping."""


def check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns themselves, if each is a regular expression that can be matched (no look-around).

    Raises
    ------
    ConfigError
        If one is empty or cannot be compiled.
    """
    for pattern in patterns:
        if not pattern:
            raise ConfigError("an empty code pattern matches every code; give a prefix or a regular expression")
        try:
            pl.Series([""]).str.contains(f"^(?:{pattern})")
        except pl.exceptions.ComputeError as error:
            reason = str(error).split("\n\n")[0]
            raise ConfigError(f"code pattern {pattern!r} is no regular expression: {reason}") from error
    return patterns


class VocabularyConfig(Section):
    """Which tokens there are.

    A token needs `min_subjects` training subjects, else it is [UNK]. A code with at least `min_values`
    numeric values is cut into up to `n_value_bins` by their training quantiles. Codes that match a pattern
    of `exclude` at their start are left out altogether.
    """

    min_subjects: int = Field(default=5, ge=1)
    n_value_bins: int = Field(default=5, ge=1)
    min_values: int = Field(default=100, ge=1)
    exclude: tuple[str, ...] = ()

    @field_validator("exclude")
    @classmethod
    def _can_be_matched(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return check_patterns(patterns)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens by index, specials first, then by falling count in the training events, then by name.

    `value_edges` maps a code to the inner edges of its value bins: value v has token `CODE//Qk` with k one
    more than the number of edges that are <= v. `counts` are the training events of each token, 0 for the
    specials.
    """

    tokens: tuple[str, ...]
    value_edges: dict[str, tuple[float, ...]]
    counts: tuple[int, ...] = ()
    exclude: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of each token."""
        return {token: index for index, token in enumerate(self.tokens)}

    @property
    def fingerprint(self) -> str:
        """16 hex characters over all that decides which token an event becomes."""
        return fingerprint_of("vocabulary", self.tokens, self.value_edges, self.exclude)

    def to_json(self) -> str:
        fields = {
            "tokens": self.tokens,
            "value_edges": self.value_edges,
            "counts": self.counts,
            "exclude": self.exclude,
        }
        return json.dumps(fields, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Raises CheckpointError if the text is no vocabulary."""
        try:
            fields = json.loads(text)
            vocabulary = cls(
                tokens=tuple(fields["tokens"]),
                value_edges={code: tuple(edges) for code, edges in fields["value_edges"].items()},
                counts=tuple(fields["counts"]),
                exclude=tuple(fields["exclude"]),
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"this is no vocabulary ({error!r}); take the vocabulary.json logged with the model"
            ) from error
        if vocabulary.tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise CheckpointError(f"a vocabulary starts with {SPECIAL_TOKENS}, not {vocabulary.tokens[:4]}")
        return vocabulary

    def save(self, path: Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot read the vocabulary: {error}") from error
        return cls.from_json(text)


def fit_vocabulary(events: pl.LazyFrame, config: VocabularyConfig) -> Vocabulary:
    """The vocabulary of training events, which the caller has restricted to what may be known.

    Raises
    ------
    DataError
        If no token reaches `min_subjects`.
    """
    exclude = NEVER_TOKENS + config.exclude
    kept = events.filter(~starts_with_any(exclude))
    edges = _value_edges(kept, config)
    table = (
        name_tokens(kept, edges)
        .group_by("name")
        .agg(n_events=pl.len(), n_subjects=pl.col("subject_id").n_unique())
        .filter(pl.col("n_subjects") >= config.min_subjects)
        .filter(~pl.col("name").is_in(SPECIAL_TOKENS))
        .sort("n_events", "name", descending=[True, False])
        .collect(engine="streaming")
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
        exclude=exclude,
    )


def name_tokens(events: pl.LazyFrame, value_edges: dict[str, tuple[float, ...]]) -> pl.LazyFrame:
    """The events with a column `name`: the code, or `CODE//Qk` where the event's value falls into bin k."""
    has_value = pl.col("numeric_value").is_not_nan() & pl.col("code").is_in(list(value_edges))
    bins = pl.LazyFrame(
        [
            (code, lower, f"{code}//Q{k}")
            for code, edges in value_edges.items()
            for k, lower in enumerate((float("-inf"), *edges), start=1)
        ],
        schema={"code": pl.String, "lower": pl.Float64, "name": pl.String},
        orient="row",
    )
    binned = (
        events.filter(has_value)
        .with_columns(value=pl.col("numeric_value").cast(pl.Float64))
        .sort("value")  # both sides are sorted here, as the join needs and cannot check within codes
        .join_asof(bins.sort("lower"), left_on="value", right_on="lower", by="code", check_sortedness=False)
        .drop("value", "lower")
    )
    plain = events.filter(has_value.not_().fill_null(True)).with_columns(name=pl.col("code"))
    return pl.concat([plain, binned])


def index_tokens(events: pl.LazyFrame, vocabulary: Vocabulary) -> pl.LazyFrame:
    """The events with a column `token` (i32); excluded codes are gone, unknown names are [UNK]."""
    known = pl.LazyFrame(
        {"name": vocabulary.tokens, "token": range(len(vocabulary))},
        schema={"name": pl.String, "token": pl.Int32},
    ).filter(pl.col("token") >= len(SPECIAL_TOKENS))
    return (
        name_tokens(events.filter(~starts_with_any(vocabulary.exclude)), vocabulary.value_edges)
        .join(known, on="name", how="left")
        .with_columns(pl.col("token").fill_null(UNK))
    )


def coverage(events: pl.LazyFrame, vocabulary: Vocabulary, splits: pl.DataFrame) -> pl.DataFrame:
    """How much of each split's events the vocabulary knows.

    Parameters
    ----------
    events : what may be known, excluded codes included
    splits : columns subject_id, split

    Returns
    -------
    split, n_events, share_known, share_unk, n_unk_codes; one row a split
    """
    order = pl.DataFrame({"split": ["train", "validation", "test"]})
    unknown = pl.col("token") == UNK
    table = (
        index_tokens(events, vocabulary)
        .join(splits.lazy().select("subject_id", "split"), on="subject_id")
        .group_by("split")
        .agg(
            n_events=pl.len().cast(pl.Int64),
            share_known=(~unknown).mean(),
            share_unk=unknown.mean(),
            n_unk_codes=pl.col("code").filter(unknown).n_unique().cast(pl.Int64),
        )
        .collect(engine="streaming")
    )
    return order.join(table, on="split", how="inner", maintain_order="left")


def _value_edges(events: pl.LazyFrame, config: VocabularyConfig) -> dict[str, tuple[float, ...]]:
    shares = [k / config.n_value_bins for k in range(1, config.n_value_bins)]
    if not shares:
        return {}
    value = pl.col("numeric_value").cast(pl.Float64)
    table = (
        events.filter(pl.col("numeric_value").is_not_nan())
        .group_by("code")
        .agg(
            pl.len().alias("n_values"),
            value.min().alias("lowest"),
            *(value.quantile(share, interpolation="linear").alias(f"edge_{share}") for share in shares),
        )
        .filter(pl.col("n_values") >= config.min_values)
        .with_columns(edges=pl.concat_list(f"edge_{share}" for share in shares))
        .sort("code")
        .collect()
    )
    # An edge at the lowest value would leave an empty bin below it; equal edges would leave one between them.
    edges = {
        code: tuple(sorted({edge for edge in row if edge > lowest}))
        for code, lowest, row in zip(table["code"], table["lowest"], table["edges"].to_list(), strict=True)
    }
    return {code: inner for code, inner in edges.items() if inner}
