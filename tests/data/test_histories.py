"""Shards that are kept decoded for the next pass."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ehrtrack.data import histories
from ehrtrack.data.histories import holding_shards, read_shard
from ehrtrack.errors import DataError


def write(shard: Path, codes: list[str]) -> Path:
    times = [datetime(2020, 1, day + 1) for day in range(len(codes))]
    frame = pl.DataFrame({"subject_id": [7] * len(codes), "time": times, "code": codes})
    frame.with_columns(pl.col("time").cast(pl.Datetime("us"))).write_parquet(shard)
    return shard


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are decoded, in turn."""
    names: list[str] = []
    decode = histories._decode

    def note(shard: Path, *, has_visit_ids: bool) -> histories.Histories:
        names.append(shard.stem)
        return decode(shard, has_visit_ids=has_visit_ids)

    monkeypatch.setattr(histories, "_decode", note)
    return names


def test_within_the_block_a_shard_is_decoded_once_and_outside_every_time(tmp_path, decoded):
    shard = write(tmp_path / "0.parquet", ["A", "B"])
    with holding_shards():
        assert read_shard(shard) is read_shard(shard)
        assert read_shard(shard, has_visit_ids=True).visit_id is not None  # held apart from the one without
    assert decoded == ["0", "0"]
    read_shard(shard)
    read_shard(shard)
    assert decoded == ["0"] * 4


def test_a_shard_that_was_written_anew_is_read_anew(tmp_path):
    shard = write(tmp_path / "0.parquet", ["A", "B"])
    with holding_shards():
        assert read_shard(shard).codes == ("A", "B")
        os.utime(write(shard, ["C"]), ns=(1, 1))
        assert read_shard(shard).codes == ("C",)


def test_the_first_shards_stay_as_far_as_they_fit(tmp_path, decoded, monkeypatch):
    shards = [write(tmp_path / f"{number}.parquet", ["A", "B"]) for number in range(3)]
    monkeypatch.setattr(histories, "MOST_HELD_BYTES", 2 * read_shard(shards[0]).n_bytes)
    decoded.clear()
    with holding_shards():
        for shard in shards + shards:
            read_shard(shard)
    assert decoded == ["0", "1", "2", "2"]


def test_a_shard_that_is_gone_is_told_within_the_block_too(tmp_path):
    with holding_shards(), pytest.raises(DataError, match=r"0\.parquet cannot be read"):
        read_shard(tmp_path / "0.parquet")
