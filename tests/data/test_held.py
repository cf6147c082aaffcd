"""Events in memory give the tokens and values that the same events on disk give, to the last bit."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrtrack.data.events import open_dataset
from ehrtrack.data.held import held_events, shards_of
from ehrtrack.data.settings import VisitConfig
from ehrtrack.data.shards import ShardWork
from ehrtrack.data.store import DTYPES, build_store, tokens_of
from ehrtrack.data.value_features import summaries_of, value_summaries
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import DataError

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "A", "LAB//Q1", "LAB//Q2", "GENDER//F"), {"LAB": (5.0,)}, exclude=("MEDS_",))


def random_rows(subjects: range) -> list[tuple[int, str | None, str, float | None, str | None]]:
    rng = np.random.default_rng(0)
    rows: list[tuple[int, str | None, str, float | None, str | None]] = []
    for subject in subjects:
        rows += [(subject, "1970-01-01", "MEDS_BIRTH", None, None), (subject, None, "GENDER//F", None, None)]
        for _ in range(30):
            day, code = int(rng.integers(1, 28)), str(rng.choice(["A", "LAB", "NEW"]))
            value = float(rng.normal(5, 2)) if code == "LAB" else None
            rows.append((subject, f"2020-01-{day:02d}", code, value, f"v{day % 4}" if day % 3 else None))
    return rows


@pytest.mark.parametrize("unit", ["day", "encounter"])
@pytest.mark.parametrize("times", [(20,), (20, 10)], ids=["one time", "two times"])
def test_tokens_and_values_in_memory_are_those_on_disk(frame, make_dataset, tmp_path: Path, unit, times) -> None:
    rows, subjects = random_rows(range(9)), [5, 0, 8, 3]
    cutoffs = pl.DataFrame(
        {"subject_id": subjects * len(times), "cutoff": [datetime(2020, 1, day) for day in times for _ in subjects]}
    )
    dataset, visits = make_dataset(rows), VisitConfig(unit=unit)
    on_disk = build_store(dataset, cutoffs, VOCABULARY, visits, tmp_path / "cache", delay_hours={"LAB": 30})
    values = value_summaries(dataset, cutoffs, VOCABULARY, ShardWork(tmp_path), delay_hours={"LAB": 30})
    (tmp_path / "two" / "data").mkdir(parents=True)
    for number, half in enumerate((range(4), range(4, 9))):
        part = dataset.scan().filter(pl.col("subject_id").is_in(list(half))).collect()
        part.write_parquet(tmp_path / "two" / "data" / f"{number}.parquet")
    for events in (held_events(frame(rows).sample(fraction=1, shuffle=True, seed=1)), open_dataset(tmp_path / "two")):
        shards = list(shards_of(events, has_visit_ids=True))
        store = tokens_of(shards, cutoffs, VOCABULARY, visits, delay_hours={"LAB": 30})
        for name in DTYPES:
            np.testing.assert_array_equal(getattr(store, name), getattr(on_disk, name), err_msg=name)
            assert getattr(store, name).dtype == getattr(on_disk, name).dtype
        found = summaries_of((one for _, one in shards), cutoffs, VOCABULARY, delay_hours={"LAB": 30})
        # the values of one day are in the order of the rows, so that a shuffled frame has another last one
        assert found.drop("last_value", "mean_value").equals(values.drop("last_value", "mean_value"))
    assert len(on_disk.token) > 50


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.drop("code"), "the events lacks the column code"),
        (lambda frame: frame.with_columns(time=pl.lit("2020-01-01")), "the events: column time is String"),
        (lambda frame: frame.with_columns(subject_id=pl.lit(None, pl.Int64)), "1 of 1 have no subject_id"),
        (lambda frame: frame.with_columns(time=pl.lit(3 * 10**17).cast(pl.Datetime("us"))), "after 9999"),
    ],
)
def test_a_frame_that_is_no_events_is_refused_as_a_shard_is(frame, change, said: str) -> None:
    with pytest.raises(DataError, match=said):
        _ = held_events(change(frame([(1, "2020-01-01", "A")]))).histories


def test_a_subject_without_birth_is_refused_where_ages_are_needed(frame) -> None:
    events = held_events(frame([(1, "2020-01-01", "A")]))
    cutoffs = pl.DataFrame({"subject_id": [1], "cutoff": [datetime(2021, 1, 1)]})
    with pytest.raises(DataError, match="1 of 1 subjects have no MEDS_BIRTH event"):
        tokens_of(shards_of(events, has_visit_ids=False), cutoffs, VOCABULARY, VisitConfig())
    assert tokens_of(
        shards_of(events, has_visit_ids=False), cutoffs, VOCABULARY, VisitConfig(), births="unknown"
    ).n_tokens.tolist() == [1]
