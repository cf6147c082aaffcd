"""Two sides measured in turn, round by round, by two clocks: CPU time with one thread, wall time with two.

A machine drifts (heat, neighbours, turbo), so each round measures both sides close together and gives one ratio;
the median over rounds forgives the rounds in which something else was running. The side that goes first changes
with each round.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks._row import Measured

Side = Callable[[], float]
"""Does a piece of work once and returns how much it was (real tokens, or 1)."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Budget:
    """Rounds by each clock: as many as fit into `seconds`, but no fewer and no more than these."""

    least_rounds: int = 3
    most_rounds: int = 9
    seconds: float = 15.0

    def times(self, factor: int) -> Budget:
        """More rounds, for a ratio so near to 1 that a few would not tell."""
        return Budget(self.least_rounds * factor, self.most_rounds * factor, self.seconds * factor)


FULL = Budget()
QUICK = Budget(least_rounds=1, most_rounds=2, seconds=4.0)

CLOCKS: tuple[tuple[str, int, Clock], ...] = (
    ("cpu_1_thread", 1, time.process_time),
    ("wall_2_threads", 2, time.perf_counter),
)


def compare(ours: Side, peer: Side, budget: Budget) -> Measured:
    """How many times faster ours is, by each clock; the value that is judged is the lower of the two."""
    ours(), peer()  # kernels are chosen, optimiser states and caches are made
    ratios: list[float] = []
    details: dict[str, float | str] = {}
    for name, n_threads, clock in CLOCKS:
        set_threads(n_threads)
        our_speeds, peer_speeds = interleaved(ours, peer, budget, clock)
        by_round = [a / b for a, b in zip(our_speeds, peer_speeds, strict=True)]
        ratios.append(statistics.median(by_round))
        details |= {
            f"{name}_ratio": ratios[-1],
            f"{name}_lowest_ratio": min(by_round),
            f"{name}_highest_ratio": max(by_round),
            f"{name}_ours_per_second": statistics.median(our_speeds),
            f"{name}_peer_per_second": statistics.median(peer_speeds),
            f"{name}_rounds": float(len(by_round)),
        }
    return Measured(min(ratios), details)


def interleaved(ours: Side, peer: Side, budget: Budget, clock: Clock) -> tuple[list[float], list[float]]:
    """Work per second of both sides, round by round."""
    speeds: tuple[list[float], list[float]] = ([], [])
    sides = ((ours, speeds[0]), (peer, speeds[1]))
    for number in rounds(budget):
        for side, found in sides if number % 2 == 0 else reversed(sides):
            started = clock()
            work = side()
            found.append(work / (clock() - started))
    return speeds


def seconds(work: Side, budget: Budget) -> Measured:
    """Seconds of a piece of work by each clock, medians of rounds; judged is the higher of the two."""
    work()
    details: dict[str, float | str] = {}
    for name, n_threads, clock in CLOCKS:
        set_threads(n_threads)
        found = []
        for _ in rounds(budget):
            started = clock()
            work()
            found.append(clock() - started)
        details[f"{name}_seconds"] = statistics.median(found)
        details[f"{name}_rounds"] = float(len(found))
    return Measured(max(float(details[f"{name}_seconds"]) for name, _, _ in CLOCKS), details)


class rounds:  # noqa: N801  # used like `range`
    """Numbers of rounds from 0, until the budget is used; a dot a round on stderr."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.number = -1
        self.started = time.monotonic()

    def __iter__(self) -> rounds:
        return self

    def __next__(self) -> int:
        self.number += 1
        is_over = time.monotonic() - self.started > self.budget.seconds
        if self.number >= self.budget.most_rounds or (self.number >= self.budget.least_rounds and is_over):
            raise StopIteration
        print(".", end="", file=sys.stderr, flush=True)
        return self.number


def set_threads(n_threads: int) -> None:
    """Threads of torch, and of the BLAS that numpy uses."""
    from ehrtrack.training.threads import use_threads

    use_threads(n_threads)
