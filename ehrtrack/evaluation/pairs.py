"""Which configurations are compared: each with the reference, and those that a study's questions name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from ehrtrack.dotted import leaves
from ehrtrack.evaluation.labels import Settings
from ehrtrack.evaluation.repeats import Configuration, best_configurations_first

Selection = Mapping[str, Any]
"""Some configurations: those whose settings have these values."""
Sides = tuple[Configuration, Configuration]
"""Two configurations, the one that is looked at first."""


class AskedComparison(Protocol):
    """A question about two selections of configurations, such as `study.settings.Comparison`.

    >>> sorted(name for name in vars(AskedComparison) if not name.startswith("_"))
    ['question', 'this', 'to']
    """

    @property
    def question(self) -> str: ...
    @property
    def this(self) -> Selection: ...
    @property
    def to(self) -> Selection: ...


class AskedOf(Protocol):
    """What is asked of some configurations, such as `study.settings.StudySettings` says it.

    >>> sorted(name for name in vars(AskedOf) if not name.startswith("_"))
    ['compare', 'margin', 'reference']
    """

    @property
    def reference(self) -> Selection: ...
    @property
    def compare(self) -> Sequence[AskedComparison]: ...
    @property
    def margin(self) -> float: ...


@dataclass(frozen=True)
class Questions:
    """What is asked where there is no study's file: differences to a reference.

    Attributes
    ----------
    reference, compare, margin : as in `study.settings.StudySettings`

    Examples
    --------
    >>> Questions(reference={"baseline.name": "cox"}).margin
    0.01
    """

    reference: Selection
    compare: tuple[AskedComparison, ...] = field(default=())
    margin: float = 0.01


class Pair(NamedTuple):
    """Two configurations that are compared, and the question that asks for it; empty of the reference.

    >>> Pair("", Configuration("lora r8", {}, ()), Configuration("cox", {}, ())).to.label
    'cox'
    """

    question: str
    this: Configuration
    to: Configuration


def matches(settings: Settings, selection: Selection) -> bool:
    """Whether a configuration has all values of a selection.

    Examples
    --------
    >>> settings = {"strategy.name": "lora", "strategy.rank": 8, "model.size": "small"}
    >>> [matches(settings, {"strategy": {"name": "lora", "rank": rank}}) for rank in (8, 16)]
    [True, False]
    """
    return all(path in settings and _equal(settings[path], value) for path, value in leaves(selection))


def pairs_to_reference(found: Sequence[Configuration], reference: Selection) -> list[Pair]:
    """Each configuration with the reference that has equal values of the settings that both have.

    Of several references the best by validation. Configurations that are references themselves, or for which there is
    none, are in no pair.

    Examples
    --------
    >>> def of(label, **settings):
    ...     return Configuration(label, {name.replace("__", "."): value for name, value in settings.items()}, ())
    >>> few, many = (of(f"cox {n}", baseline__name="cox", cohort__n_labels=n) for n in (64, 512))
    >>> lora = of("lora 64", strategy__name="lora", cohort__n_labels=64)
    >>> pairs = pairs_to_reference([few, many, lora], {"baseline": {"name": "cox"}})
    >>> [(pair.this.label, pair.to.label) for pair in pairs]
    [('lora 64', 'cox 64')]
    """
    alike = [both for both in beside_references(found, reference) if not unlike(*both, named=reference)]
    pairs = []
    for _, of_one in groupby(alike, key=lambda both: id(both[0])):
        own = list(of_one)
        best = own[0][1] if len(own) == 1 else best_configurations_first(to for _, to in own)[0]
        pairs.append(Pair("", own[0][0], best))
    return pairs


def beside_references(found: Sequence[Configuration], reference: Selection) -> list[Sides]:
    """Each configuration that is no reference with each that is one, whether or not they can be compared.

    Examples
    --------
    >>> cox, gru = (Configuration(name, {"baseline.name": name}, ()) for name in ("cox", "gru"))
    >>> [(this.label, to.label) for this, to in beside_references([cox, gru], {"baseline.name": "cox"})]
    [('gru', 'cox')]
    """
    references = [of for of in found if matches(of.settings, reference)]
    return [(this, to) for this in found if not any(this is of for of in references) for to in references]


def asked_pairs(found: Sequence[Configuration], asked: AskedComparison) -> list[Pair]:
    """All pairs that a question asks for: what neither selection names is equal on both sides.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> found = [
    ...     Configuration(f"{name} {size}", {"strategy.name": name, "model.size": size}, ())
    ...     for name in ("full", "scratch")
    ...     for size in ("small", "large")
    ... ]
    >>> this, to = {"strategy": {"name": "full"}}, {"strategy": {"name": "scratch"}}
    >>> asked = SimpleNamespace(question="Does it pay?", this=this, to=to)
    >>> [(pair.this.label, pair.to.label) for pair in asked_pairs(found, asked)]
    [('full small', 'scratch small'), ('full large', 'scratch large')]
    """
    named = {**asked.this, **asked.to}
    return [Pair(asked.question, this, to) for this, to in sides(found, asked) if not unlike(this, to, named=named)]


def sides(found: Sequence[Configuration], asked: AskedComparison) -> list[Sides]:
    """Each configuration that one side of a question means with each of the other, whether or not they are a pair.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> rates = {"full": 0.001, "scratch": 0.01}
    >>> found = [Configuration(name, {"strategy.name": name, "train.lr": lr}, ()) for name, lr in rates.items()]
    >>> asked = SimpleNamespace(question="?", this={"strategy.name": "full"}, to={"strategy.name": "scratch"})
    >>> [(this.label, to.label) for this, to in sides(found, asked)], asked_pairs(found, asked)
    ([('full', 'scratch')], [])
    """
    return [
        (this, to)
        for this in found
        for to in found
        if this is not to and matches(this.settings, asked.this) and matches(to.settings, asked.to)
    ]


def unlike(this: Configuration, to: Configuration, *, named: Selection) -> list[str]:
    """Settings in which two configurations differ, that both have and no selection names; what keeps them from a pair.

    A table names all settings below it.

    Examples
    --------
    >>> full = Configuration("full", {"strategy.name": "full", "train.lr": 0.001, "model.size": "small"}, ())
    >>> scratch = Configuration("scratch", {"strategy.name": "scratch", "train.lr": 0.01, "model.size": "small"}, ())
    >>> unlike(full, scratch, named={"strategy": {"name": "full"}})
    ['train.lr']
    """
    shared = [path for path in this.settings if path in to.settings and not any(_is_of(path, key) for key in named)]
    return [path for path in shared if not _equal(this.settings[path], to.settings[path])]


def _is_of(path: str, key: str) -> bool:
    return path == key or path.startswith(f"{key}.")


def _equal(mine: object, other: object) -> bool:
    """Values out of a file or of a run's parameters, which are text there."""
    return mine == other or str(mine) == str(other)


def selection_text(selection: Selection) -> str:
    """A selection in words.

    >>> selection_text({"strategy": {"name": "lora", "rank": 8}})
    'strategy.name lora, strategy.rank 8'
    """
    return ", ".join(f"{path} {value}" for path, value in leaves(selection))
