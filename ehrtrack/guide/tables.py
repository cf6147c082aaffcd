"""Every section of settings as a table, made from the classes that read them."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ehrtrack import plugins
from ehrtrack.config import PLUGIN_SECTIONS, RunConfig
from ehrtrack.data.sources.settings import Reading
from ehrtrack.errors import ConfigError
from ehrtrack.guide.meaning import meanings, summary
from ehrtrack.section import Choice, Section
from ehrtrack.study.settings import StudySettings

SWITCHES = ("name", "rule")
"""Settings that choose which others there are; they stand in the heading."""
PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", date: "date"}
BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
}


@dataclass(frozen=True)
class Setting:
    """A setting: its dotted path, what values it takes, its default as TOML (empty if there is none), its meaning."""

    path: str
    values: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """A section, or one choice of it: its heading, what it is, and its settings.

    Attributes
    ----------
    section : the first part of its settings' paths, by which it is asked for
    """

    section: str
    heading: str
    summary: str
    settings: tuple[Setting, ...]


@cache
def all_tables() -> tuple[Table, ...]:
    """All tables, those of a run first, then those of a study's file and of the sources of an import.

    >>> [table.heading for table in all_tables() if table.section == "train"]
    ['train']
    """
    tables: list[Table] = []
    of_study = next(setting for setting in _settings("", RunConfig) if setting.path == "study")
    tables.append(Table("study", "study", "What the runs belong to.", (of_study,)))
    for name, field in RunConfig.model_fields.items():
        if name in PLUGIN_SECTIONS:
            tables += _choices(name, PLUGIN_SECTIONS[name], field.annotation)
        else:
            tables += [table for kind in _sections(field.annotation) for table in _tables(name, name, kind)]
    tables += _tables("study", "", StudySettings, heading="The file of a study")
    tables += _choices("import", "data.sources", Reading)
    return tuple(tables)


def tables_of(section: str) -> list[Table]:
    """The tables of a section such as ``train``, of a choice such as ``strategy.lora``, or of a part (``data.split``).

    Raises
    ------
    ConfigError
        If there is none, with the nearest.

    Examples
    --------
    >>> [setting.path for setting in tables_of("strategy.lp-ft")[0].settings]
    ['strategy.head_epochs']
    """
    found = [table for table in all_tables() if any(_is_within(word, section) for word in _words(table))]
    if not found:
        names = list(dict.fromkeys(table.section for table in all_tables()))
        hint = plugins.nearest(section, [word for name in names for word in asked_for(name)])
        raise ConfigError(f"there are no settings of {section!r}{hint}; there are those of: {', '.join(names)}")
    return found


def asked_for(section: str) -> list[str]:
    """What may be asked for of a section: itself, its choices and its parts.

    >>> asked_for("search")
    ['search', 'search.parameters']
    """
    words = dict.fromkeys(word for table in all_tables() if table.section == section for word in _words(table))
    return [word for word in words if _is_within(word, section)]


def _words(table: Table) -> list[str]:
    """What a table may be asked for by: its section, its path, and where it is a choice, that one's name."""
    path, _, choice = table.heading.partition(": ")
    return [table.section, path, *(f"{path}.{name}" for name in re.findall('= "(.+)"', choice))]


def _is_within(word: str, asked: str) -> bool:
    return word == asked or word.startswith(f"{asked}.")


def _choices(section: str, package: str, base: Any) -> Iterator[Table]:
    """A table of what all choices of a package share, if they share any, and one of each choice."""
    (shared,) = _sections(base)
    path = "" if section == "import" else section
    of_all = tuple(_settings(path, shared))
    if of_all:
        yield Table(section, section, f"Settings of every {'source' if section == 'import' else section}.", of_all)
    for name in plugins.names(package):
        kind = plugins.settings(package, name)
        own = {key for key, field in kind.model_fields.items() if not _is_shared(field, shared.model_fields.get(key))}
        yield from _tables(section, path, kind, heading=f'{section}: name = "{name}"', only=own)


def _is_shared(field: FieldInfo, of_all: FieldInfo | None) -> bool:
    return of_all is not None and _default(field) == _default(of_all)


def _tables(
    section: str, path: str, kind: type[Section], *, heading: str = "", only: set[str] | None = None
) -> Iterator[Table]:
    """The table of a section, and those of the tables in it."""
    yield Table(section, heading or path, summary(kind), tuple(_settings(path, kind, only)))
    for name, field in kind.model_fields.items():
        if only is not None and name not in only:
            continue
        below = _joined(path, name)
        inner = _sections(field.annotation)
        for one in inner:
            rule = _switch(one) if len(inner) > 1 else ""
            yield from _tables(section, below, one, heading=f"{below}: {rule}" if rule else below)


def _settings(path: str, kind: type[Section], only: set[str] | None = None) -> Iterator[Setting]:
    said = meanings(kind)
    for name, field in kind.model_fields.items():
        is_switch = name in SWITCHES and (_is_literal(field.annotation) or issubclass(kind, Choice))
        if not is_switch and (only is None or name in only):
            values = _values(field.annotation, field.metadata)
            yield Setting(_joined(path, name), values, _default(field), said.get(name, ""))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_literal(annotation: Any) -> bool:
    return get_origin(annotation) is Literal


def _switch(kind: type[Section]) -> str:
    """How a section is chosen among others, such as ``rule = "time"``."""
    for name in SWITCHES:
        if name in kind.model_fields and _is_literal(kind.model_fields[name].annotation):
            return f'{name} = "{get_args(kind.model_fields[name].annotation)[0]}"'
    return " and ".join(name for name, field in kind.model_fields.items() if field.is_required())


def _sections(annotation: Any) -> list[type[Section]]:
    """The classes of settings in a type, such as those of a union or of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _values(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What values a type takes, in words."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _values(inner, [*more, *metadata])
    text = _of_kind(annotation)
    for bound in metadata:
        constraints = [bound] if type(bound) in BOUNDS else getattr(bound, "metadata", [])
        for one in constraints:
            if type(one) in BOUNDS:
                key, words = BOUNDS[type(one)]
                text += f", {words} {getattr(one, key):g}"
    return text


def _of_kind(annotation: Any) -> str:
    if annotation in PLAIN:
        return PLAIN[annotation]
    origin, parts = get_origin(annotation), [part for part in get_args(annotation) if part is not type(None)]
    if origin is Literal:
        return ", ".join(json.dumps(part) for part in parts)
    if set(parts) >= {str, int, float, bool}:
        return "any value"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_values(part) for part in parts))
    if origin is tuple:
        return "list of tables" if _sections(parts[0]) else f"list, each: {_values(parts[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "table" if _sections(parts[1]) else f"table, each value: {_values(parts[1])}"
    return "table" if _sections(annotation) else "value"


def _default(field: FieldInfo) -> str:
    """The default as TOML; empty where there is none, or where it is that of the machine."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or isinstance(value, Path):
        return ""
    return "" if _sections(field.annotation) else json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
