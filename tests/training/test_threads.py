"""Threads: one for a batch of cached states, all of them for a batch of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack.data.batch import collate
from ehrtrack.training.threads import threads_for

TOKENS = collate(random_store(2, 40, 0), np.arange(2), max_tokens=24)
STATES = replace(TOKENS, hidden=torch.zeros(TOKENS.n_tokens, 4))


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_cached_states_are_computed_with_one_thread() -> None:
    with threads_for(STATES):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_tokens_are_computed_with_all_threads() -> None:
    with threads_for(TOKENS):
        assert torch.get_num_threads() == 2


def test_the_threads_come_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), threads_for(STATES):
        raise RuntimeError("out of memory")
    assert torch.get_num_threads() == 2
