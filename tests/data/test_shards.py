"""Shard by shard, on any engine, in any slices and after a kill: the same bytes as all events at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import reference_tokens
from simulated import Population, write_dataset

from ehrtrack.data import fitting
from ehrtrack.data import shards as shards_module
from ehrtrack.data.engines import open_engine
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.fitting import coverage, fit_vocabulary
from ehrtrack.data.record_ends import record_cutoffs
from ehrtrack.data.settings import VisitConfig, VocabularyConfig
from ehrtrack.data.shards import ShardWork, open_work, parse_slice
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.store import DTYPES, TokenStore, build_store, tokenise_slice
from ehrtrack.data.vocabulary import Vocabulary
from ehrtrack.errors import ConfigError, DataError

VOCABULARY = VocabularyConfig(min_subjects=2, min_values=20, n_value_bins=4)
SPLIT = SplitConfig()


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """A simulated population with values and encounters, some of them missing."""
    dataset = write_dataset(tmp_path_factory.mktemp("simulated") / "meds", Population(n_subjects=120))
    frame = dataset.scan().collect()
    rng = np.random.default_rng(0)
    value = np.where(rng.random(frame.height) < 0.4, rng.normal(size=frame.height).astype(np.float32), np.nan)
    encounter = pl.Series(rng.integers(0, 6, frame.height)).cast(pl.String)
    return frame.with_columns(
        numeric_value=pl.Series(value, dtype=pl.Float32).fill_nan(None),
        visit_id=pl.when(encounter != "0").then(encounter),
    )


def write_shards(folder: Path, events: pl.DataFrame, n_shards: int) -> MedsDataset:
    """Subjects dealt out to the shards in turn, so that no shard holds a range of them."""
    (folder / "data").mkdir(parents=True)
    for number in range(n_shards):
        part = events.filter(pl.col("subject_id") % n_shards == number)
        part.write_parquet(folder / "data" / f"{number}.parquet", row_group_size=100)
    return open_dataset(folder)


@dataclass(frozen=True)
class Prepared:
    """What came of a dataset."""

    cutoffs: pl.DataFrame
    vocabulary: Vocabulary
    covered: pl.DataFrame
    arrays: dict[str, list[float]]


def arrays_of(store: TokenStore) -> dict[str, list[float]]:
    return {name: getattr(store, name).tolist() for name in DTYPES}


def prepare(dataset: MedsDataset, work: ShardWork, unit: str = "day") -> Prepared:
    cutoffs = record_cutoffs(dataset, SPLIT, work)
    vocabulary = fit_vocabulary(dataset, cutoffs, VOCABULARY, work)
    covered = coverage(dataset, cutoffs, vocabulary, work)
    store = build_store(dataset, shuffled(cutoffs), vocabulary, VisitConfig(unit=unit), work.folder / "stores", work)
    return Prepared(cutoffs, vocabulary, covered, arrays_of(store))


def shuffled(cutoffs: pl.DataFrame) -> pl.DataFrame:
    return cutoffs.sample(fraction=1, shuffle=True, seed=3)


def prepare_at_once(dataset: MedsDataset, unit: str = "day") -> Prepared:
    cutoffs = reference_tokens.record_cutoffs(dataset, SPLIT)
    training = reference_tokens.known_events(dataset.scan(), cutoffs.filter(pl.col("split") == "train"))
    vocabulary = reference_tokens.fit_vocabulary(training, VOCABULARY)
    known = reference_tokens.known_events(dataset.scan(), cutoffs)
    arrays = reference_tokens.store_arrays(dataset, shuffled(cutoffs), vocabulary, VisitConfig(unit=unit))
    covered = reference_tokens.coverage(known, vocabulary, cutoffs)
    return Prepared(cutoffs, vocabulary, covered, {name: array.tolist() for name, array in arrays.items()})


def assert_same(found: Prepared, expected: Prepared) -> None:
    assert found.cutoffs.equals(expected.cutoffs)
    assert found.vocabulary == expected.vocabulary
    assert found.vocabulary.value_edges  # values were there to be cut
    assert found.covered.equals(expected.covered)
    assert found.arrays == expected.arrays


@pytest.mark.parametrize("unit", ["day", "hour", "encounter"])
@pytest.mark.parametrize("n_shards", [1, 2, 5])
def test_shard_by_shard_is_the_same_as_all_events_at_once(events, tmp_path, n_shards, unit):
    dataset = write_shards(tmp_path / "meds", events, n_shards)
    assert_same(prepare(dataset, ShardWork(tmp_path / "cache"), unit), prepare_at_once(dataset, unit))


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_two_workers_make_the_same_as_one(events, tmp_path, engine, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    dataset = write_shards(tmp_path / "meds", events, 5)
    with open_work(tmp_path / "cache", engine=engine, n_workers=2) as work:
        assert_same(prepare(dataset, work), prepare_at_once(dataset))


def test_shards_that_are_not_sorted_and_lack_columns_are_read_too(events, tmp_path):
    plain = events.drop("text_value", "visit_id")
    dataset = write_shards(tmp_path / "meds", plain.sample(fraction=1, shuffle=True, seed=1), 3)
    assert_same(prepare(dataset, ShardWork(tmp_path / "cache")), prepare_at_once(dataset))


def slice_of(dataset: MedsDataset, folder: Path, i: int, n: int) -> TokenStore | None:
    work = ShardWork(folder, slice=(i, n))
    cutoffs = record_cutoffs(dataset, SPLIT, work)
    vocabulary = fit_vocabulary(dataset, cutoffs, VOCABULARY, work)
    return tokenise_slice(dataset, shuffled(cutoffs), vocabulary, VisitConfig(), folder / "stores", work)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 1, 3, 2)])
def test_slices_in_any_order_and_twice_are_joined_by_the_last(events, tmp_path, order):
    dataset = write_shards(tmp_path / "meds", events, 5)
    *early, last = [slice_of(dataset, tmp_path / "cache", i, 3) for i in order]
    assert early == [None] * len(early)
    assert arrays_of(last) == prepare_at_once(dataset).arrays
    assert os.listdir(tmp_path / "cache" / "stores") == [last.fingerprint]
    assert arrays_of(slice_of(dataset, tmp_path / "cache", 2, 3)) == arrays_of(last)


def test_more_slices_than_shards_leave_some_with_nothing_to_do(events, tmp_path):
    dataset = write_shards(tmp_path / "meds", events, 2)
    assert slice_of(dataset, tmp_path / "cache", 3, 4) is None
    assert slice_of(dataset, tmp_path / "cache", 2, 4) is None
    assert arrays_of(slice_of(dataset, tmp_path / "cache", 1, 4)) == prepare_at_once(dataset).arrays


def test_the_next_reader_does_and_joins_what_a_lost_machine_left(events, tmp_path):
    dataset = write_shards(tmp_path / "meds", events, 5)
    assert slice_of(dataset, tmp_path / "cache", 1, 3) is None
    assert_same(prepare(dataset, ShardWork(tmp_path / "cache")), prepare_at_once(dataset))


def test_what_was_counted_once_is_not_counted_again(events, tmp_path, monkeypatch):
    dataset = write_shards(tmp_path / "meds", events, 2)
    first = prepare(dataset, ShardWork(tmp_path))
    monkeypatch.setattr(fitting, "read_shard", None)
    assert_same(prepare(dataset, ShardWork(tmp_path)), first)


def test_a_slice_begins_with_its_own_shards(tmp_path, events, monkeypatch):
    dataset = write_shards(tmp_path / "meds", events, 5)
    done = []
    monkeypatch.setattr(shards_module, "_keep_table", lambda _function, pair: done.append(int(pair[0].stem)))
    ShardWork(tmp_path, slice=(2, 3)).tables(dataset, Path, "x", "y")
    assert done == [1, 4, 2, 3, 0]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from ehrtrack.data import store
from ehrtrack.data.events import open_dataset
from test_shards import slice_of

save = np.save
def write_half_and_die(file, array):
    if Path(file.name).name.startswith(".00002"):
        file.write(b"half a part")
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, array)
store.np.save = write_half_and_die
slice_of(open_dataset(Path(sys.argv[1])), Path(sys.argv[2]), 1, 1)
"""


