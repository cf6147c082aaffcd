"""A report of a small simulated study, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_study import material

from ehrtrack.reporting.assemble import assemble
from ehrtrack.reporting.document import Document
from ehrtrack.reporting.material import Material
from ehrtrack.reporting.write import write_report

MODELS, LABELS = ("lora r8", "scratch", "cox"), (128, 2048)


@pytest.fixture(scope="session")
def study_material() -> Material:
    """Three models with two numbers of labels."""
    return material(labels=LABELS, n_test=200, models=MODELS)


@pytest.fixture(scope="session")
def study_document(study_material: Material) -> Document:
    return assemble(study_material)


@pytest.fixture(scope="session")
def report_folder(study_document: Document, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(study_document, folder)
    return folder
