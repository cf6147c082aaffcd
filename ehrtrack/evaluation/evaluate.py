"""The one evaluator: all measures of a split that are of the model's task."""

from __future__ import annotations

from functools import partial

from ehrtrack.evaluation import class_measures, measures  # noqa: F401  # they add their measures
from ehrtrack.evaluation.registry import MEASURES
from ehrtrack.evaluation.report import Report
from ehrtrack.evaluation.split import Context, Split
from ehrtrack.runlog import Task


def evaluate(split: Split, context: Context, *, task: Task = "survival", is_alone: bool = False) -> Report:
    """All measures of a split; of validation subjects, which have no others beside them, those that both splits have.

    Discrimination, error, calibration and net benefit of test subjects, overall and by group.

    Parameters
    ----------
    is_alone : the subjects are test subjects, though there are no validation subjects beside them

    Examples
    --------
    Two validation subjects, of whom the one with the event first has the higher risk. For an interval they are too few:

    >>> import numpy as np
    >>> from ehrtrack.data.outcomes import Outcomes
    >>> from ehrtrack.evaluation.split import EvaluationConfig
    >>> from ehrtrack.survival.time_grid import TimeGrid
    >>> outcomes = Outcomes(np.array([10.0, 20.0]), np.array([True, False]))
    >>> split = Split(np.array([[1.0, 0.4], [1.0, 0.8]]), TimeGrid((0, 30)), training=outcomes, outcomes=outcomes)
    >>> report = evaluate(split, Context(EvaluationConfig(), seed=0))
    >>> report.metrics["c_index"], "c_index_interval" in report.left_out
    (1.0, True)
    """
    report = Report()
    for name, compute, is_of_validation, tasks in MEASURES:
        if task in tasks and (is_of_validation or is_alone or context.validation is not None):
            report.include(name, partial(compute, split, context))
    return report


def names_of_both(task: Task) -> set[str]:
    """The measures of validation and test subjects alike, which are told apart by the split before their name.

    Examples
    --------
    >>> "c_index" in names_of_both("survival"), "uno_c" in names_of_both("survival")
    (True, False)
    """
    return {found.name for found in MEASURES if found.is_of_validation and task in found.tasks}
