"""A whole study on simulated subjects, run once by the command line against each kind of tracking store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from simulated import Population, write_dataset
from whole_study import Study, make_study, run_all

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def simulated_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "meds"
    write_dataset(folder, Population(n_subjects=400))
    return folder


@pytest.fixture(scope="session")
def study(simulated_data: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with its runs in a database."""
    folder = tmp_path_factory.mktemp("sqlite")
    shutil.copy(empty_database, folder / "mlflow.db")
    return run_all(make_study(folder, simulated_data, f"sqlite:///{folder / 'mlflow.db'}"))


@pytest.fixture(scope="session")
def server_study(simulated_data: Path, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with its runs on a server over HTTP."""
    return run_all(make_study(tmp_path_factory.mktemp("http"), simulated_data, mlflow_server))
