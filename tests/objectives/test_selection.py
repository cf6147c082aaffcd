"""Which epoch is kept: by one measure alone, or among those that it cannot tell apart by another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrtrack.objectives.base import Selection
from ehrtrack.objectives.survival import selection_by

RULE = Selection("c", is_higher_better=True, error="c_se", among="ibs")
METRICS = st.tuples(*(st.integers(0, 5).map(lambda n: n / 10) for _ in range(3)))


def history(*epochs: Sequence[float]) -> list[dict[str, float]]:
    """Epochs of a C-index, its standard error where there is one, and an integrated Brier score."""
    return [dict(zip(("c", "ibs", "c_se"), epoch, strict=False)) for epoch in epochs]


def test_of_the_epochs_within_one_standard_error_of_the_best_the_lowest_brier_score_is_kept() -> None:
    epochs = history((0.64, 0.12, 0.05), (0.70, 0.20, 0.03), (0.671, 0.15, 0.05), (0.68, 0.16, 0.05))
    assert RULE.best_epoch(epochs) == 2
    assert RULE.kept_epoch(epochs) == 3  # .64 is within .05, the error of others, and not within that of the best
    assert RULE.kept_epoch(epochs[:2]) == 2
    assert RULE.kept_epoch(epochs[:1]) == 1


def test_an_uncalibrated_first_epoch_with_a_high_c_index_is_not_kept() -> None:
    """As was seen: all risks alike, and a C-index that is the highest by chance."""
    epochs = history((0.71, 0.21, 0.03), (0.69, 0.15, 0.03), (0.70, 0.14, 0.03), (0.65, 0.13, 0.03))
    assert RULE.kept_epoch(epochs) == 3
    assert Selection("c", is_higher_better=True).kept_epoch(epochs) == 1
    assert Selection("ibs", is_higher_better=False).kept_epoch(epochs) == 4


def test_without_a_standard_error_the_c_index_tells_no_epochs_apart() -> None:
    epochs = history((0.9, 0.2), (0.5, 0.1), (0.8, 0.3))
    assert (RULE.best_epoch(epochs), RULE.kept_epoch(epochs)) == (1, 2)


def test_equals_go_by_the_other_measure_and_then_to_the_earlier() -> None:
    assert RULE.kept_epoch(history((0.6, 0.1, 0.1), (0.7, 0.1, 0.1), (0.7, 0.1, 0.1))) == 2
    assert RULE.candidates(history((0.6, 0.1, 0.1), (0.7, 0.1, 0.1), (0.7, 0.1, 0.1))) == [2]


@given(st.lists(METRICS, max_size=12))
def test_what_may_come_to_be_kept_is_known_epoch_by_epoch(values: list[tuple[float, float, float]]) -> None:
    """Weights that were let go are never asked for again, whatever epochs follow."""
    epochs, there = history(*values), set[int]()
    for n in range(1, len(epochs) + 1):
        candidates = set(RULE.candidates(epochs[:n]))
        assert candidates <= there | {n}
        assert RULE.kept_epoch(epochs[:n]) in candidates
        there = candidates


@given(st.lists(METRICS, min_size=1, max_size=12))
def test_the_kept_epoch_is_within_the_error_and_none_within_it_is_more_right(
    values: list[tuple[float, float, float]],
) -> None:
    table = np.array(values)  # (N, 3) C-index, IBS, error
    kept = RULE.kept_epoch(history(*values)) - 1
    best = int(table[:, 0].argmax())
    within = table[:, 0] >= table[best, 0] - table[best, 2]
    assert within[kept]
    assert table[kept, 1] == table[within, 1].min()


def test_patience_counts_from_the_best_or_the_kept_epoch_whichever_is_later() -> None:
    assert RULE.last_progress(history((0.70, 0.2, 0.05), (0.69, 0.1, 0.05), (0.6, 0.05, 0.05))) == 2
    assert RULE.last_progress(history((0.69, 0.1, 0.05), (0.70, 0.2, 0.05), (0.6, 0.05, 0.05))) == 2
    assert RULE.last_progress([]) == 0


def test_before_the_first_epoch_nothing_is_kept() -> None:
    for selection in (RULE, Selection("loss", is_higher_better=False)):
        assert (selection.best_epoch([]), selection.kept_epoch([]), selection.candidates([])) == (0, 0, [])


@pytest.mark.parametrize(("is_higher_better", "kept"), [(True, 2), (False, 1)])
def test_one_measure_alone_keeps_its_best_and_no_other(is_higher_better: bool, kept: int) -> None:
    selection = Selection("c", is_higher_better)
    assert selection.kept_epoch(history((0.1,), (0.3,), (0.3,))) == kept
    assert selection.candidates(history((0.1,), (0.3,), (0.3,))) == [kept]


def test_asked_for_the_measure_of_error_it_decides_alone() -> None:
    assert selection_by("ibs", "c_index", "ibs") == Selection("val/ibs", is_higher_better=False)
    assert selection_by("c_index", "c_index", "ibs") == Selection(
        "val/c_index", is_higher_better=True, error="val/c_index_se", among="val/ibs"
    )
