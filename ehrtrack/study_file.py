"""Configuration files as plain tables: read before anything heavy is imported, so that a wrong path is told at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehrtrack.errors import ConfigError


def read_study_file(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a configuration file, over those of the file that it extends.

    Raises
    ------
    ConfigError
        If a file is missing, no TOML, or extends itself.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError as error:
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.toml"))) or "no .toml files"
        raise ConfigError(f"no config file {path}; in {path.parent} there is: {beside}") from error
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    base = table.pop("extends", None)
    if base is None:
        return table
    chain = (*extended_by, path.resolve())
    below = path.parent / str(base)
    if below.resolve() in chain:
        raise ConfigError(f"{path} extends {base}, which extends it in turn; one of them must stand alone")
    return _merge(read_study_file(below, chain), table)


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, table by table; a table that names another choice replaces that of the base whole."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if not (isinstance(value, Mapping) and isinstance(below, Mapping)):
            merged[key] = value
        elif any(value.get(switch, below.get(switch)) != below.get(switch) for switch in ("name", "rule")):
            merged[key] = dict(value)
        else:
            merged[key] = _merge(below, value)
    return merged
