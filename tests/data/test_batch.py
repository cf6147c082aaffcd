"""What a batch of packed tokens says of each subject, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated import History, Visit, random_store, store_of

from ehrtrack.data.batch import GAP_EDGES_DAYS, MAX_POSITION, N_GAPS, Batch, Batches, collate
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.data.store import TokenStore
from ehrtrack.data.vocabulary import CLS
from ehrtrack.errors import DataError
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.heads import HazardHead

LONG = History(
    [
        Visit([10, 11], is_static=True),
        Visit([4], age_years=40.2, gap_days=0.0),
        Visit([5, 6], age_years=40.25, gap_days=10.0),
        Visit([7], age_years=41.9, gap_days=400.0),
    ],
    end_age_years=42.1,
    end_gap_days=0.5,
)
SHORT = History([Visit([8], age_years=70.0)], end_age_years=70.5, end_gap_days=200.0)
EMPTY = History([], end_age_years=33.3, end_gap_days=0.0)

VOCABULARY_SIZE = 40


def pack(*histories: History, max_tokens: int = 100) -> Batch:
    return collate(store_of(histories), np.arange(len(histories)), max_tokens=max_tokens)


def test_each_subject_is_its_tokens_in_time_order_then_cls() -> None:
    batch = pack(LONG, SHORT, EMPTY)
    assert batch.token.tolist() == [10, 11, 4, 5, 6, 7, CLS, 8, CLS, CLS]
    assert batch.lengths == (7, 2, 1)
    assert batch.cls_positions.tolist() == [6, 8, 9]


def test_positions_count_visits_back_from_the_cutoff() -> None:
    batch = pack(LONG, SHORT, EMPTY)
    static = MAX_POSITION
    assert batch.position.tolist() == [static, static, 3, 2, 2, 1, 0, 1, 0, 0]


def test_segments_alternate_by_visit_from_the_last_one() -> None:
    assert pack(LONG, SHORT, EMPTY).segment.tolist() == [0, 0, 1, 2, 2, 1, 0, 1, 0, 0]


def test_ages_are_whole_years_at_the_visit_and_cls_stands_at_the_cutoff() -> None:
    assert pack(LONG, SHORT, EMPTY).age.tolist() == [0, 0, 40, 40, 40, 41, 42, 70, 70, 33]


def test_gaps_are_classes_of_days_since_the_visit_before() -> None:
    # 0 days is class 1, 7 to 14 days class 6, 365 to 730 days class 12; [CLS]: 6 h to a day 3, 180 to 365 days 11
    assert pack(LONG, SHORT, EMPTY).gap.tolist() == [0, 0, 1, 6, 6, 12, 3, 1, 11, 1]


def test_the_longest_gap_has_the_last_class() -> None:
    batch = pack(History([Visit([4], 50.0, GAP_EDGES_DAYS[-1])]))
    assert int(batch.gap[0]) == N_GAPS - 1


def test_a_long_record_keeps_static_facts_and_its_most_recent_tokens() -> None:
    batch = pack(LONG, max_tokens=5)
    assert batch.token.tolist() == [10, 11, 6, 7, CLS]
    assert batch.position.tolist() == [MAX_POSITION, MAX_POSITION, 2, 1, 0]
    assert batch.age.tolist() == [0, 0, 40, 41, 42]


def test_cls_stands_at_the_cutoff_even_where_static_facts_leave_no_room() -> None:
    batch = pack(LONG, max_tokens=3)
    assert batch.token.tolist() == [10, 11, CLS]
    assert batch.age.tolist() == [0, 0, 42]


def test_a_record_that_just_fits_is_whole() -> None:
    assert pack(LONG, max_tokens=7).token.tolist() == [10, 11, 4, 5, 6, 7, CLS]


def test_visits_beyond_the_table_of_positions_share_its_last_place_before_static_facts() -> None:
    batch = pack(History([Visit([4], 50.0)] * (MAX_POSITION + 10)), max_tokens=5000)
    assert int(batch.position[0]) == MAX_POSITION - 1
    assert int(batch.position[-2]) == 1


def test_outcomes_follow_their_subjects() -> None:
    outcomes = Outcomes(np.array([10.0, 20.0, 30.0]), np.array([True, False, True]))
    batch = collate(store_of([LONG, SHORT, EMPTY]), np.array([2, 0]), max_tokens=50, outcomes=outcomes)
    assert batch.rows.tolist() == [2, 0]
    assert batch.outcomes is not None
    assert batch.outcomes.follow_up_days.tolist() == [30.0, 10.0]
    assert batch.outcomes.is_event.tolist() == [True, True]


def test_a_random_window_is_a_run_of_the_record_behind_its_static_facts() -> None:
    record = History(
        [Visit([9], is_static=True), *(Visit([10 + k], 20.0 + k, 100.0) for k in range(20))],
        end_age_years=60.0,
        end_gap_days=2000.0,
    )
    store, rng, last_tokens = store_of([record]), np.random.default_rng(0), set()
    for _ in range(200):
        batch = collate(store, np.array([0]), max_tokens=7, window_rng=rng)
        static, *window, cls = batch.token.tolist()
        assert (static, cls, len(window)) == (9, CLS, 5)
        assert window == list(range(window[0], window[0] + 5))
        assert batch.position.tolist() == [MAX_POSITION, 5, 4, 3, 2, 1, 0]
        last_tokens.add(window[-1])
        if window[-1] == 29:  # the window ends where the record does: [CLS] stands at the cutoff
            assert (int(batch.age[-1]), int(batch.gap[-1])) == (60, N_GAPS - 1)
        else:  # it ends before: [CLS] stands at the window's last visit, and knows nothing of what follows
            assert (int(batch.age[-1]), int(batch.gap[-1])) == (window[-1] - 10 + 20, 1)
    assert last_tokens == set(range(14, 30))


def test_shuffled_batches_hold_every_subject_once_and_are_the_same_twice() -> None:
    batches = Batches(random_store(50, VOCABULARY_SIZE), np.arange(50), batch_tokens=100, max_tokens=50, shuffle_seed=3)
    first = [row for batch in batches for row in batch.rows.tolist()]
    assert first == [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(first) == list(range(50))
    assert first != sorted(first)
    assert len(batches) == len(list(batches))
    other = replace(batches, shuffle_seed=4)
    assert first != [row for batch in other for row in batch.rows.tolist()]


def batches_of(n_subjects: int, batch_tokens: int, max_tokens: int = 20) -> Batches:
    return Batches(
        random_store(n_subjects, VOCABULARY_SIZE), np.arange(n_subjects), batch_tokens, max_tokens, shuffle_seed=3
    )


@given(batch_tokens=st.integers(8, 200), max_tokens=st.integers(8, 60), n_ranks=st.integers(1, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_batches_keep_the_budget_and_each_rank_has_as_many_of_its_own(
    batch_tokens: int, max_tokens: int, n_ranks: int
) -> None:
    shares = [replace(batches_of(50, batch_tokens, max_tokens), rank=r, n_ranks=n_ranks) for r in range(n_ranks)]
    drawn = [list(share) for share in shares]
    assert len({len(batches) for batches in drawn}) == 1
    assert all(len(share) == len(batches) for share, batches in zip(shares, drawn, strict=True))
    every = [batch for batches in drawn for batch in batches]
    assert all(batch.n_tokens <= batch_tokens or len(batch.lengths) == 1 for batch in every)
    assert max(max(batch.lengths) for batch in every) <= max_tokens
    assert sorted(row for batch in every for row in batch.rows.tolist()) == list(range(50))


def test_a_batch_is_full_when_the_next_subject_has_no_room() -> None:
    batches = list(batches_of(50, 100))
    assert all(a.n_tokens + b.lengths[0] > 100 for a, b in pairwise(batches))


def test_fewer_subjects_than_processes_are_refused() -> None:
    with pytest.raises(DataError, match="2 subjects cannot be shared by 3 processes; start fewer"):
        len(replace(batches_of(2, 10), n_ranks=3))


def test_batches_that_were_done_are_passed_over_and_the_others_are_the_same() -> None:
    batches = replace(batches_of(50, 60), has_random_windows=True, max_tokens=9)
    all_of_them, left = list(batches), list(replace(batches, start=4))
    assert len(left) == len(all_of_them) - 4
    assert [b.seed for b in left] == [b.seed for b in all_of_them[4:]]
    assert all(torch.equal(a.token, b.token) for a, b in zip(left, all_of_them[4:], strict=True))


def test_every_batch_of_every_epoch_has_a_seed_of_its_own() -> None:
    seeds = [b.seed for epoch in range(5) for b in replace(batches_of(50, 60), shuffle_seed=epoch)]
    assert len(set(seeds)) == len(seeds)


def test_records_that_are_cut_are_counted() -> None:
    store = store_of([LONG, SHORT, EMPTY])  # 7, 2 and 1 tokens with [CLS]
    batches = Batches(store, np.arange(3), 100, 7)
    assert batches.n_truncated == 0
    assert replace(batches, max_tokens=6).n_truncated == 1
    assert replace(batches, batch_tokens=6).n_truncated == 0  # a budget is no property of the model


def test_a_record_that_is_longer_than_the_budget_is_whole_and_a_batch_of_its_own() -> None:
    batches = Batches(store_of([SHORT, LONG, EMPTY]), np.arange(3), 5, 7)
    assert batches.n_over_budget == 1
    assert [batch.token.tolist() for batch in batches] == [[8, CLS], [10, 11, 4, 5, 6, 7, CLS], [CLS]]


@given(batch_tokens=st.integers(1, 200), max_tokens=st.integers(4, 40), shuffle_seed=st.none() | st.integers(0, 5))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_what_is_read_of_a_record_does_not_depend_on_the_budget(
    batch_tokens: int, max_tokens: int, shuffle_seed: int | None
) -> None:
    def read(budget: int) -> dict[int, list[int]]:
        store = random_store(30, VOCABULARY_SIZE, longest=20)
        batches = Batches(store, np.arange(30), budget, max_tokens, shuffle_seed=shuffle_seed)
        return {
            row: tokens.tolist()
            for batch in batches
            for row, tokens in zip(batch.rows.tolist(), batch.token.split(batch.lengths), strict=True)
        }

    assert read(batch_tokens) == read(100_000)


@pytest.fixture(scope="module")
def store() -> TokenStore:
    return random_store(30, VOCABULARY_SIZE)


@pytest.fixture(scope="module")
def model() -> EhrModel:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny"), VOCABULARY_SIZE)
    model = EhrModel(encoder, HazardHead(encoder.width, torch.zeros(4))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # of a size at which attention and head matter
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@given(rows=st.lists(st.integers(0, 29), min_size=1, max_size=8, unique=True))
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_prediction_does_not_depend_on_batch_mates_or_their_order(
    rows: list[int], store: TokenStore, model: EhrModel
) -> None:
    with torch.no_grad():
        together = model(collate(store, np.array(rows), max_tokens=20))
        alone = torch.cat([model(collate(store, np.array([row]), max_tokens=20)) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


def test_labels_of_several_rows_a_subject_keep_whose_they_are():
    outcomes = Outcomes(np.arange(1.0, 5.0), np.array([True, False, True, False]), subject=np.array([7, 7, 3, 9]))
    first, last = outcomes[np.array([0, 1])], outcomes[np.array([2, 3])]
    assert (outcomes.n_subjects, first.n_subjects, last.n_subjects) == (3, 1, 2)
    joined = Outcomes.joined([last, first])
    assert joined.subject is not None
    assert joined.subject.tolist() == [3, 9, 7, 7]
    assert joined.follow_up_days.tolist() == [3, 4, 1, 2]
    assert joined.cause is None
    unnamed = Outcomes(first.follow_up_days, first.is_event)
    assert unnamed.n_subjects == 2
    assert Outcomes.joined([last, unnamed]).subject is None
