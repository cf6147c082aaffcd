"""The registry of choices: sources, objectives, strategies and baselines, those of EHRTrack and of other packages.

A choice is one module of its package, with one class that has its settings as ``Config``. The settings of EHRTrack's
own choices stand in the package's `settings`, which imports neither torch nor any other library that takes long to
import: a configuration is read, and what is wrong with it told, before any of those is. A choice that is added in one
file holds its settings in that file.

Another package adds a choice by an entry point in the group ``ehrtrack.sources``, ``ehrtrack.objectives``,
``ehrtrack.strategies`` or ``ehrtrack.baselines``, whose name is the choice's and whose object is its class. It is
imported only when it is asked for by name.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TypeVar, cast, get_args

from ehrtrack.errors import ConfigError
from ehrtrack.section import Choice

SHARED = ("base", "settings")
"""Modules of a package of choices that are none themselves."""
GROUPS = {package: f"ehrtrack.{package.rsplit('.', 1)[-1]}" for package in
          ("data.sources", "objectives", "strategies", "baselines")}  # fmt: skip
"""Packages of choices that other packages can add to, and the group of entry points that does so."""

Base = TypeVar("Base")


def names(package: str, kind: type[Choice] = Choice) -> list[str]:
    """Names of the choices in a package such as ``"strategies"``, sorted.

    >>> names("strategies")
    ['bitfit', 'frozen', 'full', 'lora', 'lp-ft', 'scratch']

    Parameters
    ----------
    kind : only those whose settings are of this class; of other packages all are named, for none of them is imported
    """
    own = [name for name in _modules(package) if kind is Choice or issubclass(settings(package, name), kind)]
    return sorted({*own, *(entry.name for entry in _entries(package))})


def load(package: str, name: str) -> ModuleType:
    """The module of EHRTrack that implements choice `name` of `package`.

    Raises
    ------
    ConfigError
        If there is no such choice; the message lists those there are and the nearest.
    """
    modules = _modules(package)
    if name not in modules:
        raise _unknown(package, name)
    return importlib.import_module(f"ehrtrack.{package}.{modules[name]}")


def settings(package: str, name: str) -> type[Choice]:
    """The settings class of choice `name` of `package`. Of EHRTrack's own choices nothing else is imported.

    Raises
    ------
    ConfigError
        If there is no such choice, two have this name, or it cannot be imported.
    """
    entry = _entry(package, name)
    found = None if entry else _settings(package).get(name)
    return found or cast(type[Choice], _class(package, name, entry).Config)  # type: ignore[attr-defined]


def plugin(package: str, name: str, base: type[Base]) -> type[Base]:
    """The class of choice `name` of `package`, which is to be a subclass of `base`.

    Raises
    ------
    ConfigError
        If there is no such choice, two have this name, it cannot be imported, or it is of another kind.
    """
    found = _class(package, name, _entry(package, name))
    if not issubclass(found, base):
        raise ConfigError(
            f"{_singular(package)} {name!r} is {found.__module__}.{found.__qualname__}, and needed is a subclass of "
            f"{base.__module__}.{base.__qualname__}"
        )
    return found


def nearest(word: str, known: list[str]) -> str:
    """A hint ``" (did you mean 'x'?)"`` for a misspelt word, or an empty string."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


@cache
def _settings(package: str) -> dict[str, type[Choice]]:
    """Settings classes by the names that they stand for, out of the package's module `settings`."""
    shared = f"ehrtrack.{package}.settings"
    if importlib.util.find_spec(shared) is None:
        return {}
    classes = vars(importlib.import_module(shared)).values()
    found = [one for one in classes if isinstance(one, type) and issubclass(one, Choice)]
    return {name: one for one in found for name in _names_of(one)}


@cache
def _modules(package: str) -> dict[str, str]:
    """The module of each of EHRTrack's own choices, by name."""
    path = importlib.import_module(f"ehrtrack.{package}").__path__
    public = [m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_") and m.name not in SHARED]
    by_settings = {name: one.module or name.replace("-", "_") for name, one in _settings(package).items()}
    alone = {module.replace("_", "-"): module for module in public if module not in by_settings.values()}
    return by_settings | alone


def _names_of(settings_class: type[Choice]) -> tuple[str, ...]:
    """The names that a settings class stands for: those that its field ``name`` allows."""
    return get_args(settings_class.model_fields["name"].annotation)


@cache
def _entries(package: str) -> tuple[EntryPoint, ...]:
    """The entry points by which other packages add to a package of choices, for which all that is installed is read."""
    return tuple(entry_points(group=GROUPS[package])) if package in GROUPS else ()


def _entry(package: str, name: str) -> EntryPoint | None:
    """The entry point of this name, or None where the choice is EHRTrack's own."""
    found = [entry for entry in _entries(package) if entry.name == name]
    is_own = name in _modules(package)
    if len(found) + is_own > 1:
        places = [*(["EHRTrack itself"] if is_own else []), *(f"{e.value} of {_distribution(e)}" for e in found)]
        raise ConfigError(
            f"{_singular(package)} {name!r} is there more than once: in {' and in '.join(places)}; "
            "give the entry point another name, or uninstall the package that has it"
        )
    if not found and not is_own:
        raise _unknown(package, name)
    return found[0] if found else None


def _class(package: str, name: str, entry: EntryPoint | None) -> type:
    if entry is None:
        return _only_class(load(package, name))
    try:
        found = entry.load()
    except Exception as error:
        raise ConfigError(
            f"{_singular(package)} {name!r} of {_distribution(entry)} cannot be imported from {entry.value}: "
            f"{type(error).__name__}: {error}; mend or uninstall that package"
        ) from error
    config = getattr(found, "Config", None)
    own_names = _names_of(config) if isinstance(config, type) and issubclass(config, Choice) else ()
    if not isinstance(found, type) or name not in own_names:
        raise ConfigError(
            f"{_singular(package)} {name!r} of {_distribution(entry)}: {entry.value} is no class with settings of that "
            f"name; it needs Config = a subclass of ehrtrack.section.Choice with name: Literal[{name!r}] = {name!r}"
        )
    return found


def _only_class(module: ModuleType) -> type:
    """The class of a choice's module: the one that was defined there and says its ``Config``."""
    found = [
        one
        for name, one in vars(module).items()
        if isinstance(one, type) and one.__module__ == module.__name__ and "Config" in vars(one) and name[0] != "_"
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{module.__name__} has {len(found)} public classes with a Config, and a choice has one: "
            f"{', '.join(one.__name__ for one in found) or 'add a class with Config = its settings'}"
        )
    return found[0]


def _unknown(package: str, name: str) -> ConfigError:
    known = names(package)
    return ConfigError(f"unknown {_singular(package)} {name!r}{nearest(name, known)}; there are: {', '.join(known)}")


def _distribution(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist else "a package"


def _singular(package: str) -> str:
    noun = package.rsplit(".", 1)[-1]
    return f"{noun[:-3]}y" if noun.endswith("ies") else noun.removesuffix("s")
