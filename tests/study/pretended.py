"""Recipes that only pretend to train, for studies whose queue, table and messages are tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import polars as pl

from ehrtrack.config import RunConfig
from ehrtrack.errors import CheckpointError
from ehrtrack.pipeline.run import Place, RecipeResult, open_run
from ehrtrack.tracking.names import COHORT

SCORES = {"cox": 0.7, "full · seed 0": 0.72, "full · seed 1": 0.76, "scratch · seed 0": 0.6, "scratch · seed 1": 0.66}


@dataclass
class Recipes:
    """Recipes that log what a run has to have, in no time.

    Attributes
    ----------
    made : labels of the cells that were begun, and from which run each started
    trouble : what is raised at the next beginnings of a cell, by its label
    """

    made: list[str] = field(default_factory=list)
    bases: dict[str, str] = field(default_factory=dict)
    trouble: dict[str, list[Exception]] = field(default_factory=dict)

    def make(self, kind: str) -> Callable[..., RecipeResult]:
        def recipe(config: RunConfig, *, place: Place) -> RecipeResult:
            self.made.append(place.name)
            self.bases[place.name] = config.init.run
            sections = ("baseline",) if kind == "baseline" else ("strategy", "model")
            with open_run(config, kind=kind, sections=sections, place=place) as run:
                if self.trouble.get(place.name):
                    raise self.trouble[place.name].pop(0)
                run.logger.set_tags({COHORT: "c0"})
                score = SCORES.get(place.name, 0.5)
                metrics = {"test/c_index": score, "kept/c_index": score, "cohort/n_train": 140.0, "cohort/n_test": 30.0}
                run.logger.log_metrics(metrics, step=0)
                predictions = {"subject_id": [1, 2], "follow_up_days": [5.0, 9.0], "is_event": [True, False]}
                run.logger.log_table(pl.DataFrame(predictions | {"risk": [0.5, 0.2]}), "predictions/test.parquet")
                return run.finished({})

        return recipe

    def resume(self, run_id: str, overrides: object, **_: object) -> RecipeResult:
        """Nothing was kept to go on from."""
        raise CheckpointError(f"no snapshot of run {run_id} is whole")
