"""Threads: how they wait, and how many: one for a batch of cached states, all of them for a batch of tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "0"}, {"GOMP_SPINCOUNT": "0"}),
    ],
)
def test_importing_the_package_sets_how_threads_wait_unless_the_user_did(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    program = f"import json, os, ehrtrack; print(json.dumps({{n: os.environ[n] for n in {names} if n in os.environ}}))"
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


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
