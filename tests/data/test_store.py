"""The token store: layout, cache by fingerprint, and safety when two build the same."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import pytest

from ehrtrack.data import store as store_module
from ehrtrack.data.engines.local import LocalEngine
from ehrtrack.data.events import open_dataset
from ehrtrack.data.record_ends import record_cutoffs
from ehrtrack.data.settings import VisitConfig
from ehrtrack.data.shards import ShardWork
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.splits import assign_splits
from ehrtrack.data.store import TokenStore, build_store, open_store
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import DataError

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "A", "B", "GENDER//F"), {}, exclude=("MEDS_BIRTH$", "MEDS_DEATH$"))
ROWS = [
    (1, "1980-01-01", "MEDS_BIRTH"),
    (1, None, "GENDER//F"),
    (1, "2020-01-01", "A"),
    (1, "2020-01-01", "B"),
    (1, "2020-01-11", "A"),
    (2, "1990-01-01", "MEDS_BIRTH"),
    (2, "2020-06-01", "A"),
    (3, "2000-01-01", "MEDS_BIRTH"),
    (3, "2019-12-31", "B"),
]


def cutoffs(*subjects: int, cutoff=datetime(2020, 2, 1)) -> pl.DataFrame:
    return pl.DataFrame({"subject_id": subjects, "cutoff": [cutoff] * len(subjects)})


def test_a_tokeniser_that_another_overtakes_ends_well(make_dataset, tmp_path: Path) -> None:
    """The other joins all parts and removes them, while this one is about to write its last."""
    rows = [(n, time, code) for n in (1, 2, 3) for time, code in (("1950-01-01", "MEDS_BIRTH"), ("2020-01-01", "A"))]
    whole = make_dataset(rows)
    (tmp_path / "split" / "data").mkdir(parents=True)
    for n in (1, 2, 3):
        whole.scan().filter(pl.col("subject_id") == n).collect().write_parquet(tmp_path / f"split/data/{n}.parquet")
    dataset = open_dataset(tmp_path / "split")
    cutoffs = pl.DataFrame({"subject_id": [1, 2, 3], "cutoff": [datetime(2021, 1, 1)] * 3})
    arguments = (dataset, cutoffs, Vocabulary((*SPECIAL_TOKENS, "A"), {}, (0, 0, 0, 0, 3)), VisitConfig())
    overtaken: list[TokenStore] = []

    class Overtaken(LocalEngine):
        def map(self, function: Any, items: Sequence[Any], description: str = "") -> list[Any]:
            done = [function(item) for item in items[:-1]]
            overtaken.append(build_store(*arguments, tmp_path / "cache"))
            return [*done, function(items[-1])]

    store = build_store(*arguments, tmp_path / "cache", ShardWork(tmp_path / "cache", Overtaken(1)))
    assert store.fingerprint == overtaken[0].fingerprint
    assert np.array_equal(store.token, overtaken[0].token)
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == [store.fingerprint]


@pytest.mark.parametrize("name", ["meta.json", "offsets.npy", "token.npy", "age_years.npy"])
@pytest.mark.parametrize("damage", ["cut", "empty", "other", "missing"])
def test_a_damaged_store_is_named(make_dataset, tmp_path: Path, name: str, damage: str) -> None:
    dataset = make_dataset([(1, "1950-01-01", "MEDS_BIRTH"), (1, "2020-01-01", "A"), (1, "2020-02-01", "A")])
    cutoffs = pl.DataFrame({"subject_id": [1], "cutoff": [datetime(2021, 1, 1)]})
    vocabulary = Vocabulary((*SPECIAL_TOKENS, "A"), {}, (0, 0, 0, 0, 2))
    store = build_store(dataset, cutoffs, vocabulary, VisitConfig(), tmp_path / "cache")
    file = tmp_path / "cache" / store.fingerprint / name
    content = file.read_bytes()
    file.unlink()
    if damage == "other":
        np.save(file.with_suffix(".npy"), np.zeros(7, dtype=np.int8))
        file.with_suffix(".npy").rename(file)
    elif damage != "missing":
        file.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"the tokens in .*{store.fingerprint} are damaged .*; remove it"):
        build_store(dataset, cutoffs, vocabulary, VisitConfig(), tmp_path / "cache")


def test_subjects_lie_in_the_order_of_the_cutoffs_and_an_empty_history_has_length_0(make_dataset, tmp_path):
    store = build_store(make_dataset(ROWS), cutoffs(3, 2, 1), VOCABULARY, VisitConfig(), tmp_path)
    assert store.subject_ids.tolist() == [3, 2, 1]
    assert store.offsets.tolist() == [0, 1, 1, 5]
    assert store.n_tokens.tolist() == [1, 0, 4]
    assert store.token.tolist() == [5, 6, 4, 5, 4]
    assert store.visit.tolist() == [1, 0, 1, 1, 2]
    assert store.gap_days.tolist() == [0, 0, 0, 0, 10]
    assert store.end_gap_days.tolist() == [32, 0, 21]
    born = [datetime(2000, 1, 1), datetime(1990, 1, 1), datetime(1980, 1, 1)]
    ages = [(datetime(2020, 2, 1) - birth).days / 365.25 for birth in born]
    assert store.end_age_years.tolist() == pytest.approx(ages, rel=1e-6)
    assert len(store) == 3


def test_arrays_have_the_promised_types(make_dataset, tmp_path):
    store = build_store(make_dataset(ROWS), cutoffs(1, 2, 3), VOCABULARY, VisitConfig(), tmp_path)
    for name, dtype in store_module.DTYPES.items():
        array = getattr(store, name)
        assert array.dtype == dtype, name
        assert isinstance(array, np.memmap), name


def test_second_build_opens_the_first_and_does_not_tokenise(make_dataset, tmp_path, monkeypatch):
    dataset = make_dataset(ROWS)
    first = build_store(dataset, cutoffs(1, 2, 3), VOCABULARY, VisitConfig(), tmp_path)
    monkeypatch.setattr(store_module, "_tokenise", None)
    second = build_store(dataset, cutoffs(1, 2, 3), VOCABULARY, VisitConfig(), tmp_path)
    assert second.fingerprint == first.fingerprint
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name)), field.name


def test_everything_that_decides_the_tokens_is_in_the_fingerprint(make_dataset, tmp_path):
    dataset, other_data = make_dataset(ROWS), make_dataset([*ROWS[:-1], (3, "2019-12-31", "A")])
    other_vocabulary = Vocabulary(VOCABULARY.tokens, {"A": (1.0,)}, exclude=VOCABULARY.exclude)
    inputs = [
        (dataset, cutoffs(1, 2, 3), VOCABULARY, VisitConfig()),
        (other_data, cutoffs(1, 2, 3), VOCABULARY, VisitConfig()),
        (dataset, cutoffs(1, 3, 2), VOCABULARY, VisitConfig()),
        (dataset, cutoffs(1, 2, 3, cutoff=datetime(2020, 2, 2)), VOCABULARY, VisitConfig()),
        (dataset, cutoffs(1, 2, 3), other_vocabulary, VisitConfig()),
        (dataset, cutoffs(1, 2, 3), VOCABULARY, VisitConfig(unit="hour")),
    ]
    prints = {build_store(*args, tmp_path).fingerprint for args in inputs}
    assert len(prints) == len(inputs)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("meds")} == prints


def test_folder_says_what_it_was_made_from(make_dataset, tmp_path):
    dataset = make_dataset(ROWS)
    store = build_store(dataset, cutoffs(1), VOCABULARY, VisitConfig(), tmp_path / "cache")
    meta = json.loads((tmp_path / "cache" / store.fingerprint / "meta.json").read_text())
    assert meta["fingerprint"] == store.fingerprint
    assert meta["dataset"] == dataset.fingerprint()
    assert meta["vocabulary"] == VOCABULARY.fingerprint
    assert meta["visits"] == {"unit": "day"}


def test_build_that_loses_the_race_uses_the_winners_folder(make_dataset, tmp_path, monkeypatch):
    dataset, cache = make_dataset(ROWS), tmp_path / "cache"
    join = store_module._join_tokens

    def join_while_another_finishes(*args):
        monkeypatch.setattr(store_module, "_join_tokens", join)
        build_store(dataset, cutoffs(1, 2), VOCABULARY, VisitConfig(), cache)
        join(*args)

    monkeypatch.setattr(store_module, "_join_tokens", join_while_another_finishes)
    store = build_store(dataset, cutoffs(1, 2), VOCABULARY, VisitConfig(), cache)
    assert store.subject_ids.tolist() == [1, 2]
    assert os.listdir(cache) == [store.fingerprint]


def test_build_that_fails_half_way_leaves_whole_parts_only_and_goes_on_from_them(make_dataset, tmp_path, monkeypatch):
    def full_disk(*_args: object) -> None:
        raise OSError("no space left on device")

    dataset, cache = make_dataset(ROWS), tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_join_tokens", full_disk)
        with pytest.raises(OSError, match="no space"):
            build_store(dataset, cutoffs(1), VOCABULARY, VisitConfig(), cache)
    (parts,) = cache.iterdir()
    assert parts.suffix == ".parts"
    assert sorted(os.listdir(parts)) == ["00000.npy", "cutoffs.arrow"]
    monkeypatch.setattr(store_module, "visit_tokens", None)
    store = build_store(dataset, cutoffs(1), VOCABULARY, VisitConfig(), cache)
    assert os.listdir(cache) == [store.fingerprint]
    assert store.token.tolist() == [6, 4, 5, 4]


def test_part_that_cannot_be_written_leaves_nothing_of_itself(make_dataset, tmp_path, monkeypatch):
    def full_disk(file: IO[bytes], _array: object) -> None:
        file.write(b"half a par")
        raise OSError("no space left on device")

    monkeypatch.setattr(store_module.np, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        build_store(make_dataset(ROWS), cutoffs(1), VOCABULARY, VisitConfig(), tmp_path / "cache")
    (parts,) = (tmp_path / "cache").iterdir()
    assert os.listdir(parts) == ["cutoffs.arrow"]


def test_store_of_subjects_with_no_tokens_at_all_opens(make_dataset, tmp_path):
    store = build_store(make_dataset(ROWS), cutoffs(2), VOCABULARY, VisitConfig(), tmp_path)
    assert store.offsets.tolist() == [0, 0]
    assert open_store(tmp_path / store.fingerprint).token.tolist() == []


def test_rows_are_found_in_the_order_asked_for(make_dataset, tmp_path):
    store = build_store(make_dataset(ROWS), cutoffs(3, 1, 2), VOCABULARY, VisitConfig(), tmp_path)
    assert store.rows(pl.Series([2, 3])).tolist() == [2, 0]
    assert store.rows([1]).tolist() == [1]
    with pytest.raises(DataError, match=r"2 of 3 subjects are not in the token store .*first: subject 9"):
        store.rows([1, 9, 0])


def test_the_same_cutoff_of_a_subject_twice_is_refused(make_dataset, tmp_path):
    with pytest.raises(DataError, match="subject 1 has the cutoff 2020-02-01 00:00:00 more than once"):
        build_store(make_dataset(ROWS), cutoffs(1, 2, 1), VOCABULARY, VisitConfig(), tmp_path)


def test_record_ends_at_death_or_else_at_the_last_event(make_dataset, tmp_path):
    rows = [
        *ROWS,
        (2, "2021-01-01", "MEDS_DEATH"),
        (2, "2021-01-02", "A"),
        (4, "2001-01-01", "MEDS_BIRTH"),
        (5, None, "GENDER//F"),
    ]
    table = record_cutoffs(make_dataset(rows), SplitConfig(seed=5), ShardWork(tmp_path))
    assert table.select("subject_id", "cutoff").rows() == [
        (1, datetime(2020, 1, 11)),
        (2, datetime(2021, 1, 1)),
        (3, datetime(2019, 12, 31)),
        (4, datetime(2001, 1, 1)),
    ]
    assert table["split"].to_list() == assign_splits(table["subject_id"], SplitConfig(seed=5)).to_list()
