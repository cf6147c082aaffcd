"""What the docstring of a section says of it and of its settings."""

from __future__ import annotations

import inspect
import re

from ehrtrack.section import Section

ENTRY = re.compile(r"^(\w+(?:, \w+)*) : (.*)$")
"""The first line of an attribute, or of several that share a description."""
PART = re.compile(r"^\w+\n-+$", re.MULTILINE)
"""The heading of a part of a docstring."""


def summary(section: type[Section]) -> str:
    """What a section's docstring says before its first part, such as ``Attributes``, as one line.

    >>> from ehrtrack.training.settings import TrainConfig
    >>> summary(TrainConfig)
    'Settings of the training loop.'
    """
    return " ".join(PART.split(inspect.getdoc(section) or "")[0].split())


def meanings(section: type[Section]) -> dict[str, str]:
    """What each setting means, by its name; settings of base classes are described there.

    >>> from ehrtrack.strategies.settings import LpFtConfig
    >>> meanings(LpFtConfig)
    {'head_epochs': 'epochs in which the head alone learns, before everything does'}
    """
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if issubclass(base, Section):
            found |= {name: field.description for name, field in base.model_fields.items() if field.description}
            found |= _attributes(inspect.cleandoc(base.__doc__ or ""))
    return {name: text for name, text in found.items() if name in section.model_fields}


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of the part ``Attributes``, each as one line."""
    _, _, rest = docstring.partition("Attributes\n----------\n")
    found: dict[str, str] = {}
    names: tuple[str, ...] = ()
    for line in rest.split("\n\n")[0].splitlines():
        if entry := ENTRY.match(line):
            names = tuple(entry[1].split(", "))
            found |= dict.fromkeys(names, entry[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text.rstrip(".") for name, text in found.items()}
