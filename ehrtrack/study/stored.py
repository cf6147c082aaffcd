"""A study as its own run keeps it: enough to gather its results again where neither data nor queue are."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ehrtrack.config import RunConfig, load_config, parse_run_config
from ehrtrack.study.cells import Cell, Study
from ehrtrack.study.settings import StudySettings
from ehrtrack.study_file import read_study_file
from ehrtrack.tracking.client.queries import MissingArtifact, download, search_runs
from ehrtrack.validation import validate

CELLS = "study/cells.json"


def to_json(study: Study) -> dict[str, Any]:
    """Plain values, the inverse of `from_json`."""
    return {
        "name": study.name,
        "settings": study.settings.model_dump(mode="json"),
        "config": study.config.to_json(),
        "cells": [
            {
                **{name: getattr(cell, name) for name in ("key", "recipe", "base", "configuration", "label")},
                "settings": dict(cell.settings),
                "repeat": dict(cell.repeat),
                "config": cell.config.to_json(),
            }
            for cell in study.cells
        ],
    }


def from_json(file: Path, value: dict[str, Any]) -> Study:
    """The study that `to_json` wrote down.

    Parameters
    ----------
    file : that it is read from now
    """
    settings = validate(StudySettings, value["settings"])
    assert isinstance(settings, StudySettings)
    cells = tuple(Cell(**(cell | {"config": _config(cell["config"])})) for cell in value["cells"])
    return Study(file, settings, value["name"], _config(value["config"]), cells)


def _config(table: dict[str, Any]) -> RunConfig:
    return parse_run_config(table)


def stored_study(file: Path) -> Study | None:
    """The study of a file as the last of its runs on the tracking server keeps it; None if there is no such run.

    Raises
    ------
    EhrtrackError
        If the file is no study's, or the tracking server does not answer.
    """
    settings = validate(StudySettings, read_study_file(file))
    assert isinstance(settings, StudySettings)
    named = settings.finetune or settings.baseline
    assert named is not None
    name = settings.study or load_config(file.parent / named).study
    asked = settings.model_dump(mode="json")
    with tempfile.TemporaryDirectory() as folder:
        for number, record in enumerate(reversed(search_runs(name, kinds=["study"], status=None))):
            try:
                kept = json.loads(download(record.run_id, CELLS, Path(folder) / str(number)).read_text())
            except MissingArtifact:
                continue
            if kept["settings"] == asked:
                return from_json(file, kept)
    return None
