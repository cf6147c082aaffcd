"""Configuration files as plain tables: read before anything heavy is imported, so that a wrong path is told at once."""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from ehrtrack import renamed
from ehrtrack.errors import ConfigError

MOST_FILES = 32
"""That extend one another."""
MOST_BYTES = 10_000_000


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises
    ------
    FileNotFoundError
        If it is missing.
    ConfigError
        If it is a device, a pipe (which may never end) or a folder, too large, or no TOML.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"config file {path} is a folder, a pipe or a device; give a TOML file")
        if status.st_size > MOST_BYTES:
            raise ConfigError(f"config file {path} has {status.st_size:,} bytes; at most {MOST_BYTES:,} are read")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read config file {str(path)[:200]}: {error.strerror}; give a TOML file") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deeply") from error
    except ValueError as error:  # its syntax, its encoding, or a number of more digits than Python converts
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def read_study_file(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a configuration file, over those of the file that it extends.

    Raises
    ------
    ConfigError
        If a file is missing, no regular file, no TOML, or extends itself or too many others.
    """
    try:
        table = read_toml(path)
    except FileNotFoundError as error:
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.toml"))) or "no .toml files"
        raise ConfigError(f"no config file {path}; in {path.parent} there is: {beside}") from error
    table = renamed.present_sections(table, tells=True)
    base = table.pop("extends", None)
    if base is None:
        return table
    chain = (*extended_by, path.resolve())
    if not isinstance(base, str) or "\0" in base:
        raise ConfigError(f"{path}: extends is {base!r}, and the path of one configuration file is needed")
    if len(chain) >= MOST_FILES:
        raise ConfigError(f"{chain[0]} extends more than {MOST_FILES} files, one another; put some of them together")
    below = path.parent / base
    if below.resolve() in chain:
        raise ConfigError(f"{path} extends {base}, which extends it in turn; one of them must stand alone")
    return merged(read_study_file(below, chain), table)


def asks_question(path: Path) -> bool:
    """Whether a file is a study's, and no configuration of one run.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "study.toml"
    ...     _ = file.write_text('question = "Does it pay?"')
    ...     asks_question(file)
    True
    """
    return "question" in read_study_file(path)


def merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, table by table; a table that names another choice replaces that of the base whole."""
    both = dict(base)
    for key, value in top.items():
        below = both.get(key)
        if not (isinstance(value, Mapping) and isinstance(below, Mapping)):
            both[key] = value
        elif any(value.get(switch, below.get(switch)) != below.get(switch) for switch in ("name", "rule")):
            both[key] = dict(value)
        else:
            both[key] = merged(below, value)
    return both


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
    try:
        return tomli_w.dumps(tree, multiline_strings=False)
    except TypeError as error:
        raise ConfigError(
            f"{error}: it has no form in TOML; give texts, numbers, truth values, lists or tables"
        ) from error


def to_inline(table: Mapping[str, Any]) -> str:
    """A table as TOML has it in one line.

    >>> print(to_inline({"strategy": {"name": "lora", "dora": True}, "train.lr": 0.001}))
    { strategy = { name = "lora", dora = true }, "train.lr" = 0.001 }
    """
    parts = [
        f"{_line(key, 0).rpartition(' = ')[0]} = {to_inline(value)}"
        if isinstance(value, Mapping)
        else _line(key, value)
        for key, value in table.items()
    ]
    return f"{{ {', '.join(parts)} }}"


def _line(key: str, value: Any) -> str:
    return tomli_w.dumps({key: value}).rstrip("\n")
