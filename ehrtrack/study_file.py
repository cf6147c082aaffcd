"""Configuration files as plain tables: read before anything heavy is imported, so that a wrong path is told at once."""

from __future__ import annotations

import math
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehrtrack.errors import ConfigError

MAX_EXTENDED = 50
MAX_FILE_BYTES = 2**20

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_study_file(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a configuration file, over those of the file that it extends.

    Raises
    ------
    ConfigError
        If a file is missing, no regular file, no TOML, or extends itself or too many others.
    """
    try:
        _check_file(path.stat(), path)
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError as error:
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.toml"))) or "no .toml files"
        raise ConfigError(f"no config file {path}; in {path.parent} there is: {beside}") from error
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror}; give a TOML file") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or a number that Python has no room for
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    base = table.pop("extends", None)
    if base is None:
        return table
    chain = (*extended_by, path.resolve())
    below = path.parent / str(base)
    if below.resolve() in chain:
        raise ConfigError(f"{path} extends {base}, which extends it in turn; one of them must stand alone")
    if len(chain) > MAX_EXTENDED:
        raise ConfigError(
            f"{chain[0]} extends a file that extends another, and so on over more than {MAX_EXTENDED} files; write the "
            "settings in fewer"
        )
    return _merge(read_study_file(below, chain), table)


def _check_file(status: os.stat_result, path: Path) -> None:
    """A device or a pipe may never end."""
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        raise ConfigError(
            f"config file {path} is no regular file of at most {MAX_FILE_BYTES:,} bytes; give a TOML file"
        )


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


def to_toml(overrides: Mapping[str, Any]) -> str:
    """A configuration file from values by dotted path; nested tables, keys in the order given.

    >>> print(to_toml({"strategy.rank": 8, "study": "icu", "strategy.name": "lora"}), end="")
    study = "icu"
    <BLANKLINE>
    [strategy]
    rank = 8
    name = "lora"
    """
    tree: dict[str, Any] = {}
    for path, value in overrides.items():
        *tables, key = path.split(".")
        table = tree
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{path!r} needs {name!r} to be a table, and it has a value of its own")
        if key in table:
            raise ConfigError(f"{path!r} is given twice, as a value and as a table")
        table[key] = value
    return "\n".join(_table(tree, path=())).lstrip("\n") + "\n"


def _table(table: Mapping[str, Any], *, path: tuple[str, ...]) -> list[str]:
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = ["", f"[{'.'.join(map(_key, path))}]"] if path and values else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in values.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _table(value, path=(*path, key))
    return lines


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    raise ConfigError(f"{value!r} of type {type(value).__name__} has no form in TOML")


def _float(value: float) -> str:
    if not math.isfinite(value):
        return str(value)  # inf, -inf, nan: TOML's own words
    return repr(value)  # always with a point or an exponent, both of which TOML reads as a float


def _string(text: str) -> str:
    marks = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
    plain = "".join(marks.get(c, c if c >= " " and c != "\x7f" else f"\\u{ord(c):04X}") for c in text)
    return f'"{plain}"'
