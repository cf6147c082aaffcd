"""One row a metric: what it is called, how it is read, and where it is shown.

Whatever shows metrics reads this table: the line of an epoch, the line that ends a run, the tables of `compare` and
`sensitivity`, the choice of a champion, and the columns of the tracking UI. A metric is added by its measure
(`evaluation.measures`) and its row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from ehrtrack.errors import DataError
from ehrtrack.runlog import KEPT, PROBE, TEST, TRAINING, VALIDATION, Task

Better = Literal["higher", "lower", "nearer 1", "nearer 0"]
Place = Literal["progress", "headline", "compare", "study", "sensitivity", "ui"]
TIMED_TASKS: tuple[Task, ...] = ("survival", "classification")
CLASSES: tuple[Task, ...] = ("classes",)
OUTCOME_TASKS: tuple[Task, ...] = (*TIMED_TASKS, *CLASSES)
PRETRAINING: tuple[Task, ...] = ("pretraining",)
BOUNDS = ("_lower", "_upper")
"""Ends of the names of an interval's bounds."""
SHORT_NAMES = {TRAINING: "train", VALIDATION: "val", KEPT: "val", TEST: "test", PROBE: "probe"}
LONG_NAMES = {TRAINING: "training", VALIDATION: "validation", KEPT: "validation", TEST: "test", PROBE: "probe"}
_COLUMNS = {
    "test/c_index_lower": "test_lower",
    "test/c_index_upper": "test_upper",
    "test/attainable": "attainable",
    "test/attainable_lower": "attainable_lower",
    "test/attainable_upper": "attainable_upper",
}
"""Columns of a benchmark's files that were named before there was a rule, and that readers of the files know."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: its names, its unit and format, which values are better, and where it is shown.

    Attributes
    ----------
    key : name without the split: ``c_index`` is logged as ``test/c_index``
    title : title in tables
    long_title : title in figures, if it differs from the one in tables
    form : format of a value, as the function `format` takes it
    better : which values are better
    unit : unit of the values; empty if they have none
    has_interval : whether the bounds ``_lower`` and ``_upper`` of an interval are logged with it
    tasks : the tasks whose models have the metric
    splits : the splits on which it is measured; if it is only one, titles do not name it
    chooses : whether a champion is chosen by the metric, on validation subjects
    shown : the places where it is shown, with the splits of each:

        - progress: after each epoch
        - headline: in the last line of a run, and in the description of a champion
        - compare, sensitivity: in their tables
        - study: in the table of configurations over their repeats
        - ui: as a column of the tracking UI

    Examples
    --------
    Values of a calibration slope are best near 1, whichever side they are on:

    >>> slope = METRICS["calibration_slope"]
    >>> slope.better, slope.named(TEST)
    ('nearer 1', 'test/calibration_slope')
    """

    key: str
    title: str
    better: Better
    long_title: str = ""
    form: str = ".3f"
    unit: str = ""
    has_interval: bool = False
    tasks: tuple[Task, ...] = TIMED_TASKS
    splits: tuple[str, ...] = (VALIDATION, KEPT, TEST)
    chooses: bool = False
    shown: Mapping[Place, tuple[str, ...]] = field(default_factory=dict)

    def named(self, split: str) -> str:
        """The name under which runs log it.

        >>> METRICS["c_index"].named(TEST)
        'test/c_index'
        """
        return f"{split}/{self.key}"

    def shortfall(self, value: float) -> float:
        """What puts the best of values first.

        >>> sorted([0.9, 1.3, 1.05], key=METRICS["calibration_slope"].shortfall)
        [1.05, 0.9, 1.3]
        """
        return {"higher": -value, "lower": value, "nearer 1": abs(value - 1), "nearer 0": abs(value)}[self.better]


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(key="loss", title="loss", better="lower", form=".4f", tasks=(*PRETRAINING, *OUTCOME_TASKS),
            splits=(TRAINING, VALIDATION), shown={"progress": (TRAINING, VALIDATION)}),
        Metric(key="mlm_loss", title="loss of masked codes", better="lower", unit="nats", tasks=PRETRAINING,
            splits=(VALIDATION,), shown={"headline": (VALIDATION,)}),
        Metric(key="unigram_loss", title="loss of code counts", better="lower", unit="nats", tasks=PRETRAINING,
            splits=(VALIDATION,), shown={"progress": (VALIDATION,), "headline": (VALIDATION,)}),
        Metric(key="mlm_accuracy", title="accuracy of masked codes", better="higher", tasks=PRETRAINING,
            splits=(VALIDATION,), shown={"progress": (VALIDATION,)}),
        Metric(key="states_r2", title="variance that states foretell", better="higher", tasks=PRETRAINING,
            splits=(PROBE,), shown={"progress": (PROBE,), "headline": (PROBE,)}),
        Metric(key="counts_r2", title="variance that counts foretell", better="higher", tasks=PRETRAINING,
            splits=(PROBE,), shown={"progress": (PROBE,), "headline": (PROBE,)}),
        Metric(key="c_index", title="C-index", better="higher", has_interval=True, chooses=True,
            shown={"progress": (VALIDATION,), "headline": (KEPT, TEST), "compare": (KEPT, TEST),
                "study": (KEPT, TEST), "sensitivity": (KEPT, TEST), "ui": (KEPT, TEST)}),
        Metric(key="uno_c", title="Uno's C", better="higher", has_interval=True, splits=(TEST,),
            shown={"study": (TEST,)}),
        Metric(key="auc_horizon", title="AUC at the horizon", better="higher", has_interval=True, splits=(TEST,),
            shown={"study": (TEST,)}),
        Metric(key="average_precision", title="AUPRC at the horizon", better="higher", splits=(TEST,),
            shown={"study": (TEST,)}),
        Metric(key="attainable", title="% of attainable", better="higher", form=".0%", has_interval=True,
            splits=(TEST,), shown={"compare": (TEST,), "study": (TEST,)}),
        Metric(key="oracle_c_index", title="C-index of the oracle", better="higher", has_interval=True,
            splits=(TEST,)),
        Metric(key="ibs", title="IBS", long_title="integrated Brier score", better="lower", form=".4f",
            shown={"progress": (VALIDATION,), "headline": (TEST,), "compare": (TEST,), "study": (TEST,),
                "sensitivity": (TEST,), "ui": (TEST,)}),
        Metric(key="ibs_skill", title="IBS skill", long_title="share by which the integrated Brier score is below "
            "Kaplan-Meier's", better="higher", form="+.1%", shown={"study": (TEST,)}),
        Metric(key="auroc", title="AUROC", long_title="area under the ROC curve", better="higher", has_interval=True,
            tasks=CLASSES, chooses=True,
            shown={"progress": (VALIDATION,), "headline": (KEPT, TEST), "compare": (KEPT, TEST),
                "study": (KEPT, TEST), "sensitivity": (KEPT, TEST), "ui": (KEPT, TEST)}),
        Metric(key="auprc", title="AUPRC", long_title="area under precision by recall", better="higher",
            has_interval=True, tasks=CLASSES,
            shown={"progress": (VALIDATION,), "headline": (TEST,), "compare": (TEST,), "study": (TEST,),
                "sensitivity": (TEST,), "ui": (TEST,)}),
        Metric(key="prevalence", title="prevalence", better="nearer 0", tasks=CLASSES, splits=(TEST,),
            shown={"compare": (TEST,), "study": (TEST,)}),
        Metric(key="brier", title="Brier score", better="lower", form=".4f", tasks=CLASSES,
            shown={"progress": (VALIDATION,), "headline": (TEST,), "compare": (TEST,), "study": (TEST,),
                "sensitivity": (TEST,), "ui": (TEST,)}),
        Metric(key="calibration_slope", title="calibration slope", better="nearer 1", form=".2f", has_interval=True,
            tasks=OUTCOME_TASKS, splits=(TEST,), shown={"study": (TEST,), "sensitivity": (TEST,)}),
        Metric(key="ici", title="ICI", long_title="integrated calibration index", better="nearer 0",
            tasks=OUTCOME_TASKS, splits=(TEST,), shown={"sensitivity": (TEST,)}),
    )
}  # fmt: skip
"""By key, in the order in which tables show them."""
C_INDEX, IBS = METRICS["c_index"], METRICS["ibs"]
AUROC, BRIER = METRICS["auroc"], METRICS["brier"]


