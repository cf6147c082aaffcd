"""Values of a study's matrix: set in a configuration, read back from it, and looked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal

from ehrtrack import plugins
from ehrtrack.config import PLUGIN_SECTIONS, RunConfig, parse_config
from ehrtrack.dotted import leaves
from ehrtrack.search_space import Scalar
from ehrtrack.study.settings import Selection, Value
from ehrtrack.study_file import merged

Recipe = Literal["pretrain", "finetune", "baseline"]

PRETRAIN = "pretrain"
"""The path by which a matrix says which pretraining a configuration starts from."""
SHARED = ("data", "cohort", "runtime")
"""Sections of cells of every kind."""
SECTIONS: Mapping[Recipe, tuple[str, ...]] = {
    "pretrain": ("data", "model", "objective", "init", "train", "runtime"),
    "finetune": (*SHARED, "strategy", "model", "objective", "init", "train", PRETRAIN),
    "baseline": (*SHARED, "baseline"),
}
"""First words of the paths that mean something to a cell of each kind."""
ALL = "all"
LEFT_OUT_BY = {"cohort.n_labels": ALL}
"""Values that stand for a setting that is not given: TOML has no word for it."""


def section_of(path: str) -> str:
    """The first word of a dotted path."""
    return path.partition(".")[0]


def with_values(config: RunConfig, values: Mapping[str, Value]) -> tuple[RunConfig, frozenset[str]]:
    """The configuration with some dotted paths set anew, and which of the paths were set.

    A table goes over the configuration's as one configuration file over another that it extends. A setting that the
    choice of its section does not have, as ``strategy.rank`` where nothing is adapted by rank, is left out.

    Raises
    ------
    ConfigError
        If a path or a value is not one there is.

    Examples
    --------
    >>> config = parse_config({"study": "icu", "data": {"path": "meds"}})
    >>> frozen, used = with_values(config, {"strategy.rank": 4, "strategy": {"name": "frozen"}})
    >>> frozen.strategy.name, sorted(used)
    ('frozen', ['strategy'])
    """
    table = config.model_dump(mode="json", exclude_unset=True)
    used = set()
    for path in sorted(values, key=_choices_first):
        value = values[path]
        named = {section: table.get(section, {}).get("name") for section in PLUGIN_SECTIONS}
        chosen = {f"{section}.name": name for section, name in named.items() if name}
        if not applies(config, path, chosen):
            continue
        used.add(path)
        if LEFT_OUT_BY.get(path) == value:
            _leave_out(table, path)
        else:
            table = merged(table, _nested(path, value))
    return parse_config(table), frozenset(used)


def _choices_first(path: str) -> int:
    """A choice comes before the settings of what is chosen."""
    return path.count(".") if path in PLUGIN_SECTIONS or not path.endswith((".name", ".rule")) else 0


def applies(config: RunConfig, path: str, values: Mapping[str, Any]) -> bool:
    """Whether a path is a setting at all: one of a strategy, an objective or a baseline is where that one is chosen.

    Parameters
    ----------
    values : of the choices, such as ``strategy.name``; what is not among them is as in the configuration

    Examples
    --------
    >>> config = parse_config({"study": "icu", "data": {"path": "meds"}, "strategy": {"name": "lora"}})
    >>> [applies(config, "strategy.rank", values) for values in ({}, {"strategy.name": "full"})]
    [True, False]
    """
    section, _, key = path.partition(".")
    if section not in PLUGIN_SECTIONS or key in ("", "name"):
        return True
    chosen = values.get(f"{section}.name", getattr(config, section).name)
    return key.partition(".")[0] in plugins.settings(PLUGIN_SECTIONS[section], str(chosen)).model_fields


def _nested(path: str, value: Value) -> dict[str, Any]:
    section, _, rest = path.partition(".")
    return {section: _nested(rest, value) if rest else value}


def _leave_out(table: dict[str, Any], path: str) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        table[parent] = dict(table.get(parent) or {})
        table = table[parent]
    table.pop(key, None)


def products(values: Mapping[str, Sequence[Value]]) -> list[dict[str, Value]]:
    """Every combination of the values.

    >>> products({"a": [1, 2], "b": [3]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]


def leaf_paths(path: str, value: Value) -> Iterator[str]:
    """The dotted paths that a value sets.

    >>> list(leaf_paths("strategy", {"name": "lora", "rank": 4}))
    ['strategy.name', 'strategy.rank']
    """
    yield from (below for below, _ in leaves(value, f"{path}.")) if isinstance(value, Mapping) else [path]


def value_at(config: RunConfig, path: str) -> Any:
    """What a configuration has at a dotted path; None where it has nothing there."""
    found: Any = config.to_json()
    for word in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(word)
    return found


def scalar_at(config: RunConfig, path: str) -> Scalar | None:
    """As `value_at`; a list or table as its text, and what stands for a setting that is not given as in a matrix."""
    found = value_at(config, path)
    if found is None:
        return LEFT_OUT_BY.get(path)
    return found if isinstance(found, str | int | float | bool) else json.dumps(found)


def selects(selection: Selection, recipe: Recipe, config: RunConfig, pretraining: str = "") -> bool:
    """Whether a cell's settings have the selection's values.

    >>> config = parse_config({"study": "icu", "data": {"path": "meds"}, "strategy": {"name": "lora"}})
    >>> [selects({"strategy": {"name": "lora"}}, recipe, config) for recipe in ("finetune", "baseline")]
    [True, False]
    """
    return all(
        section_of(path) in SECTIONS[recipe]
        and _has(pretraining if path == PRETRAIN else value_at(config, path), wanted, path)
        for path, wanted in selection.items()
    )


def _has(found: Any, wanted: Any, path: str) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(_has(found.get(key), inner, "") for key, inner in wanted.items())
    return bool(found == wanted) or (found is None and LEFT_OUT_BY.get(path) == wanted)
