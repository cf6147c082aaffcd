"""The harness's arithmetic, by a clock that the test moves."""

from __future__ import annotations

import itertools

import pytest

from benchmarks import _timing
from benchmarks._process import python
from benchmarks._row import Row, row_modules
from benchmarks._timing import Budget, compare, interleaved, rounds
from benchmarks._workload import MAX_TOKENS, record_lengths, token_store


class Clock:
    """Time that passes only when work is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def side(self, name: str, *seconds: float, work: float = 1.0) -> _timing.Side:
        """Work that takes these seconds in turn."""
        durations = itertools.cycle(seconds)

        def side() -> float:
            self.order.append(name)
            self.now += next(durations)
            return work

        return side


def test_sides_take_turns_in_going_first_and_speeds_are_work_by_time() -> None:
    clock = Clock()
    ours, peer = clock.side("ours", 1, 2, work=10), clock.side("peer", 5, work=20)
    assert interleaved(ours, peer, Budget(3, 3), clock) == ([10, 5, 10], [4, 4, 4])
    assert clock.order == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_the_lower_of_the_two_clocks_medians_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(_timing, "CLOCKS", (("one", 1, clock), ("two", 2, clock)))
    # Seconds of ours: a warm-up, three rounds by the first clock (median ratio 8), three by the second (median 2).
    ours = clock.side("ours", 99, 1, 1, 4, 4, 2, 8)
    found = compare(ours, clock.side("peer", 8), Budget(3, 3))
    assert found.value == 2
    assert (found.details["one_ratio"], found.details["two_ratio"]) == (8, 2)
    assert (found.details["two_lowest_ratio"], found.details["two_highest_ratio"]) == (1, 4)


@pytest.mark.parametrize(("budget", "expected"), [(Budget(2, 5, seconds=-1), 2), (Budget(2, 5, seconds=1e9), 5)])
def test_rounds_are_no_fewer_and_no_more_than_the_budget_says(budget: Budget, expected: int) -> None:
    assert list(rounds(budget)) == list(range(expected))


def test_a_bound_is_reached_from_above_or_below() -> None:
    speed, time = Row("a", "", floor=2), Row("b", "", floor=2, is_lower_better=True)
    assert [speed.reaches(value, speed.floor) for value in (1.9, 2, 2.1)] == [False, True, True]
    assert [time.reaches(value, time.floor) for value in (1.9, 2, 2.1)] == [True, True, False]
    assert speed.reaches(0, None)


def test_every_row_has_a_name_of_its_own_and_a_measure() -> None:
    modules = row_modules()
    rows = {row.name: row for module in modules.values() for row in module.ROWS}
    assert len(rows) == sum(len(module.ROWS) for module in modules.values())
    assert all(callable(module.measure) for module in modules.values())
    bounds = {name: (row.floor, row.aim) for name, row in rows.items()}
    assert [bounds[f"mlm-{size}"] for size in ("small", "medium", "large")] == [(20, 36), (18, 32), (11, 18)]
    assert bounds["prepare-memory"] == (1000, 600)
    assert bounds["tracking"] == (3, 1)
    for row in rows.values():
        if row.floor is not None and row.aim is not None:
            assert row.reaches(row.aim, row.floor), f"the aim of {row.name} is beyond its floor"


def test_record_lengths_have_the_median_and_some_reach_the_maximum() -> None:
    lengths = record_lengths(1001)
    assert lengths[500] == 60
    assert lengths.max() == MAX_TOKENS
    assert 1 <= (lengths == MAX_TOKENS).sum() <= 10


def test_a_made_up_store_is_a_store() -> None:
    store = token_store(50, 1000)
    assert sorted(store.n_tokens + 1) == list(record_lengths(50))
    first = slice(store.offsets[0], store.offsets[1])
    assert list(store.visit[first][:9]) == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert len(set(store.gap_days[first][5:8])) == 1
    assert (store.token.min(), store.token.max() < 1000) == (4, True)


def test_a_measured_program_tells_its_memory_time_and_exit_code() -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass\nx = bytearray(300_000_000)\nprint('{\"answer\": 42}')"
    done = python(["-c", burn], n_threads=1)
    assert done.last_json() == {"answer": 42}
    assert done.cpu_seconds >= 0.5
    assert 300 <= done.peak_mb < 600
    failed = python(["-c", "import sys; print('no', file=sys.stderr); sys.exit(3)"], n_threads=1)
    assert failed.exit_code == 3
    with pytest.raises(RuntimeError, match=r"exit code 3:\nno"):
        failed.last_json()


def test_memory_of_children_counts() -> None:
    child = "import time; x = bytearray(200_000_000); time.sleep(1)"
    both = f"import subprocess, sys\nx = bytearray(200_000_000)\nsubprocess.run([sys.executable, '-c', {child!r}])"
    assert python(["-c", both], n_threads=1).peak_mb >= 400
