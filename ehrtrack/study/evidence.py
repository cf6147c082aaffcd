"""What the project's own studies found, by the number of labels: what `ehrtrack advise` goes by.

The results are those of ``projects/*/results*``, which `ehrtrack study` made. Nothing here is a rule.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehrtrack.errors import DataError
from ehrtrack.evaluation.labels import label

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "projects", PACKAGE.parent / "projects")
"""Where a wheel has the results, and where a checkout has them."""
NEAR = 3.0
"""Numbers of labels that differ by more than this factor say little of each other."""
NETWORKS_DIFFER_BY = (
    "strategy.rank",
    "strategy.dora",
    "strategy.head",
    "strategy.embeddings",
    "model.encoder",
    "objective.lasso",
)
"""What one network has and another has not. Rates and sizes are fitted to a study's data."""
_LABELS = re.compile(r"(?: · )?(?:\d[\d,]*|all) labels$")


@dataclass(frozen=True)
class Result:
    """A configuration of a study, at one number of labels.

    Attributes
    ----------
    model : what it is called: a baseline as the study's table has it, and a network by `NETWORKS_DIFFER_BY`
    n_labels : training subjects
    c_index : on test subjects, mean over repeats
    seconds : of training
    settings : dotted, by which it is asked for
    pretraining : objective of the pretraining that it starts from; empty without one
    """

    study: str
    model: str
    is_baseline: bool
    n_labels: int
    n_repeats: int
    c_index: float
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    pretraining: str = ""


@dataclass(frozen=True)
class Setting:
    """What one study found at one number of labels.

    Attributes
    ----------
    results : of all its configurations, the best first
    """

    results: tuple[Result, ...]

    @property
    def study(self) -> str:
        """Its name: of its folder below ``projects``, and of its file where that is not ``study.toml``."""
        return self.results[0].study

    @property
    def n_labels(self) -> int:
        """Training subjects."""
        return self.results[0].n_labels

    def best(self, *, is_baseline: bool) -> Result | None:
        """The best baseline, or the best network."""
        return next((result for result in self.results if result.is_baseline == is_baseline), None)

    def to_line(self) -> str:
        """The best of both kinds, for people."""
        best = [self.best(is_baseline=is_baseline) for is_baseline in (True, False)]
        said = ", ".join(f"{result.model} {_short(result.c_index)}" for result in best if result is not None)
        return f"{self.study}, {self.n_labels:,} labels: {said}"


@dataclass(frozen=True)
class Standing:
    """How far a network was from the best network of each study that had it.

    Attributes
    ----------
    shortfall : mean difference of the C-index to the best, 0 for one that was always the best
    n_studies : that had it
    """

    result: Result
    shortfall: float
    n_studies: int


def read_results(places: Sequence[Path] = PLACES) -> list[Result]:
    """All configurations of all studies whose results come with the project.

    Raises
    ------
    DataError
        If none are there.
    """
    folder = next((place for place in places if list(place.glob("*/results*/tables/main.csv"))), None)
    if folder is None:
        where = " or ".join(map(str, places))
        raise DataError(f"no results of studies in {where}; install ehrtrack from its wheel, or work in a checkout")
    found = []
    for table in sorted(folder.glob("*/results*/tables/main.csv")):
        with table.open(newline="", encoding="utf-8") as lines:
            found += [_result(_study(table), row) for row in csv.DictReader(lines) if row.get("test_c_index")]
    # Embeddings of codes are files of that study, and not for a user to paste.
    return [result for result in found if "init.embeddings" not in result.settings]


def _study(table: Path) -> str:
    """The study's name, with the file whose question a table answers.

    >>> _study(Path("projects/nafld/results-all_labels/tables/main.csv"))
    'nafld-all_labels'
    """
    results, study = table.parents[1].name, table.parents[2].name
    return study + results.removeprefix("results")


def _result(study: str, row: dict[str, str]) -> Result:
    is_baseline, settings = row["kind"] == "baseline", json.loads(row["settings"])
    return Result(
        study=study,
        model=_LABELS.sub("", row["configuration"]) if is_baseline else label(settings, NETWORKS_DIFFER_BY),
        is_baseline=is_baseline,
        n_labels=round(float(row["n_train"])),
        n_repeats=int(row["n_repeats"]),
        c_index=float(row["test_c_index"]),
        seconds=float(row["seconds"]),
        settings=settings,
        pretraining=row["pretraining"],
    )


def nearest(results: Iterable[Result], n_labels: int) -> list[Setting]:
    """Of each study the results whose number of labels is the nearest by its ratio."""
    by_study: dict[str, dict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        by_study[result.study][result.n_labels].append(result)
    found = []
    for of_study in by_study.values():
        n = min(of_study, key=lambda number: ratio(number, n_labels))
        found.append(Setting(tuple(sorted(of_study[n], key=lambda result: -result.c_index))))
    return found


def ratio(one: int, other: int) -> float:
    """How many times the larger of two numbers of labels is the smaller.

    Examples
    --------
    >>> ratio(128, 512), ratio(512, 128)
    (4.0, 4.0)
    """
    return max(one, other) / max(min(one, other), 1)


def best_baselines(settings: Iterable[Setting]) -> list[Result]:
    """The best baseline of each study, each once. They take minutes, so that all of them can be fitted."""
    best = [setting.best(is_baseline=True) for setting in settings]
    return list({result.model: result for result in best if result is not None}.values())


def standings(settings: Sequence[Setting]) -> list[Standing]:
    """Networks that half of the studies had, or all if none was in so many, by their mean shortfall.

    A network that one study alone had may be the best of it, and says little of the others. Of equal ones first what
    more studies had, then the quicker.
    """
    shortfalls: dict[str, list[tuple[float, Result]]] = defaultdict(list)
    for setting in settings:
        best = setting.best(is_baseline=False)
        networks = {result.model: result for result in reversed(setting.results) if not result.is_baseline}
        for model, result in networks.items():  # of several sizes or rates of one the best
            assert best is not None
            shortfalls[model].append((best.c_index - result.c_index, result))
    found = [
        Standing(of_model[0][1], sum(shortfall for shortfall, _ in of_model) / len(of_model), len(of_model))
        for of_model in shortfalls.values()
    ]
    common = [one for one in found if one.n_studies >= len(settings) / 2] or found
    return sorted(common, key=lambda one: (round(one.shortfall, 3), -one.n_studies, one.result.seconds))


def _short(score: float) -> str:
    return f"{score:.3f}".removeprefix("0")
