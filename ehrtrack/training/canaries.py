"""Leakage canaries: what twins of a run come to if the outcome reaches the model by no way but the known record."""

from __future__ import annotations

import numpy as np

from ehrtrack.arrays import Floats
from ehrtrack.survival.resampling import Interval
from ehrtrack.training.sanity import State, Verdict

CHANCE = 0.5
SURE = 0.999
"""Coverage of the interval that fails a run. One run in twenty has chance outside of its 95 % interval: that warns."""
PLANTED_C_INDEX = 0.95
"""What a model scores at least that reads the outcome off a code. A lower one means that the twin, and so perhaps the
run, cannot learn what is plain."""
TOLERATED_DIFFERENCE = 1e-6
"""Between risks of the same tokens: one and the same number on a CPU, the last digits on a GPU."""


def permuted(interval: Interval, sure: Interval, metric: str = "C-index") -> Verdict:
    """Labels dealt out among the subjects of each split: nothing is left to learn, and C is one half.

    Parameters
    ----------
    interval, sure : test score with its 95 % interval, and with that of coverage `SURE`
    metric : what it is, of which one half is chance
    """
    state: State = "ok"
    if not interval.lower <= CHANCE <= interval.upper:
        state = "warn" if sure.lower <= CHANCE <= sure.upper else "fail"
    said = {
        "ok": "chance, as it has to be",
        "warn": f"chance only within the {SURE:.1%} interval, as in one run of twenty",
        "fail": "the outcome reaches the model by another way than its record",
    }[state]
    return Verdict("canary_permuted", state, f"test {metric} with permuted labels {interval}: {said}")


def future(risk: Floats, risk_of_twin: Floats | None, *, n_changed: int) -> Verdict:
    """Everything after the index date scrambled: no risk may move.

    Parameters
    ----------
    risk, risk_of_twin : (B,) by the same weights, from either dataset; None where the vocabulary, fitted to the twin,
        is another, so that its tokens mean something else
    n_changed : events after the index dates, which were taken away or dealt out
    """
    changed = f"{n_changed:,} events after the index dates taken away or dealt out, and codes planted there"
    if risk_of_twin is None:
        return Verdict("canary_future", "fail", f"{changed}: the vocabulary is another, so it knows the future")
    difference = np.abs(risk - risk_of_twin)
    n_moved = int((difference > TOLERATED_DIFFERENCE).sum())
    said = f"{n_moved} of {len(risk)} test risks moved, by {difference.max():.3f} at most"
    return Verdict("canary_future", "fail" if n_moved else "ok", f"{changed}: {said}")


def planted(interval: Interval, metric: str = "C-index") -> Verdict:
    """The outcome written down before the index date: a pipeline that can learn at all scores near 1."""
    state: State = "ok" if interval.estimate > PLANTED_C_INDEX else "fail"
    said = "the leak is seen" if state == "ok" else "a plain leak is not seen, so no leak would be"
    return Verdict(
        "canary_planted", state, f"test {metric} with a planted leak {interval} (above {PLANTED_C_INDEX:g}): {said}"
    )
