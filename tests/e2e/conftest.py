"""A whole study on simulated subjects, run once by the command line against each kind of tracking store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from planted import FIRST_SUBJECT, SECRETS, URL_PASSWORD, journals_kept
from simulated import Population, write_dataset
from whole_study import Study, make_study, run_all

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def simulated_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "meds"
    write_dataset(folder, Population(n_subjects=400, first_subject=FIRST_SUBJECT))
    return folder


@pytest.fixture(scope="session")
def study(simulated_data: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with its runs in a database."""
    folder = tmp_path_factory.mktemp("sqlite")
    shutil.copy(empty_database, folder / "mlflow.db")
    return run_all(make_study(folder, simulated_data, f"sqlite:///{folder / 'mlflow.db'}"))


@pytest.fixture(scope="session")
def server_study(simulated_data: Path, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with its runs on a server over HTTP: journals are kept, and secrets are everywhere they could be."""
    folder = tmp_path_factory.mktemp("http")
    data = folder / f"meds-{SECRETS['AWS_SECRET_ACCESS_KEY']}"
    data.symlink_to(simulated_data)
    store = mlflow_server.replace("://", f"://anna:{URL_PASSWORD}@")
    study = make_study(folder, data, store, environment=SECRETS)
    with journals_kept(folder / "journals"):
        return run_all(study)
