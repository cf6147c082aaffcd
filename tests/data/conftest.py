"""Small MEDS datasets written row by row, so that a test's dates can be read and worked by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ehrtrack.data.events import EVENT_SCHEMA, MedsDataset, open_dataset

Row = tuple[int, str | None, str] | tuple[int, str | None, str, float | None, str | None]
MakeDataset = Callable[[Sequence[Row]], MedsDataset]


def event_frame(rows: Sequence[Row]) -> pl.DataFrame:
    """Events from (subject_id, time, code) or (subject_id, time, code, numeric_value, visit_id)."""
    full = [(*row, None, None)[:5] for row in rows]
    return pl.DataFrame(
        {
            "subject_id": [row[0] for row in full],
            "time": [None if row[1] is None else datetime.fromisoformat(row[1]) for row in full],
            "code": [row[2] for row in full],
            "numeric_value": [row[3] for row in full],
            "text_value": [None for _ in full],
            "visit_id": [row[4] for row in full],
        },
        schema=EVENT_SCHEMA,
    ).sort("subject_id", "time", nulls_last=False, maintain_order=True)


@pytest.fixture
def frame() -> Callable[[Sequence[Row]], pl.DataFrame]:
    """Writes rows as an event frame."""
    return event_frame


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Writes rows as a MEDS dataset of one shard; each call makes another dataset."""
    n_made = 0

    def make(rows: Sequence[Row]) -> MedsDataset:
        nonlocal n_made
        n_made += 1
        folder = tmp_path / f"meds_{n_made}"
        (folder / "data").mkdir(parents=True)
        event_frame(rows).write_parquet(folder / "data" / "0.parquet")
        return open_dataset(folder)

    return make
