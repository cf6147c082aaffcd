"""The benchmarks are a package beside the library; they are installed with neither."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Rows set the number of threads of this process; it is set back."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
