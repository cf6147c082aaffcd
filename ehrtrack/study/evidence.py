"""What the project's own studies found, by the number of labels: what `ehrtrack advise` goes by.

The results are those of ``projects/*/results``, which `ehrtrack study` made. Nothing here is a rule.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ehrtrack.errors import DataError

PACKAGE = Path(__file__).parents[1]
PLACES = (PACKAGE / "projects", PACKAGE.parent / "projects")
"""Where a wheel has the results, and where a checkout has them."""
NEAR = 3.0
"""Numbers of labels that differ by more than this factor say little of each other."""
_LABELS = re.compile(r"(?: · )?(?:\d[\d,]*|all) labels$| · \w+ none(?= · |$)")
"""What a study's table says of a configuration that is not the model's name."""
_ELSEWHERE = {"n value bins": "data.vocabulary.n_value_bins"}
"""Settings that are none of what is chosen, by what a study's table calls them."""


@dataclass(frozen=True)
class Result:
    """A configuration of a study, at one number of labels.

    Attributes
    ----------
    model : as the study's table calls it, without the number of labels
    n_labels : training subjects
    c_index : on test subjects, mean over repeats
    seconds : of training
    """

    study: str
    model: str
    is_baseline: bool
    n_labels: int
    n_repeats: int
    c_index: float
    seconds: float

    @property
    def settings(self) -> dict[str, str | int | bool]:
        """The dotted settings by which the configuration is asked for.

        Examples
        --------
        >>> Result("s", "dora r8", False, 512, 5, 0.7, 10.0).settings
        {'strategy.name': 'lora', 'strategy.rank': 8, 'strategy.dora': True}
        >>> Result("s", "ridge · features values", True, 512, 5, 0.7, 1.0).settings
        {'baseline.name': 'ridge', 'baseline.features': 'values'}
        >>> Result("s", "gradient-boosting · n value bins 20", True, 512, 5, 0.7, 1.0).settings
        {'baseline.name': 'gradient-boosting', 'data.vocabulary.n_value_bins': '20'}
        """
        first, *others = self.model.split(" · ")
        section = "baseline" if self.is_baseline else "strategy"
        name, _, rank = first.partition(" r")
        told: dict[str, str | int | bool] = {f"{section}.name": "lora" if name == "dora" else name}
        told |= {"strategy.rank": int(rank)} if rank else {}
        told |= {"strategy.dora": True} if name == "dora" else {}
        for other in others:
            words, _, value = other.rpartition(" ")
            told[_ELSEWHERE.get(words, f"{section}.{words.replace(' ', '_')}")] = value
        return told


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
        """Its name, which is that of its folder below ``projects``."""
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
    folder = next((place for place in places if list(place.glob("*/results/tables/main.csv"))), None)
    if folder is None:
        where = " or ".join(map(str, places))
        raise DataError(f"no results of studies in {where}; install ehrtrack from its wheel, or work in a checkout")
    found = []
    for table in sorted(folder.glob("*/results/tables/main.csv")):
        with table.open(newline="", encoding="utf-8") as lines:
            found += [_result(table.parents[2].name, row) for row in csv.DictReader(lines) if row.get("test_c_index")]
    # A network that needs more than a strategy, such as embeddings of codes, is not for a user to paste.
    return [result for result in found if result.is_baseline or " · " not in result.model]


def _result(study: str, row: dict[str, str]) -> Result:
    return Result(
        study=study,
        model=_LABELS.sub("", row["configuration"]),
        is_baseline=row["kind"] == "baseline",
        n_labels=round(float(row["n_train"])),
        n_repeats=int(row["n_repeats"]),
        c_index=float(row["test_c_index"]),
        seconds=float(row["seconds"]),
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
        for result in setting.results:
            if best is not None and not result.is_baseline:
                shortfalls[result.model].append((best.c_index - result.c_index, result))
    found = [
        Standing(of_model[0][1], sum(shortfall for shortfall, _ in of_model) / len(of_model), len(of_model))
        for of_model in shortfalls.values()
    ]
    common = [one for one in found if one.n_studies >= len(settings) / 2] or found
    return sorted(common, key=lambda one: (round(one.shortfall, 3), -one.n_studies, one.result.seconds))


def _short(score: float) -> str:
    return f"{score:.3f}".removeprefix("0")
