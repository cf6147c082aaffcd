"""What measures there are.

A measure is a function of a `Split` and its `Context`, marked with `@measure`. It gives values by key: numbers,
intervals and tables. Where these subjects are too few for it, it raises `NotMeasurable`, and is left out with the
reason. Where a metric is shown, and how, says its row in `evaluation.metric_table`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ehrtrack.evaluation.metric_table import TIMED_TASKS
from ehrtrack.evaluation.report import Found
from ehrtrack.evaluation.split import Context, Split
from ehrtrack.runlog import Task

Compute = Callable[[Split, Context], Found]
AnyCompute = TypeVar("AnyCompute", bound=Compute)


class Measure(NamedTuple):
    """A function of a split, under the name by which it is left out.

    Examples
    --------
    >>> from ehrtrack.evaluation import measures
    >>> [found.name for found in MEASURES if found.is_of_validation and "survival" in found.tasks][:2]
    ['c_index', 'c_index_interval']
    """

    name: str
    compute: Compute
    is_of_validation: bool
    tasks: tuple[Task, ...]


MEASURES: list[Measure] = []
"""All there are, in the order in which they are computed; added by the modules that `evaluation.evaluate` imports."""


def measure(
    name: str, *, is_of_validation: bool = False, tasks: tuple[Task, ...] = TIMED_TASKS
) -> Callable[[AnyCompute], AnyCompute]:
    """Mark a function as a measure of test subjects, and if so said of validation subjects, of models of some tasks.

    Examples
    --------
    >>> @measure("mean_risk")
    ... def _mean_risk(split, context):
    ...     return {"mean_risk": float(split.risk.mean())}
    >>> MEASURES.pop().name  # and out of the list again, as this is an example
    'mean_risk'
    """

    def add(compute: AnyCompute) -> AnyCompute:
        MEASURES.append(Measure(name, compute, is_of_validation, tasks))
        return compute

    return add
