"""One module is one choice: a source, objective, strategy or baseline is added by adding one file.

It holds its settings, `Config`, unless it imports torch or another library that takes long to import: then they are in
a file of the same name in the package's `_settings`, so that a configuration is read, and what is wrong with it told,
before any of those is imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from types import ModuleType
from typing import cast

from ehrtrack.errors import ConfigError
from ehrtrack.section import Choice

SHARED = ("base", "settings")
"""Modules of a package of choices that are none themselves."""


def names(package: str) -> list[str]:
    """Names of the choices in a package such as ``"strategies"``: its public modules, sorted.

    >>> names("strategies")
    ['frozen', 'full', 'lora', 'scratch']
    """
    path = importlib.import_module(f"ehrtrack.{package}").__path__
    return sorted(
        module.name.replace("_", "-")
        for module in pkgutil.iter_modules(path)
        if not module.name.startswith("_") and module.name not in SHARED
    )


def load(package: str, name: str) -> ModuleType:
    """The module that implements choice `name` of `package`.

    Raises
    ------
    ConfigError
        If there is no such choice; the message lists those there are and the nearest.
    """
    return importlib.import_module(f"ehrtrack.{package}.{_module(package, name)}")


def settings(package: str, name: str) -> type[Choice]:
    """The settings class of choice `name` of `package`; the choice itself is imported only if they are in its module.

    Raises
    ------
    ConfigError
        If there is no such choice; the message lists those there are and the nearest.
    """
    module, apart = _module(package, name), f"ehrtrack.{package}._settings"
    is_apart = importlib.util.find_spec(apart) and importlib.util.find_spec(f"{apart}.{module}")
    found = importlib.import_module(f"{apart}.{module}") if is_apart else load(package, name)
    return cast(type[Choice], found.Config)


def _module(package: str, name: str) -> str:
    known = names(package)
    if name not in known:
        raise ConfigError(f"unknown {_singular(package)} {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    return name.replace("-", "_")


def nearest(word: str, known: list[str]) -> str:
    """A hint ``" (did you mean 'x'?)"`` for a misspelt word, or an empty string."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _singular(package: str) -> str:
    noun = package.rsplit(".", 1)[-1]
    return f"{noun[:-3]}y" if noun.endswith("ies") else noun.removesuffix("s")
