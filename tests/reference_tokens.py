"""The tokeniser and the vocabulary as plain table operations over all events at once: slow, short, and independent.

What the library finds shard by shard in flat arrays is compared with this.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ehrtrack.data.events import BIRTH, MedsDataset, life_spans, starts_with_any
from ehrtrack.data.settings import VisitConfig, VocabularyConfig
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.splits import assign_splits
from ehrtrack.data.store import DTYPES
from ehrtrack.data.visits import DAYS_PER_YEAR, days_between
from ehrtrack.data.vocabulary import NEVER_TOKENS, SPECIAL_TOKENS, UNK, Vocabulary


def record_cutoffs(dataset: MedsDataset, split: SplitConfig) -> pl.DataFrame:
    """Where each whole record ends, for pretraining: at death, else at the last event."""
    ends = (
        life_spans(dataset.scan())
        .select("subject_id", cutoff=pl.coalesce("death", "last_time", "birth"))
        .drop_nulls("cutoff")
        .sort("subject_id")
        .collect(engine="streaming")
    )
    return ends.with_columns(assign_splits(ends["subject_id"], split))


def known_events(events: pl.LazyFrame, cutoffs: pl.DataFrame) -> pl.LazyFrame:
    """What is known of each subject at its cutoff: static facts, and events from birth to death up to it.

    Birth and death themselves are read from what is known, so that nothing after the cutoff has a say.
    """
    until_cutoff = (
        events.join(cutoffs.lazy().select("subject_id", "cutoff"), on="subject_id")
        .filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("cutoff")))
        .drop("cutoff")
    )
    span = life_spans(until_cutoff).select("subject_id", "birth", "death")
    time, is_static = pl.col("time"), pl.col("time").is_null()
    in_life = (time >= pl.col("birth")).fill_null(True) & (time <= pl.col("death")).fill_null(True)
    return until_cutoff.join(span, on="subject_id").filter(is_static | in_life).drop("birth", "death")


def visit_key(unit: str) -> pl.Expr:
    """What the events of one visit of a subject have in common; null for static facts."""
    day = pl.col("time").dt.strftime("%Y-%m-%d")
    if unit == "encounter":
        return pl.when(pl.col("time").is_not_null()).then(pl.coalesce("visit_id", day))
    return day if unit == "day" else pl.col("time").dt.strftime("%Y-%m-%d %H")


def visit_tokens(
    events: pl.LazyFrame, cutoff: pl.DataFrame, vocabulary: Vocabulary, config: VisitConfig
) -> pl.DataFrame:
    """The tokens of each subject's visits up to its cutoff.

    A visit begins at its first event, and visits are ordered by their beginning. Within a visit a token
    appears once, and tokens are ordered by index. Static facts are visit 0, with age and gap 0.
    """
    known = known_events(events, cutoff)
    births = known.filter(pl.col("code") == BIRTH).group_by("subject_id").agg(birth=pl.col("time").min())
    born = births.collect(engine="streaming")
    tokens = (
        index_tokens(known, vocabulary)
        .with_columns(key=visit_key(config.unit))
        .group_by("subject_id", "key", "token")
        .agg(time=pl.col("time").min())
        .collect(engine="streaming")
    )
    visits = _number_visits(tokens, born)
    return (
        tokens.drop("time")
        .join(visits, on=["subject_id", "key"], how="left", nulls_equal=True)
        .select("subject_id", "visit", "visit_start", "token", "age_years", "gap_days")
        .sort("subject_id", "visit", "token")
    )


def _number_visits(tokens: pl.DataFrame, births: pl.DataFrame) -> pl.DataFrame:
    """One row a visit (subject_id, key): its number, start, the age at it and the gap before it."""
    visits = (
        tokens.group_by("subject_id", "key")
        .agg(visit_start=pl.col("time").min())
        .sort("subject_id", "visit_start", "key", nulls_last=False)
        .join(births, on="subject_id", how="left", maintain_order="left")
    )
    is_timed = pl.col("visit_start").is_not_null()
    previous = pl.col("visit_start").shift(1).over("subject_id")
    return visits.with_columns(previous_start=previous).select(
        "subject_id",
        "key",
        "visit_start",
        visit=is_timed.cum_sum().over("subject_id").cast(pl.Int32),
        age_years=(days_between("birth", "visit_start") / DAYS_PER_YEAR).fill_null(0.0).cast(pl.Float32),
        gap_days=days_between("previous_start", "visit_start").fill_null(0.0).cast(pl.Float32),
    )


def fit_vocabulary(events: pl.LazyFrame, config: VocabularyConfig) -> Vocabulary:
    """The vocabulary of training events, which the caller has restricted to what may be known."""
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
    """How much of each split's events the vocabulary knows."""
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


def store_arrays(
    dataset: MedsDataset, cutoffs: pl.DataFrame, vocabulary: Vocabulary, visits: VisitConfig
) -> dict[str, np.ndarray]:
    tokens = visit_tokens(dataset.scan(), cutoffs, vocabulary, visits)
    births = (
        dataset.scan()
        .filter(pl.col("code") == BIRTH)
        .group_by("subject_id")
        .agg(birth=pl.col("time").min())
        .collect(engine="streaming")
    )
    per_subject = tokens.group_by("subject_id").agg(
        n_tokens=pl.len().cast(pl.Int64), last_visit=pl.col("visit_start").max()
    )
    subjects = (
        cutoffs.with_row_index("row")
        .join(births, on="subject_id", how="left")
        .join(per_subject, on="subject_id", how="left")
        .sort("row")
        .with_columns(
            pl.col("n_tokens").fill_null(0),
            end_age_years=days_between("birth", "cutoff") / DAYS_PER_YEAR,
            end_gap_days=days_between("last_visit", "cutoff").fill_null(0.0),
        )
    )
    ordered = tokens.join(subjects.select("subject_id", "row"), on="subject_id").sort("row", "visit", "token")
    columns = {
        "subject_ids": subjects["subject_id"].to_numpy(),
        "offsets": np.concatenate([[0], np.cumsum(subjects["n_tokens"].to_numpy())]),
        **{name: ordered[name].to_numpy() for name in ("token", "age_years", "visit", "gap_days")},
        **{name: subjects[name].to_numpy() for name in ("end_age_years", "end_gap_days")},
    }
    return {name: columns[name].astype(dtype) for name, dtype in DTYPES.items()}
