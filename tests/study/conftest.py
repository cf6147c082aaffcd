"""A small study on simulated subjects, as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pretended import Recipes
from simulated import Population, write_dataset

from ehrtrack.recipes import _cell as cell_recipe

PRETRAIN = """
study = "sim"
[data]
path = "{data}"
max_tokens = 64
vocabulary = {{ min_subjects = 2 }}
[model]
size = "tiny"
[train]
epochs = 1
batch_tokens = 1024
lr = 3e-3
[runtime]
cache = ".ehrtrack"
device = "cpu"
threads = 1
snapshot_minutes = 1e-6
"""
FINETUNE = """
extends = "pretrain.toml"
[cohort]
horizon_days = 365.0
index = { rule = "first_code", codes = ["INDEX$"] }
outcome = { codes = ["OUTCOME$"] }
[strategy]
name = "lora"
alpha = 32
"""

WriteStudy = Callable[..., Path]


@pytest.fixture(scope="session")
def simulated_meds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meds") / "data"
    write_dataset(folder, Population(n_subjects=200))
    return folder


def write_files(folder: Path, data: Path, study: str, **files: str) -> Path:
    """The configuration files and a study's file; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"pretrain": PRETRAIN.format(data=data), "finetune": FINETUNE, "baseline": 'extends = "finetune.toml"\n'}
    for name, text in (texts | files | {"study": study}).items():
        (folder / f"{name}.toml").write_text(text)
    return folder / "study.toml"


@pytest.fixture
def write_study(tmp_path: Path, simulated_meds: Path) -> WriteStudy:
    """Write a study of these tables, and return its file."""

    def write(study: str, **files: str) -> Path:
        return write_files(tmp_path, simulated_meds, study, **files)

    return write


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Recipes:
    pretended = Recipes()
    for kind in ("pretrain", "finetune", "baseline"):
        monkeypatch.setattr(cell_recipe, kind, pretended.make(kind))
    monkeypatch.setattr(cell_recipe, "resume", pretended.resume)
    monkeypatch.setattr("ehrtrack.tracking.recovery.claims.POLL_SECONDS", 0.01)
    return pretended
