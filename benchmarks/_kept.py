"""What benchmarks share that keep everything in a folder, and make nothing again that is there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def work_in(folder: Path) -> Path:
    """Make a folder the one that is worked in, with a tracking database of its own; returns its whole path."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    os.chdir(folder)
    return folder


def found_in(file: Path) -> dict[str, Any]:
    """What was kept before."""
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def made_population(folder: Path, world: str, n_subjects: int, seed: int, dials: Sequence[str] = ()) -> bool:
    """Simulate the population in `data`; False where it is there already."""
    from ehrtrack.simulate.population import simulate
    from ehrtrack.simulate.world import load_world

    if (folder / "data").is_dir():
        return False
    simulate(load_world(world, dials), folder / "data", n_subjects=n_subjects, seed=seed)
    return True
