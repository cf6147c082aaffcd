"""`ehrtrack tokenize`: slices on many machines, and the recipes that open what they made."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulated import Population, study, write_dataset

from ehrtrack.cli import main
from ehrtrack.config import to_toml
from ehrtrack.data import store as store_module
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.pipeline.prepare import prepare_cohort, prepare_records


@pytest.fixture
def dataset(tmp_path: Path) -> MedsDataset:
    """Simulated records in three shards."""
    whole = write_dataset(tmp_path / "one", Population(n_subjects=200))
    events = whole.scan().collect()
    (tmp_path / "meds" / "data").mkdir(parents=True)
    for number in range(3):
        part = events.filter(pl.col("subject_id") % 3 == number)
        part.write_parquet(tmp_path / "meds" / "data" / f"{number}.parquet")
    return open_dataset(tmp_path / "meds")


@pytest.mark.parametrize(("recipe", "prepare"), [("pretrain", prepare_records), ("finetune", prepare_cohort)])
def test_slices_make_the_store_that_the_recipe_opens(
    recipe: str, prepare: object, dataset: MedsDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study(dataset.path, tmp_path / "cache")
    (tmp_path / "study.toml").write_text(to_toml(config))
    words = ["tokenize", "--config", str(tmp_path / "study.toml"), "--recipe", recipe]
    for part in ("2/2", "2/2", "1/2"):
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--shard", part])
    (made,) = os.listdir(tmp_path / "cache" / "stores")
    elsewhere = prepare(study(dataset.path, tmp_path / "elsewhere")).store  # type: ignore[operator]
    monkeypatch.setattr(store_module, "visit_tokens", None)
    store = prepare(config).store  # type: ignore[operator]
    assert store.fingerprint == made == elsewhere.fingerprint
    for name in store_module.DTYPES:
        assert np.array_equal(getattr(store, name), getattr(elsewhere, name)), name


def test_workers_and_the_whole_in_one_go(
    dataset: MedsDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.toml").write_text(to_toml(study(dataset.path, tmp_path / "cache")))
    with pytest.raises(SystemExit, match="0"):
        main(["tokenize", "--config", str(tmp_path / "study.toml"), "--workers", "2"])
    assert "200 subjects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--shard", "3/2"], "--shard is '3/2'"),
        (["--engine", "rya"], "did you mean 'ray'"),
    ],
)
def test_what_cannot_be_done_is_told(
    words: list[str], told: str, dataset: MedsDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.toml").write_text(to_toml(study(dataset.path, tmp_path / "cache")))
    with pytest.raises(SystemExit, match="2"):
        main(["tokenize", "--config", str(tmp_path / "study.toml"), *words])
    assert told in capsys.readouterr().err