def test_a_killed_process_leaves_whole_parts_and_the_next_goes_on(events, tmp_path):
    dataset = write_shards(tmp_path / "meds", events, 5)
    cache = tmp_path / "cache"
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    words = [sys.executable, "-c", KILLED, str(tmp_path / "meds"), str(cache)]
    killed = subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (parts,) = (cache / "stores").iterdir()
    assert sorted(name for name in os.listdir(parts) if not name.startswith(".")) == [
        "00000.npy",
        "00001.npy",
        "cutoffs.arrow",
    ]
    assert_same(prepare(dataset, ShardWork(cache)), prepare_at_once(dataset))
    assert len(os.listdir(cache / "stores")) == 1


def test_a_subject_in_two_shards_is_refused_with_the_shards(events, tmp_path):
    dataset = write_shards(tmp_path / "meds", events, 3)
    cutoffs = record_cutoffs(dataset, SPLIT, ShardWork(tmp_path / "cache"))
    vocabulary = fit_vocabulary(dataset, cutoffs, VOCABULARY, ShardWork(tmp_path / "cache"))
    doubled = pl.concat([pl.read_parquet(dataset.shards[1]), events.filter(pl.col("subject_id") == 6)])
    doubled.write_parquet(dataset.shards[1])
    damaged = open_dataset(dataset.path)
    with pytest.raises(DataError, match=r"subject 6 is in more than one shard \(0, 1\)"):
        record_cutoffs(damaged, SPLIT, ShardWork(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"subject 6 is in more than one shard"):
        build_store(damaged, cutoffs, vocabulary, VisitConfig(), tmp_path / "stores")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_slice_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"--shard is .* write i/n with i from 1 to n"):
        parse_slice(text)


def test_a_slice_is_read():
    assert parse_slice("2/8") == (2, 8)


def test_a_damaged_shard_is_told_by_every_engine_alike(tmp_path, events):
    dataset = write_shards(tmp_path / "meds", events, 2)
    dataset.shards[1].write_bytes(b"PAR1 nothing PAR1")
    for n_workers in (1, 2):
        with open_engine("local", n_workers) as engine, pytest.raises(DataError, match=r"1\.parquet cannot be read"):
            record_cutoffs(dataset, SPLIT, ShardWork(tmp_path / str(n_workers), engine))
