"""Twins of a dataset for negative controls: the same subjects with another future, or with the outcome written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ehrtrack.data.events import EVENT_SCHEMA, MedsDataset, open_dataset

FUTURE_CODE = "CONTROL//FUTURE"
"""Written after the index date of those with the outcome: it would give them away."""
LEAK_CODE = "CONTROL//LEAK"
N_LEAKS = 8
"""Codes that say when the outcome will come. One alone would leave the order of those with the outcome to chance."""

Change = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
"""Events and labels of some subjects to the twin's events."""


def write_twin(dataset: MedsDataset, labels: pl.DataFrame, folder: Path, change: Change) -> MedsDataset:
    """Write the labelled subjects' events, changed, as a dataset of their own.

    Parameters
    ----------
    labels : subject_id, prediction_time, follow_up_days, is_event
    change : makes a shard's events into those of the twin, in any order
    """
    (folder / "data").mkdir(parents=True)
    for number, shard in enumerate(dataset.shards):
        events = MedsDataset(dataset.path, (shard,)).scan().collect()
        events = events.join(labels.select("subject_id"), on="subject_id", how="semi", maintain_order="left")
        changed = change(events, labels.join(events.select("subject_id").unique(), on="subject_id", how="semi"))
        changed.sort("subject_id", "time", nulls_last=False, maintain_order=True).write_parquet(
            folder / "data" / f"{number:05d}.parquet"
        )
    return open_dataset(folder)


def unchanged(events: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """The same events."""
    return events


def scrambled_future(events: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Half of the events after the index date removed, the codes and values of the rest dealt out, and one planted."""
    dated = events.join(labels, on="subject_id", maintain_order="left")
    is_after = (pl.col("time") > pl.col("prediction_time")).fill_null(False)
    past, future = dated.filter(~is_after).select(*EVENT_SCHEMA), dated.filter(is_after).select(*EVENT_SCHEMA)
    rng = np.random.default_rng(0)
    kept = future[np.sort(rng.permutation(future.height)[: future.height // 2])]
    dealt = kept[rng.permutation(kept.height)].select("code", "numeric_value", "text_value")
    after = _planted(labels.filter("is_event"), pl.lit(FUTURE_CODE), pl.duration(days=1))
    return pl.concat([past, kept.with_columns(dealt), after])


def planted_leak(events: pl.DataFrame, labels: pl.DataFrame, *, edges_days: Sequence[float]) -> pl.DataFrame:
    """A code a minute before the index date of those with the outcome, that says between which edges it will come."""
    n_passed = pl.sum_horizontal(pl.lit(0), *(pl.col("follow_up_days") > edge for edge in edges_days))
    code = pl.format(f"{LEAK_CODE}//{{}}", n_passed)
    return pl.concat([events, _planted(labels.filter("is_event"), code, -pl.duration(minutes=1))])


def leak_edges(labels: pl.DataFrame) -> list[float]:
    """Edges in days that cut the outcomes into `N_LEAKS` equal parts; fewer where many come on one day."""
    days = labels.filter("is_event")["follow_up_days"].to_numpy()
    edges = np.unique(np.quantile(days, np.arange(1, N_LEAKS) / N_LEAKS))
    return [float(edge) for edge in edges if edge < days.max()]


def _planted(labels: pl.DataFrame, code: pl.Expr, when: pl.Expr) -> pl.DataFrame:
    """An event for each label, at a time relative to the index date."""
    planted = labels.select("subject_id", time=(pl.col("prediction_time") + when).cast(pl.Datetime("us")), code=code)
    return planted.with_columns(
        pl.lit(None, dtype).alias(name) for name, dtype in EVENT_SCHEMA.items() if name not in planted.columns
    ).select(*EVENT_SCHEMA)
