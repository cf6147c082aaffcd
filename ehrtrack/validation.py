"""A table checked against its section, and what is wrong with it in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ehrtrack import plugins
from ehrtrack.errors import ConfigError

MAX_SHOWN = 200
"""Characters, or bits, of a value in a message."""


def validate(model: type[BaseModel], values: Any, prefix: str = "") -> BaseModel:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_explain(model, problem, prefix) for problem in error.errors()]
        raise ConfigError("; ".join(problems)) from error


def _explain(model: type[BaseModel], problem: Mapping[str, Any], prefix: str) -> str:
    path, known = _as_written(model, [str(part) for part in problem["loc"]])
    dotted = ".".join([prefix, *path] if prefix else path)
    if problem["type"] == "extra_forbidden":
        there_are = f"; there are: {', '.join(known)}" if known else ""
        return f"unknown config key {dotted!r}{plugins.nearest(path[-1], known)}{there_are}"
    if problem["type"] == "missing":
        return f"config key {dotted!r} is missing and has no default"
    return f"config key {dotted!r} is {_shown(problem['input'])}: {problem['msg'].removeprefix('Value error, ')}"


def _shown(value: Any) -> str:
    """A value as a message says it. Python refuses to write out the digits of a very large number."""
    if isinstance(value, int) and value.bit_length() > MAX_SHOWN:
        return f"a whole number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _as_written(model: type[BaseModel], location: list[str]) -> tuple[list[str], list[str]]:
    """The path of a problem as the user wrote it, and the keys there are beside its end.

    Where one of several sections is chosen, as by ``cohort.index.rule``, pydantic puts the choice among the keys.
    """
    path, models, known = [], [model], []
    for part in location:
        chosen = [m for m in models if any(part in get_args(f.annotation) for f in m.model_fields.values())]
        if chosen and not any(part in m.model_fields for m in models):
            models = chosen
            continue
        path.append(part)
        known = [name for m in models for name in m.model_fields]
        models = [inner for m in models if part in m.model_fields for inner in _models(m.model_fields[part].annotation)]
    return path, known


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
