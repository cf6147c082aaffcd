"""One module is one choice: a source, objective, strategy or baseline is added by adding one file."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from ehrtrack.errors import ConfigError


def names(package: str) -> list[str]:
    """Names of the choices in a package such as ``"strategies"``: its public modules, sorted.

    >>> names("strategies")
    ['frozen', 'full', 'lora', 'scratch']
    """
    path = importlib.import_module(f"ehrtrack.{package}").__path__
    return sorted(
        module.name.replace("_", "-") for module in pkgutil.iter_modules(path) if not module.name.startswith("_")
    )


def load(package: str, name: str) -> ModuleType:
    """The module that implements choice `name` of `package`.

    Raises
    ------
    ConfigError
        If there is no such choice; the message lists those there are and the nearest.
    """
    known = names(package)
    if name not in known:
        raise ConfigError(f"unknown {_singular(package)} {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    return importlib.import_module(f"ehrtrack.{package}.{name.replace('-', '_')}")


def nearest(word: str, known: list[str]) -> str:
    """A hint ``" (did you mean 'x'?)"`` for a misspelt word, or an empty string."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _singular(package: str) -> str:
    noun = package.rsplit(".", 1)[-1]
    return f"{noun[:-3]}y" if noun.endswith("ies") else noun.removesuffix("s")
