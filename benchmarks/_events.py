"""A made-up event table as parquet: what a hospital's export looks like, of any number of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

EVENTS_A_SUBJECT = 100
ROWS_A_FILE = 5_000_000
N_CODES = 2_000
VALUE_SHARE = 0.2
"""Share of events that carry a number; they use the first tenth of the codes."""

DAY_US = 86_400_000_000


def write_events(folder: Path, n_rows: int, *, seed: int = 0) -> Path:
    """MEDS events in files of at most 5 million rows, in the order of time, so that subjects are interleaved.

    Each subject has a static sex, a birth, an INDEX three fifths into the record, for three in ten an OUTCOME after
    it, and codes by Zipf's law at days of its own.
    """
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    n_subjects = max(n_rows // EVENTS_A_SUBJECT, 1)
    per_file = ROWS_A_FILE // EVENTS_A_SUBJECT
    for number, first in enumerate(range(0, n_subjects, per_file)):
        subjects = np.arange(first, min(first + per_file, n_subjects), dtype=np.int64) + 1
        _events(subjects, rng).write_parquet(folder / "data" / f"{number}.parquet")
    return folder


def _events(subjects: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    n = len(subjects)
    start = rng.integers(10_000, 14_000, n) * DAY_US  # of the record, since 1970
    length = rng.integers(1_500, 3_500, n) * DAY_US
    birth = start - rng.integers(7_000, 28_000, n) * DAY_US
    index = start + length * 3 // 5
    has_outcome = rng.random(n) < 0.3
    outcome = index + rng.integers(1, 500, n) * DAY_US
    facts = [
        _frame(subjects, None, np.where(rng.random(n) < 0.5, "GENDER//F", "GENDER//M")),
        _frame(subjects, birth, np.full(n, "MEDS_BIRTH")),
        _frame(subjects, index, np.full(n, "INDEX")),
        _frame(subjects[has_outcome], outcome[has_outcome], np.full(int(has_outcome.sum()), "OUTCOME")),
    ]
    n_rest = n * EVENTS_A_SUBJECT - sum(len(frame) for frame in facts)
    which = rng.integers(0, n, n_rest)
    day = rng.integers(0, 40, n_rest) * (length[which] // 40)  # 40 days with visits in each record
    has_value = rng.random(n_rest) < VALUE_SHARE
    frequency = 1 / np.arange(1, N_CODES + 1)
    code = rng.choice(N_CODES, n_rest, p=frequency / frequency.sum())
    code = np.where(has_value, code % (N_CODES // 10), code)
    names = pl.Series([f"CODE//{k:04d}" for k in range(N_CODES)])
    values = np.where(has_value, rng.normal(100, 20, n_rest), np.nan)
    seconds = rng.integers(0, 86_400, n_rest) * 1_000_000
    codes = _frame(subjects[which], start[which] + day + seconds, names.gather(code), values)
    return pl.concat([*facts, codes]).sort("time")


def _frame(
    subjects: np.ndarray, time: np.ndarray | None, code: object, value: np.ndarray | None = None
) -> pl.DataFrame:
    frame = pl.DataFrame({"subject_id": subjects, "code": code, "numeric_value": value}, nan_to_null=True)
    times = pl.lit(None, pl.Datetime("us")) if time is None else pl.Series(time, dtype=pl.Int64).cast(pl.Datetime("us"))
    return frame.select("subject_id", times.alias("time"), "code", pl.col("numeric_value").cast(pl.Float32))
