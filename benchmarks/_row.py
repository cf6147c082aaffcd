"""What a row of the table is, how rows are found, and when one is met."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from types import ModuleType

ROW_PACKAGE = "benchmarks.rows"


class NotThereYet(Exception):
    """Raised by a row whose part of the library does not exist; the row then counts as not met."""


NOT_MEASURED = "not measured: "
"""Begins the reason of a row that this machine has no device for."""


class NotMeasured(Exception):
    """Raised by a row whose device this machine has not; it has no value, and says why."""


@dataclass(frozen=True)
class Row:
    """What is measured, and what it must show.

    Attributes
    ----------
    name : for ``--only``, such as ``"mlm-small"``
    unit : ``"×"``, ``"s"``, ``"MB"`` or ``"%"``
    floor : value that has to be reached; None for a row that is shown and not judged
    aim : value to aim for
    is_lower_better : the floor is then an upper bound
    is_large : measured with ``--large`` only
    """

    name: str
    title: str
    unit: str = "×"
    floor: float | None = None
    aim: float | None = None
    is_lower_better: bool = False
    is_large: bool = False

    def reaches(self, value: float, bound: float | None) -> bool:
        """Whether a value is as good as a bound; always, where there is none."""
        if bound is None:
            return True
        return value <= bound if self.is_lower_better else value >= bound


@dataclass(frozen=True)
class Measured:
    """What a row came to: the value that is judged, and everything it was made of."""

    value: float
    details: dict[str, float | str] = field(default_factory=dict)


def row_modules(package: str = ROW_PACKAGE) -> dict[str, ModuleType]:
    """The modules of rows by name, in the order of the table (`ORDER`, where a module has one)."""
    path = importlib.import_module(package).__path__
    modules = [importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(path)]
    modules.sort(key=lambda module: (getattr(module, "ORDER", 99), module.__name__))
    return {module.__name__.rpartition(".")[2]: module for module in modules}
