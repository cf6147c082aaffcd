"""All that a report is made of, read once: the rest of the package turns it into sections and asks nobody anything."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ehrtrack.evaluation.metric_table import Metric, chosen_by
from ehrtrack.evaluation.repeats import Configuration, Difference, Repeat, median_first
from ehrtrack.runlog import TEST
from ehrtrack.study.settings import StudySettings
from ehrtrack.tracking.client.queries import RunRecord

MEDIAN = "Of each configuration the repeat in the middle by validation is shown."
"""What a caption says of curves, which are of `median_run`."""
CURVE_TABLES = ("calibration", "calibration_curve", "decision_curve", "subgroups", "subgroup_gaps")
N_LABELS = "cohort.n_labels"
COHORT_TABLES = ("attrition", "summary")


@dataclass(frozen=True)
class ExplainedRun:
    """What a run of ``ehrtrack explain --cohort`` found.

    Attributes
    ----------
    table : of `evaluation.contributions.summarise_contributions`, with a label for each code
    said : of whom, and by which method
    scale : what contributions are of
    """

    table: pl.DataFrame
    said: str
    scale: str


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes
    ----------
    settings : what the study's file says
    study : its name, under which its runs are tracked
    run_id : of the study's own run
    configurations : the best by validation first, as in the main table
    table : the main table (`evaluation.repeats`), a line a configuration
    differences : to the reference, and those that the study's file asks about
    answer : in words
    records : every run of the study by its id
    pages : address of each run's page by its id; without those that have none
    evaluations : label of a configuration -> tables of the median repeat, by their names under ``evaluation/``
    learning : configuration, repeat, epoch and value: the metric on validation subjects, of those configurations that
        compare with the best and have epochs; None without any
    predictions : label -> test subjects of the median repeat with outcome and risk, of the best configuration and its
        reference; none where labels are classes
    cohort : the tables ``attrition`` and ``summary`` of one repeat
    table_one : characteristics of the subjects by split, if the study's run has them
    environment : of one repeat: Python, machine and packages
    pretrainings, controls : runs; controls are negative controls
    external : evaluations of the study's models on other datasets
    explanations : label of a configuration -> what carries the risk of test subjects, where a run of it was explained
    missing : label of a cell without a finished run -> why
    commands : by which it is made again; those of a study's file where nothing else is said
    file : that says what was asked; the study's if empty
    """

    settings: StudySettings
    study: str
    run_id: str
    configurations: Sequence[Configuration]
    table: pl.DataFrame
    differences: Sequence[Difference]
    answer: str
    records: Mapping[str, RunRecord]
    evaluations: Mapping[str, Mapping[str, pl.DataFrame]]
    cohort: Mapping[str, pl.DataFrame]
    table_one: pl.DataFrame | None = None
    learning: pl.DataFrame | None = None
    predictions: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    pretrainings: Sequence[RunRecord] = ()
    controls: Sequence[RunRecord] = ()
    external: Sequence[RunRecord] = ()
    explanations: Mapping[str, ExplainedRun] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ("ehrtrack study run study.toml", "ehrtrack report study.toml")
    file: str = ""

    @property
    def metric(self) -> Metric:
        """By which configurations are chosen and compared."""
        return compared_by(self.configurations)

    @property
    def best(self) -> Configuration | None:
        """The best by the mean of validation scores, never by test; None where no run has one."""
        first = next(iter(self.configurations), None)
        return first if first is not None and first.validation_score(self.metric) is not None else None

    @property
    def has_classes(self) -> bool:
        """Whether the labels are classes, of no time."""
        return self.metric.key == "auroc"

    @property
    def horizon_days(self) -> str:
        """That risks are of, as text; empty where labels are classes, or horizons differ."""
        found = {repeat.row.horizon_days for one in self.configurations for repeat in one.repeats}
        return found.pop() if len(found) == 1 else ""

    def of(self, label: str) -> Configuration:
        """The configuration of a label."""
        return next(one for one in self.configurations if one.label == label)

    @property
    def beside_best(self) -> list[str]:
        """As the function of this name."""
        return [one.label for one in beside_best(self.configurations)]

    @property
    def shown_run(self) -> str:
        """The run whose cohort is shown, in words."""
        repeat = shown_repeat(self.configurations)
        label = next(one.label for one in self.configurations if repeat in one.repeats)
        return f"{label}, seed {repeat.seed}, run {repeat.row.run_id[:12]}"

    @property
    def at_labels(self) -> str:
        """What a caption says of `beside_best`: nothing where numbers of labels are not compared."""
        if len(self.beside_best) == len(self.configurations):
            return ""
        n_labels = self.configurations[0].settings.get(N_LABELS, "all")
        return f" With {n_labels:,} labels." if isinstance(n_labels, int) else f" With {n_labels} labels."

    @property
    def references(self) -> list[str]:
        """Labels of the configurations that others are compared with, without those that the file asks about."""
        return list(dict.fromkeys(d.to for d in self.differences if not d.question))


def compared_by(configurations: Sequence[Configuration]) -> Metric:
    """The metric by which configurations are chosen and compared."""
    return chosen_by({repeat.row.task for one in configurations for repeat in one.repeats})


def beside_best(configurations: Sequence[Configuration]) -> list[Configuration]:
    """The configurations that had as many labelled subjects as the best by validation, best first.

    Where numbers of labels are compared, costs and curves of one number are what compares.
    """
    n_labels = configurations[0].settings.get(N_LABELS) if configurations else None
    return [one for one in configurations if one.settings.get(N_LABELS) == n_labels]


def shown_repeat(configurations: Sequence[Configuration]) -> Repeat:
    """The repeat whose cohort a report shows: the first of the configuration that learnt from most subjects."""
    return max(configurations, key=_most_subjects).repeats[0]


def _most_subjects(one: Configuration) -> tuple[int, str]:
    return max(repeat.n_train for repeat in one.repeats), one.label


def scores(configuration: Configuration, metric: Metric, split: str = TEST) -> list[float]:
    """A metric of each repeat that has it."""
    values = [repeat.row.metrics.get(metric.named(split)) for repeat in configuration.repeats]
    return [value for value in values if value is not None]


def mean(values: Sequence[float]) -> float | None:
    """The mean; None without values."""
    return statistics.fmean(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation; None for fewer than two values.

    >>> spread([1.0, 3.0]), spread([1.0])
    (1.4142135623730951, None)
    """
    return statistics.stdev(values) if len(values) > 1 else None


def median_run(configuration: Configuration) -> str:
    """The run in the middle by validation: what the curves of a report are of, so that no lucky one is shown."""
    return median_first(configuration.rows)[0].run_id
