"""Codes that lie in one direction are one group, with all their bins."""

from __future__ import annotations

import numpy as np
import pytest

from ehrtrack.errors import DataError
from ehrtrack.training.code_groups import group_codes

CODES = ("A", "LAB", "LAB", "B", "rare B", "LAB")  # LAB has three tokens: one without a value, and two bins
COUNTS = (9, 1, 50, 20, 3, 50)
VECTORS = np.array([[5, 0, 0], [0, 0, 1], [0, 1, 2], [0, 3, 0], [0, 0.1, 0], [0, -1, 2]], dtype=np.float32)


def test_a_group_has_the_name_of_its_most_frequent_code_and_a_code_all_its_bins() -> None:
    """The bins of LAB lie apart, and one of them nearer to B; together they lie where LAB is."""
    assert group_codes(CODES, COUNTS, VECTORS, 3) == {"A": "A", "B": "B", "LAB": "LAB", "rare B": "B"}


def test_the_name_follows_the_counts_not_the_alphabet() -> None:
    counts = (9, 1, 50, 2, 3, 50)
    assert group_codes(CODES, counts, VECTORS, 3)["B"] == "rare B"


def test_more_groups_than_codes_are_refused() -> None:
    with pytest.raises(DataError, match="5 groups of 4 codes"):
        group_codes(CODES, COUNTS, VECTORS, 5)
