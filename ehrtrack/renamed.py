"""What has another name now: the former one is taken until the next release, and runs logged by it stay readable."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from ehrtrack.errors import ConfigError

SECTIONS = {"frontier": "sensitivity", "canary": "negative_controls"}
"""Sections of configurations, and the functions of the package that read them."""
FORMER_SECTIONS = {now: former for former, now in SECTIONS.items()}
COMMANDS = {"frontier": "sensitivity", "canary": "negative-controls"}
"""Commands, and the kinds of the runs that they log."""


@cache
def tell(former: str, now: str) -> None:
    """Say on stderr, once in a process, what something is called now."""
    print(f"ehrtrack: {former} is called {now} now; the former name ends with the next release", file=sys.stderr)


def present_path(path: str) -> str:
    """A dotted path with the present name of its section; a former name is told.

    Examples
    --------
    >>> present_path("sensitivity.values")
    'sensitivity.values'
    """
    section, dot, rest = path.partition(".")
    if section not in SECTIONS:
        return path
    present = f"{SECTIONS[section]}{dot}{rest}"
    tell(path, present)
    return present


def present_sections(table: Mapping[str, Any], *, tells: bool = False) -> dict[str, Any]:
    """The table of a configuration with the present names of its sections.

    Parameters
    ----------
    tells : whether former names are told

    Raises
    ------
    ConfigError
        If it has a section by both names.

    Examples
    --------
    >>> present_sections({"study": "icu", "canary": {"epochs": 2}})
    {'study': 'icu', 'negative_controls': {'epochs': 2}}
    """
    for former, now in SECTIONS.items():
        if former in table and now in table:
            raise ConfigError(f"[{former}] is called [{now}] now, and both are there; put them together as [{now}]")
        if former in table and tells:
            tell(f"[{former}]", f"[{now}]")
    return {SECTIONS.get(name, name): value for name, value in table.items()}
