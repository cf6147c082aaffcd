"""States of an encoder that are computed once: whole or not at all, and the same as computed anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pytest

from ehrtrack.data.features import build_features
from ehrtrack.errors import DataError

LENGTHS = np.array([2, 1, 3])
States = Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]


def states(cut_off: bool = False) -> States:
    """State k of subject i is (10 i + k, 0); subjects come in another order than they are kept."""
    for rows in (np.array([2, 0]), np.array([1])):
        yield rows, np.array([[10 * i + k, 0] for i in rows for k in range(LENGTHS[i])], dtype=np.float32)
        if cut_off:
            raise KeyboardInterrupt


def no_states() -> States:
    raise AssertionError("they are there already")
    yield


def test_states_lie_by_row_whatever_the_order_they_came_in(tmp_path: Path) -> None:
    features = build_features(tmp_path / "f", LENGTHS, 2, states())
    assert features.lengths.tolist() == [2, 1, 3]
    assert features.hidden_of(np.array([1, 2]))[:, 0].tolist() == [10, 20, 21, 22]


def test_they_are_computed_once(tmp_path: Path) -> None:
    first = build_features(tmp_path / "f", LENGTHS, 2, states())
    again = build_features(tmp_path / "f", LENGTHS, 2, no_states())
    assert np.array_equal(first.hidden, again.hidden)


def test_what_was_cut_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_features(tmp_path / "cache" / "f", LENGTHS, 2, states(cut_off=True))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    def compute() -> NoReturn:
        raise AssertionError("computed")

    with pytest.raises(DataError, match=r"GB free; set runtime\.cache .*strategy\.cache=false"):
        build_features(tmp_path / "f", np.array([10**15]), 2, (compute() for _ in range(1)))
