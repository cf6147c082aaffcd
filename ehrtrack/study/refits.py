"""What a search chose beside the settings it began with, each over several seeds: a study of two configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ehrtrack.config import RunConfig
from ehrtrack.evaluation.labels import CHOSEN, SEPARATOR, labels_of
from ehrtrack.search_space import Scalar
from ehrtrack.study.cells import BASELINE_SEED, SEED, Cell, Study
from ehrtrack.study.keys import Inputs, cell_key
from ehrtrack.study.settings import StudySettings
from ehrtrack.study.values import Recipe, scalar_at, with_values

QUESTION = "Is what the search chose better than the settings that it began with?"


def refit_study(config: RunConfig, chosen: Mapping[str, Scalar], *, recipe: Recipe, paths: Sequence[str]) -> Study:
    """The study of both; of one configuration alone where the search chose what it began with.

    Parameters
    ----------
    config : that the search began with, its base pinned; `config.search.refits` seeds follow its own
    chosen : settings by dotted path
    recipe : that fits them
    paths : that were searched
    """
    best, _ = with_values(config, chosen)
    both = (
        {"defaults": config}
        if _settings(best, paths) == _settings(config, paths)
        else {"best": best, "defaults": config}
    )
    file = Path("best.toml")
    settings = {name: _settings(of, paths) for name, of in both.items()}
    labels = dict(zip(settings, labels_of(list(settings.values())), strict=True))
    seeds = range(config.runtime.seed, config.runtime.seed + config.search.refits)
    inputs = Inputs()
    cells = {
        cell.key: cell
        for seed in seeds
        for name, of in both.items()
        for cell in [_cell(of, seed, recipe, f"{name}{SEPARATOR}{labels[name]}", settings[name], inputs)]
    }
    reference = settings["defaults"]
    asked = StudySettings(
        question=QUESTION,
        study=config.study,
        **{"baseline" if recipe == "baseline" else "finetune": file},
        matrix={path: tuple({of[path]: None for of in settings.values() if path in of}) for path in _all(settings)},
        repeats={SEED: tuple(seeds)},
        reference=reference,
    )
    return Study(file, asked, config.study, config, tuple(cells.values()))


def _all(settings: Mapping[str, Mapping[str, Scalar]]) -> list[str]:
    return list(dict.fromkeys(path for of in settings.values() for path in of))


def _settings(config: RunConfig, paths: Sequence[str]) -> dict[str, Scalar]:
    """What it is, and what was searched of it; numbers have as few digits as names need."""
    named = CHOSEN[1] if any(path.startswith("baseline.") for path in paths) else CHOSEN[0]
    found = {path: scalar_at(config, path) for path in (named, *paths)}
    return {path: _few_digits(value) for path, value in found.items() if value is not None}


def _few_digits(value: Scalar) -> Scalar:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _cell(
    config: RunConfig, seed: int, recipe: Recipe, name: str, settings: Mapping[str, Scalar], inputs: Inputs
) -> Cell:
    """A fit; of a baseline that knows no chance the seed is that of the configuration."""
    is_random = recipe != "baseline" or config.baseline.is_random
    seeds = {SEED: seed} | ({BASELINE_SEED: seed} if recipe == "baseline" else {}) if is_random else {}
    made, _ = with_values(config, seeds)
    key = cell_key(recipe, made, inputs=inputs.of(made, recipe), base=made.init.run)
    label = f"{name}{SEPARATOR}seed {made.runtime.seed}" if is_random else name
    return Cell(key, recipe, made, "", name, label, settings, {SEED: made.runtime.seed})
