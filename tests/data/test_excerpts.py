"""Excerpts of records: what of the rest of a record they must not tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from simulated import History, Visit, random_store, store_of

from ehrtrack.data.batch import MAX_POSITION, Batch, collate
from ehrtrack.data.excerpts import excerpts, visits_of
from ehrtrack.data.vocabulary import CLS

RECORD = History(
    [
        Visit([10, 11], is_static=True),
        Visit([4], age_years=40.2, gap_days=0.0),
        Visit([5, 6], age_years=40.3, gap_days=10.0),
        Visit([7, 4], age_years=41.9, gap_days=400.0),
    ],
    end_age_years=47.1,
    end_gap_days=1800.0,
)
NO_VISITS = History([Visit([10], is_static=True)], end_age_years=33.0)
SHOWN = ("token", "age", "segment", "position", "gap", "days_to_end")


def pack(*histories: History) -> Batch:
    return collate(store_of(histories), np.arange(len(histories)), max_tokens=100)


def test_days_count_to_the_end_of_the_record_and_static_facts_are_of_no_time() -> None:
    batch = pack(RECORD, NO_VISITS, RECORD)
    days = [np.inf, np.inf, 2210, 2200, 2200, 1800, 1800, 0]
    np.testing.assert_allclose(batch.days_to_end, [*days, np.inf, 0, *days])


def test_days_of_a_window_count_to_its_own_end() -> None:
    record = History([Visit([10 + k], 20.0 + k, 100.0) for k in range(20)], end_gap_days=50.0)
    recent = collate(store_of([record]), np.array([0]), max_tokens=4)
    np.testing.assert_allclose(recent.days_to_end, [250, 150, 50, 0])
    rng, ends = np.random.default_rng(0), set()
    for _ in range(100):
        window = collate(store_of([record]), np.array([0]), max_tokens=4, window_rng=rng)
        ends.add(float(window.days_to_end[2]))
        np.testing.assert_allclose(window.days_to_end[:3] - window.days_to_end[2], [200, 100, 0])
    assert ends == {0.0, 50.0}  # of windows that end before the record, and with it


def test_first_occurrences_are_those_in_the_whole_record_also_where_a_window_begins_later() -> None:
    whole = pack(NO_VISITS, RECORD)
    assert whole.is_first is not None
    #                                  10 CLS 10 11 4  5  6  4  7  CLS: tokens of a visit in the order given
    assert whole.is_first.tolist() == [1, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    window = collate(store_of([RECORD]), np.array([0]), max_tokens=5)
    assert window.token.tolist() == [10, 11, 7, 4, CLS]
    assert window.is_first is not None
    assert window.is_first.tolist() == [1, 1, 1, 0, 0]


def test_a_random_window_ends_with_a_whole_visit() -> None:
    record = History([Visit([10 + 3 * k, 11 + 3 * k, 12 + 3 * k], 20.0 + k, 100.0) for k in range(20)])
    rng = np.random.default_rng(0)
    for _ in range(100):
        batch = collate(store_of([record]), np.array([0]), max_tokens=11, window_rng=rng)
        assert int(batch.token[-2]) % 3 == 0  # 12, 15, ...: the third of its visit
        assert len(batch.token) == 11


def test_visits_are_found_by_subject() -> None:
    visits = visits_of(pack(RECORD, NO_VISITS, RECORD))
    assert visits.count.tolist() == [3, 0, 3]
    assert visits.subject.tolist() == [0, 0, 0, 2, 2, 2]
    assert visits.start.tolist() == [2, 3, 5, 12, 13, 15]
    assert visits.stop.tolist() == [3, 5, 7, 13, 15, 17]
    assert visits.first.tolist() == [0, 3, 3]


def first_two_visits(batch: Batch) -> Batch:
    return excerpts(batch, torch.tensor([0]), torch.tensor([0]), torch.tensor([5]))


def test_an_excerpt_looks_like_the_record_that_ended_there() -> None:
    excerpt = first_two_visits(pack(RECORD))
    ended = replace(RECORD, visits=RECORD.visits[:3], end_age_years=40.3, end_gap_days=0.0)
    expected = pack(ended)
    assert excerpt.lengths == (6,)
    for name in SHOWN:
        assert getattr(excerpt, name).tolist() == getattr(expected, name).tolist(), name


def test_nothing_that_comes_after_an_excerpt_changes_it() -> None:
    longer = replace(
        RECORD,
        visits=[*RECORD.visits[:3], *(Visit([20 + k], 60.0 + k, 2000.0) for k in range(6))],
        end_age_years=90.0,
        end_gap_days=3.0,
    )
    one, other = first_two_visits(pack(RECORD)), first_two_visits(pack(longer))
    for name in SHOWN:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.is_first is None
    assert one.outcomes is None


def test_an_excerpt_from_the_middle_has_no_static_facts_and_its_own_last_visit() -> None:
    excerpt = excerpts(pack(RECORD), torch.tensor([0]), torch.tensor([3]), torch.tensor([5]))
    assert excerpt.token.tolist() == [5, 6, CLS]
    assert excerpt.position.tolist() == [1, 1, 0]
    assert excerpt.segment.tolist() == [1, 1, 0]
    assert excerpt.age.tolist() == [40, 40, 40]


def test_whole_records_as_excerpts_are_the_records() -> None:
    batch = collate(random_store(40, 30), np.arange(40), max_tokens=100)
    offsets = batch.offsets
    again = excerpts(batch, torch.arange(40), offsets[:-1], batch.cls_positions)
    assert again.lengths == batch.lengths
    for name in ("token", "segment", "position"):
        assert torch.equal(getattr(again, name), getattr(batch, name)), name
    assert int(again.position.max()) == MAX_POSITION
