"""Codes that lie in one direction are one group, with all their bins."""

from __future__ import annotations

import numpy as np
import pytest

from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import DataError
from ehrtrack.training.code_groups import group_codes

EDGES = {"LAB": (1.0,), "TEST": (5.0,), "ASSAY": (2.0,)}
CODES = {
    "A": (9, [5, 0, 0]),
    "B": (20, [0, 3, 0]),
    "rare B": (3, [0, 0.1, 0]),
    "LAB//Q1": (50, [0, 1, 0]),
    "LAB//Q2": (50, [1, 0, 1]),
    "TEST//Q1": (40, [0, 2, 0]),
    "TEST//Q2": (30, [2, 0, 2]),
    "TEST": (1, [0, 0, 0.1]),
    "ASSAY//Q1": (40, [1, 0, 1]),  # high where the others are low: the same on average
    "ASSAY//Q2": (40, [0, 1, 0]),
}


def grouped(n_groups: int, **counts: int) -> dict[str, str]:
    counted = tuple(counts.get(name, n) for name, (n, _) in CODES.items())
    vocabulary = Vocabulary((*SPECIAL_TOKENS, *CODES), EDGES, (0, 0, 0, 0, *counted))
    vectors = np.array([[0, 0, 0]] * 4 + [vector for _, vector in CODES.values()], dtype=np.float32)
    return group_codes(vocabulary, vectors, n_groups)


def test_a_group_has_the_name_of_its_most_frequent_code_and_codes_their_bins_one_by_one() -> None:
    assert grouped(4) == {"A": "A", "B": "B", "rare B": "B", "LAB": "LAB", "TEST": "LAB", "ASSAY": "ASSAY"}


def test_the_name_follows_the_counts_not_the_alphabet() -> None:
    assert grouped(4, B=2)["B"] == "rare B"


def test_more_groups_than_codes_are_refused() -> None:
    with pytest.raises(DataError, match="7 groups of 6 codes"):
        grouped(7)
