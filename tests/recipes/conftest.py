"""One thread: the machines that test are small, and results must not depend on their number of cores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ehrtrack.simulate.population import simulate
from ehrtrack.simulate.world import load_world

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def target_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 subjects of a world whose truth is known, with their labels."""
    folder = tmp_path_factory.mktemp("world") / "target-site"
    simulate(load_world("target-site"), folder, n_subjects=1000, seed=0)
    return folder
