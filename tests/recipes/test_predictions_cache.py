"""Test predictions of many runs: fetched once, known by run and hash, the subjects in one piece of memory."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.pipeline import predictions_cache
from ehrtrack.pipeline.predictions_cache import read_test_predictions
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.run import tracked_run

N_SUBJECTS = 20


@pytest.fixture(params=["local_store", "http_store"])
def store(request: pytest.FixtureRequest) -> object:
    return request.getfixturevalue(request.param)


def table(seed: int = 0, first: int = 0, **columns: object) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    risk = rng.random(N_SUBJECTS)
    return pl.DataFrame(
        {
            "subject_id": [f"{number:032x}" for number in range(first, first + N_SUBJECTS)],
            "follow_up_days": np.arange(1.0, N_SUBJECTS + 1),
            "is_event": [True] * N_SUBJECTS,
            "risk": risk,
            "survival": [[1.0, 1 - one] for one in risk],
        }
        | columns
    )


def made(predictions: pl.DataFrame | None = None, path: str = "predictions/test.parquet") -> RunRow:
    with tracked_run(experiment="s", name="a", kind="baseline") as run:
        if predictions is not None:
            run.log_table(predictions, path)
    assert run.server_run_id is not None
    return RunRow(run.server_run_id, "baseline", "cox", "c")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the runs whose file was fetched."""
    ids: list[str] = []

    def fetch(run_id: str, path: str, destination: Path) -> Path:
        ids.append(run_id)
        return queries.fetch_file(run_id, path, destination)

    monkeypatch.setattr(predictions_cache, "fetch_file", fetch)
    return ids


def test_what_was_read_is_not_fetched_again_and_equals_the_file(
    store: object, tmp_path: Path, fetched: list[str]
) -> None:
    tables = [table(0), table(1), table(2, first=100), table(3, cause=["1"] * N_SUBJECTS)]
    rows = [made(one) for one in tables]
    first, left_out = read_test_predictions(rows, cache=tmp_path / "cache")
    assert left_out == {}
    assert sorted(fetched) == sorted(row.run_id for row in rows)
    fetched.clear()
    again, left_out = read_test_predictions(rows, cache=tmp_path / "cache")
    assert (fetched, left_out) == ([], {})
    for row, whole in zip(rows, tables, strict=True):
        wanted = whole.drop("survival")  # no curves
        for found in (first, again):
            assert found[row.run_id].select(wanted.columns).equals(wanted)
    newer = made(table(5))
    assert read_test_predictions([*rows, newer], cache=tmp_path / "cache")[0].keys() > again.keys()
    assert fetched == [newer.run_id]


def test_subjects_are_in_memory_once(local_store: Path, tmp_path: Path) -> None:
    rows = [made(table(seed)) for seed in range(3)]
    for _ in range(2):
        found, _ = read_test_predictions(rows, cache=tmp_path / "cache")
        places = {one["follow_up_days"].to_numpy().ctypes.data for one in found.values()}
        assert len(places) == 1


def test_another_order_of_subjects_is_not_mixed_up(local_store: Path, tmp_path: Path) -> None:
    whole = table(0)
    rows = [made(whole), made(whole.reverse())]
    for _ in range(2):
        found, _ = read_test_predictions(rows, cache=tmp_path / "cache")
        assert found[rows[1].run_id].select("subject_id", "risk").equals(whole.reverse().select("subject_id", "risk"))


def test_a_copy_of_another_file_of_the_run_does_not_count(
    local_store: Path, tmp_path: Path, fetched: list[str]
) -> None:
    row = made(table(0))
    read_test_predictions([row], cache=tmp_path / "cache")
    client().set_tag(row.run_id, "ehrtrack.sha256.test_predictions", "0" * 64)
    queries.get_run(row.run_id)
    found, left_out = read_test_predictions([row], cache=tmp_path / "cache")
    assert fetched == [row.run_id] * 2
    assert found == {}
    assert "is damaged: it is not the file whose hash the run has as a tag; send what" in left_out[row.run_id]


def test_a_run_from_before_hashes_were_tags_is_known_by_its_id(
    local_store: Path, tmp_path: Path, fetched: list[str]
) -> None:
    row = made(table(0))
    client().delete_tag(row.run_id, "ehrtrack.sha256.test_predictions")
    queries.get_run(row.run_id)
    for _ in range(2):
        assert read_test_predictions([row], cache=tmp_path / "cache")[0].keys() == {row.run_id}
    assert fetched == [row.run_id]


def test_what_cannot_be_read_is_told_and_not_kept(store: object, tmp_path: Path, fetched: list[str]) -> None:
    good, none, partial = made(table(0)), made(None), made(table(0).drop("risk"))
    for _ in range(2):
        found, left_out = read_test_predictions([good, none, partial], cache=tmp_path / "cache")
        assert found.keys() == {good.run_id}
        assert left_out.keys() == {none.run_id, partial.run_id}
        assert "has no artifact 'predictions/test.parquet'" in left_out[none.run_id]
        assert "lacks risk; send what" in left_out[partial.run_id]
    assert sorted(fetched) == sorted([good.run_id, *[none.run_id, partial.run_id] * 2])


def test_many_packs_become_one(local_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions_cache, "MOST_PACKS", 2)
    rows = [made(table(seed)) for seed in range(4)]
    packs = []
    for n_rows in range(1, 5):
        read_test_predictions(rows[:n_rows], cache=tmp_path / "cache")
        packs.append(len(list((tmp_path / "cache" / "predictions").iterdir())))
    assert packs == [1, 2, 1, 2]
    found, _ = read_test_predictions(rows, cache=tmp_path / "cache")
    assert [found[row.run_id]["risk"][0] for row in rows] == [table(seed)["risk"][0] for seed in range(4)]


@pytest.mark.parametrize("file", ["runs.arrow", "risks.arrow", "subjects-0.arrow"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_a_damaged_pack_is_fetched_again(
    file: str, is_gone: bool, local_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = made(table(0))
    read_test_predictions([row], cache=tmp_path / "cache")
    (pack,) = (tmp_path / "cache" / "predictions").iterdir()
    if is_gone:
        (pack / file).unlink()
    else:
        (pack / file).write_bytes(b"ARROW1 is all there is")
    with caplog.at_level(logging.WARNING):
        found, left_out = read_test_predictions([row], cache=tmp_path / "cache")
    assert (found.keys(), left_out) == ({row.run_id}, {})
    assert is_gone or f"{pack} is damaged" in caplog.text
    shutil.rmtree(tmp_path / "cache")
