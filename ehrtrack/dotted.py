"""Dotted paths such as strategy.rank: read from text, set in a table, and a table written as such paths."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from ehrtrack.errors import ConfigError

IMPLIED_RULES = {"data.split.rule": "hash"}
"""Rules that hold where a table names none."""


def leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that is no table, by its dotted path; a table that is keyed by patterns of codes is one value."""
    for key, inner in value.items():
        if isinstance(inner, Mapping) and all(re.fullmatch(r"\w+", key) for key in inner):  # not keyed by patterns
            yield from leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def set_dotted(table: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one dotted key. Choosing another `name` drops the settings of the choice before."""
    *parents, key = dotted.split(".")
    for parent in parents:
        below = table.get(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"config key {dotted!r}: {parent!r} is a value, not a table")
        copied = dict(below)
        table[parent] = copied
        table = copied
    before = table.get(key, IMPLIED_RULES.get(dotted))
    if key in ("name", "rule") and before not in (None, value):
        dropped = [k for k in table if k != key]
        if dropped:
            print(f"{dotted}={value}: {', '.join(dropped)} of {before} no longer apply", flush=True)
        table.clear()
    table[key] = value


def parse_value(text: str) -> Any:
    """A value as TOML writes it; anything else is a string. Python's True and False are booleans too.

    A run id is a string even where all of its 32 digits happen to be decimal.

    Examples
    --------
    >>> [parse_value(text) for text in ("8", "0.5", "True", "lora", "[1, 2]")]
    [8, 0.5, True, 'lora', [1, 2]]
    """
    if re.fullmatch("[0-9a-f]{32}", text):
        return text
    literal = {"True": "true", "False": "false"}.get(text, text)
    try:
        return tomllib.loads(f"value = {literal}")["value"]
    except (ValueError, RecursionError):  # no TOML, or a number or a list that Python has no room for
        return text


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    if isinstance(value, Mapping) and all(re.fullmatch(r"[\w.]+", key) for key in value):  # not keyed by patterns
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, str | int | float | bool):
        yield prefix, value
    elif value is not None:
        yield prefix, json.dumps(value)
