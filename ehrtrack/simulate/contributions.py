"""What each code of a simulated record contributes to its true log hazard: what explanations are checked against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.simulate.dictionary import CONCEPTS
from ehrtrack.simulate.motifs import REFERENCE_AGE_YEARS, log_hazard, summarise_history
from ehrtrack.simulate.world import World


def concepts_of_codes(folder: Path) -> dict[str, int]:
    """The concept of each code of a simulated population that has one; noise has none."""
    number = {f"CONCEPT//{name}": place for place, (name, _) in enumerate(CONCEPTS)}
    codes = pl.read_parquet(folder / "metadata" / "codes.parquet")
    parents = codes.select("code", parent=pl.col("parent_codes").list.first()).drop_nulls()
    return {code: number[parent] for code, parent in parents.iter_rows()}


def true_contributions(
    events: pl.DataFrame, time: datetime, codes: Sequence[str], concepts: Mapping[str, int], world: World
) -> Floats:
    """(C,) what the true log hazard loses when all events of a code are left out: 0 where it reads none of them.

    Parameters
    ----------
    events : of one subject, sorted by time, with time, code and numeric_value
    time : the index date, up to which they are read
    codes : C, each left out in turn
    concepts : from `concepts_of_codes`
    """
    read = events.filter(pl.col("time") <= time, pl.col("code").is_in(list(concepts)))
    of_event = np.array(read["code"].to_list(), dtype=object)
    kept = np.stack([np.ones(len(of_event), dtype=bool), *(of_event != code for code in codes)])
    row, event = np.nonzero(kept)
    history = summarise_history(
        row,
        (read["time"] - time).dt.total_seconds().to_numpy()[event],
        np.array([concepts[code] for code in of_event], dtype=np.int64)[event],
        read["numeric_value"].to_numpy()[event],
        n_subjects=len(kept),
    )
    age_years, is_male = np.full(len(kept), REFERENCE_AGE_YEARS), np.zeros(len(kept), dtype=bool)
    eta = log_hazard(history, age_years, is_male, world)
    lost: Floats = eta[0] - eta[1:]
    return lost
