"""Two versions of a registered model, the first of them champion."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from serving_models import a_study, register, write_model
from simulated import Population, write_dataset

from ehrtrack.data.events import MedsDataset
from ehrtrack.tracking.client.moves import set_champion
from ehrtrack.tracking.client.registry import ModelVersion


@dataclass(frozen=True)
class Registry:
    """A working folder with a tracking database, a dataset, and versions 1 and 2 of the model ``served``."""

    folder: Path
    dataset: MedsDataset
    versions: tuple[ModelVersion, ModelVersion]

    def move(self, number: int) -> None:
        """Make another version the champion."""
        set_champion(self.versions[number - 1], how="promote", why="a test")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.delenv("EHRTRACK_SERVE_TOKEN", raising=False)
        patch.chdir(folder)
        dataset, config = write_dataset(folder / "meds", Population(n_subjects=40)), a_study(folder)
        first, second = (register(write_model(folder / f"m{seed}", config, seed), "served") for seed in (1, 2))
        made = Registry(folder, dataset, (first, second))
        made.move(1)
        yield made