def with_bounds(name: str) -> list[str]:
    """The name of a metric with an interval, and those of its bounds.

    Examples
    --------
    >>> with_bounds("test/c_index")
    ['test/c_index', 'test/c_index_lower', 'test/c_index_upper']
    """
    return [name, *(f"{name}{bound}" for bound in BOUNDS)]


class Entry(NamedTuple):
    """A metric of one split, as a table shows it.

    Examples
    --------
    >>> entry = Entry(C_INDEX, TEST)
    >>> entry.title(), entry.names[1]
    ('test C-index (95 % interval)', 'test/c_index_lower')
    >>> entry.text({"test_c_index": 0.7, "test_lower": 0.6, "test_upper": 0.8})
    '0.700 [0.600, 0.800]'
    """

    metric: Metric
    split: str

    @property
    def name(self) -> str:
        """The name under which runs log it."""
        return self.metric.named(self.split)

    @property
    def has_bounds(self) -> bool:
        """Whether its interval is shown: that of test subjects, as validation subjects choose and claim nothing."""
        return self.metric.has_interval and self.split == TEST

    @property
    def names(self) -> list[str]:
        """Its name, and those of its bounds where they are shown."""
        return with_bounds(self.name) if self.has_bounds else [self.name]

    @property
    def columns(self) -> dict[str, str]:
        """Column of a benchmark table -> the name under which runs log what stands there."""
        split, key = SHORT_NAMES[self.split], self.metric.key
        return {_COLUMNS.get(name, f"{split}_{key}{name.removeprefix(self.name)}"): name for name in self.names}

    def title(self, of_what: str = "") -> str:
        """The head of its column, such as ``test C-index of any cause (95 % interval)``."""
        split = f"{SHORT_NAMES[self.split]} " if len(self.metric.splits) > 1 else ""
        return f"{split}{self.metric.title}{of_what}{' (95 % interval)' if self.has_bounds else ''}"

    def text(self, row: Mapping[str, Any]) -> str:
        """Its cell of a row of a benchmark table, with the bounds where they are shown and known."""
        return interval_text(row, *self.columns, form=self.metric.form)


