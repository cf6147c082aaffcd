"""Event table to visit tokens with pandas, as research code commonly does it; vectorised, in memory.

It gives the same tokens as the library's import and tokeniser on clean data: values cut at training quantiles,
rare codes as [UNK], one token a code and day. What it does without: all checks, reports and provenance, and disk.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ehrtrack.data.settings import VocabularyConfig
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.splits import assign_splits
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, UNK


def tokenise(folder: Path) -> pd.DataFrame:
    """Columns subject_id, visit, token; sorted."""
    import polars as pl

    files = sorted((folder / "data").glob("*.parquet"))
    events = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    births = events[events["code"] == "MEDS_BIRTH"].groupby("subject_id")["time"].min()
    events = events[(events["time"].isna() | (events["time"] >= events["subject_id"].map(births)))]
    events = events[events["code"] != "MEDS_BIRTH"].sort_values(["subject_id", "time"], na_position="first")
    subjects = pl.Series(births.index.to_numpy())
    is_training = pd.Series((assign_splits(subjects, SplitConfig()) == "train").to_numpy(), index=births.index)
    training = events[events["subject_id"].map(is_training)]
    return _index(events.assign(name=_names(events, training)), is_training)


def _names(events: pd.DataFrame, training: pd.DataFrame) -> pd.Series:
    config = VocabularyConfig()
    valued = training.dropna(subset="numeric_value")
    groups = valued.groupby("code")["numeric_value"]
    shares = np.arange(1, config.n_value_bins) / config.n_value_bins
    edges = groups.quantile(shares).unstack()[groups.size() >= config.min_values]
    has_value = events["numeric_value"].notna() & events["code"].isin(edges.index)
    binned = events[has_value]
    bounds = edges.loc[binned["code"]].to_numpy()
    number = 1 + (binned["numeric_value"].to_numpy()[:, None] >= bounds).sum(axis=1)
    name = events["code"].astype(object).to_numpy()
    name[has_value.to_numpy()] = binned["code"].to_numpy() + "//Q" + number.astype(str).astype(object)
    return pd.Series(name, index=events.index)


def _index(events: pd.DataFrame, is_training: pd.Series) -> pd.DataFrame:
    training = events[events["subject_id"].map(is_training)]
    table = training.groupby("name").agg(n_events=("code", "size"), n_subjects=("subject_id", "nunique"))
    table = table[table["n_subjects"] >= VocabularyConfig().min_subjects].reset_index()
    table = table.sort_values(["n_events", "name"], ascending=[False, True])
    token = pd.Series(np.arange(len(table)) + len(SPECIAL_TOKENS), index=table["name"].to_numpy())
    events = events.assign(
        token=events["name"].map(token).fillna(UNK).astype(np.int32), day=events["time"].dt.floor("D")
    )
    events = events.drop_duplicates(["subject_id", "day", "token"])
    is_new_day = events["day"].notna() & ~events.duplicated(["subject_id", "day"])
    events = events.assign(visit=is_new_day.groupby(events["subject_id"]).cumsum().astype(np.int32))
    return events[["subject_id", "visit", "token"]].sort_values(["subject_id", "visit", "token"])