def shown(place: Place, tasks: Collection[Task] = get_args(Task)) -> list[Entry]:
    """What is shown in a place of models of any of these tasks, in the order of the table.

    Examples
    --------
    >>> [entry.name for entry in shown("ui", ["survival"])]
    ['kept/c_index', 'test/c_index', 'test/ibs']
    """
    of_tasks = [metric for metric in METRICS.values() if not set(tasks).isdisjoint(metric.tasks)]
    return [Entry(metric, split) for metric in of_tasks for split in metric.shown.get(place, ())]


def names_shown(place: Place, tasks: Collection[Task] = get_args(Task)) -> list[str]:
    """The names under which runs log what is shown in a place, bounds among them.

    Examples
    --------
    >>> names_shown("ui", ["survival"])
    ['kept/c_index', 'test/c_index', 'test/c_index_lower', 'test/c_index_upper', 'test/ibs']
    """
    return [name for entry in shown(place, tasks) for name in entry.names]


def chosen_by(tasks: Collection[Task]) -> Metric:
    """The metric by which the best of models of these tasks is chosen, on validation subjects.

    Raises
    ------
    DataError
        If no metric judges models of all of them.

    Examples
    --------
    >>> chosen_by(["survival", "classification"]).key
    'c_index'
    """
    for metric in METRICS.values():
        if metric.chooses and set(tasks) <= set(metric.tasks):
            return metric
    raise DataError(f"no metric chooses between models of {' and '.join(sorted(tasks))}; compare each task by itself")


def number_text(value: float | None, form: str) -> str:
    """A cell with a number, empty where it is not known.

    Examples
    --------
    >>> number_text(1234567, ",d"), number_text(None, ".3f")
    ('1,234,567', '')
    """
    return "" if value is None else format(value, form)


def interval_text(row: Mapping[str, Any], name: str, *bounds: str, form: str) -> str:
    """A cell such as ``0.612 [0.537, 0.684]``: without bounds where they are not known, empty without an estimate.

    Parameters
    ----------
    bounds : names of the lower and the upper bound, or none

    >>> interval_text({"gain": 0.1, "low": -0.2, "high": 0.4}, "gain", "low", "high", form="+.1f")
    '+0.1 [-0.2, +0.4]'
    """
    text = number_text(row.get(name), form)
    values = [row.get(bound) for bound in bounds]
    return (
        text if not text or not values or None in values else f"{text} [{', '.join(format(v, form) for v in values)}]"
    )
