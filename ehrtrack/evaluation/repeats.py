"""Configurations over repeats: seeds and splits of one configuration are one row, on which differences rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ehrtrack.dotted import leaves
from ehrtrack.evaluation.benchmark import RunRow, metric_of_choice
from ehrtrack.evaluation.labels import CHOSEN, N_LABELS, Settings, labels_of
from ehrtrack.evaluation.metric_table import Metric
from ehrtrack.survival.resampling import Interval

Method = Literal["Nadeau and Bengio over splits", "paired bootstrap within the split"]
Finding = Literal["better", "worse", "equivalent", "no difference shown", "not tested"]
N_TRAIN, N_TEST, N_POOL = "cohort/n_train", "cohort/n_test", "cohort/n_pool"
"""Metrics by which runs log how many subjects there are, as in `Repeat`."""


@dataclass(frozen=True)
class Repeat:
    """A finished run as one repeat of a configuration.

    Attributes
    ----------
    row : the run
    settings : values of the dotted paths in which the configurations differ, such as ``strategy.rank``; repeats of one
        configuration have equal ones
    seed : of the run
    n_train, n_test : labelled subjects that it learnt from, and that it was tested on
    n_pool : subjects that the labelled ones were drawn from (``cohort.n_labels``); None where all are labelled
    asked : dotted settings by which the configuration is asked for elsewhere (`study.asked`)
    pretraining : objective of the pretraining that it starts from; empty without one

    The split of a repeat is its cohort: `row.cohort_fingerprint`.

    Examples
    --------
    Sixty-four labels were drawn from 800 training subjects:

    >>> few = Repeat(RunRow("a", "baseline", "cox", "c"), {}, seed=0, n_train=64, n_test=200, n_pool=800)
    >>> few.test_to_training
    0.25
    """

    row: RunRow
    settings: Settings
    seed: int
    n_train: int
    n_test: int
    n_pool: int | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)
    pretraining: str = ""

    @property
    def test_to_training(self) -> float:
        """Test subjects a subject that could have been trained on: what splits share depends on these."""
        return self.n_test / (self.n_pool or self.n_train)


@dataclass(frozen=True)
class Configuration:
    """The repeats of one configuration.

    Attributes
    ----------
    label : by the settings in which the configurations differ, such as ``lora r8 · small``
    settings : as in `Repeat`
    repeats : at least one

    Examples
    --------
    >>> runs = [RunRow(f"{split}{seed}", "baseline", "gru", split) for split in "xy" for seed in (0, 1, 2)]
    >>> gru = Configuration("gru", {}, tuple(Repeat(run, {}, int(run.run_id[1]), 400, 100) for run in runs))
    >>> gru.n_splits, gru.n_seeds
    (2, 3)
    """

    label: str
    settings: Settings
    repeats: tuple[Repeat, ...] = field(repr=False)

    @property
    def is_transformer(self) -> bool:
        """Whether it is a fine-tuned encoder, and no baseline."""
        return self.repeats[0].row.kind != "baseline"

    @property
    def n_splits(self) -> int:
        """Cohorts that it was run on: random splits of one cohort have each a fingerprint of their own."""
        return len({repeat.row.cohort_fingerprint for repeat in self.repeats})

    @property
    def n_seeds(self) -> int:
        """Different seeds; a baseline that knows no chance has one."""
        return len({repeat.seed for repeat in self.repeats})

    @property
    def rows(self) -> list[RunRow]:
        """Its runs."""
        return [repeat.row for repeat in self.repeats]

    def validation_score(self, metric: Metric) -> float | None:
        """Mean of a metric of the validation subjects over the repeats; None where no run has it."""
        scores = [score for row in self.rows if (score := row.score(metric)) is not None]
        return float(np.mean(scores)) if scores else None


@dataclass(frozen=True)
class Difference:
    """A difference between two configurations in one metric, over their repeats.

    Attributes
    ----------
    question : that it answers, in words; empty of a difference to the reference that nobody asked about by name
    this, to : labels of the configurations
    metric : key in the metric table
    interval : of this minus to, at 95 %; None where it could not be tested (`finding` is then "not tested")
    p, p_holm : two-sided; the latter adjusted by Holm over all differences in this metric that were asked about, or
        over all to the reference
    method, n_splits, n_seeds : how the interval was made, and from how much
    n_draws : of labels, within a split
    margin : of equivalence; 0 where it is not asked of this metric
    is_equivalent : by two one-sided tests at 5 %
    finding : what may be said
    sentence : says it without a full stop, such as "lora r8 is better than cox by .012 [.004, .020]"

    Examples
    --------
    >>> difference = Difference(
    ...     *("", "lora r8", "cox", "c_index", Interval(0.012, 0.004, 0.020), 0.01, 0.02),
    ...     *("Nadeau and Bengio over splits", 5, 3, 0.01, False, "better"),
    ...     sentence="lora r8 is better than cox by .012 [.004, .020]",
    ... )
    >>> difference.finding, difference.n_splits
    ('better', 5)
    """

    question: str
    this: str
    to: str
    metric: str
    interval: Interval | None
    p: float | None
    p_holm: float | None
    method: Method
    n_splits: int
    n_seeds: int
    margin: float
    is_equivalent: bool
    finding: Finding
    sentence: str
    n_draws: int = 1


def configurations(repeats: Sequence[Repeat]) -> list[Configuration]:
    """Runs of equal settings as repeats of one configuration, in the order in which each is first met.

    A configuration is called by its model and by those settings in which the configurations differ.

    Examples
    --------
    >>> runs = [{"strategy.name": name, "model.size": "small", "cohort.n_labels": n}
    ...         for name, n in (("lora", 128), ("lora", 512), ("full", 512), ("full", 512))]
    >>> repeats = [
    ...     Repeat(RunRow(str(seed), "finetune", "behrt", "c"), settings, seed, settings["cohort.n_labels"], 300)
    ...     for seed, settings in enumerate(runs)
    ... ]
    >>> [(of.label, len(of.repeats)) for of in configurations(repeats)]
    [('lora · 128 labels', 1), ('lora · 512 labels', 1), ('full · 512 labels', 2)]
    """
    groups: dict[tuple[tuple[str, str], ...], list[Repeat]] = {}
    for repeat in repeats:
        key = sorted((path, str(value)) for path, value in _settings(repeat).items())
        groups.setdefault(tuple(key), []).append(repeat)
    settings = [_settings(of_one[0]) for of_one in groups.values()]
    return [
        Configuration(label, of, tuple(of_one))
        for label, of, of_one in zip(labels_of(settings), settings, groups.values(), strict=True)
    ]


def best_configurations_first(found: Iterable[Configuration]) -> list[Configuration]:
    """By the mean of the metric of choice on validation subjects, then few trainable parameters, then label.

    Where configurations differ in how many labels were drawn, those with the most come first: few labels leave few
    validation subjects, by whom a configuration may seem the best of all by luck.

    Examples
    --------
    The luckiest seed of all is of a configuration that is worse in the mean:

    >>> def of(name, *scores):
    ...     rows = [RunRow(name, "baseline", name, "c", metrics={"kept/c_index": score}) for score in scores]
    ...     return Configuration(name, {}, tuple(Repeat(row, {}, i, 100, 50) for i, row in enumerate(rows)))
    >>> [best.label for best in best_configurations_first([of("gru", 0.74, 0.62), of("cox", 0.70, 0.72)])]
    ['cox', 'gru']
    """
    of_all = list(found)
    if not of_all:
        return []
    metric = metric_of_choice([row for of in of_all for row in of.rows])
    has_label_curve = len({str(of.settings.get(N_LABELS)) for of in of_all}) > 1

    def order(of: Configuration) -> tuple[float, float, float, str]:
        score, n_trainable = of.validation_score(metric), of.rows[0].n_trainable
        return (
            -max(repeat.n_train for repeat in of.repeats) if has_label_curve else 0,
            np.inf if score is None else metric.shortfall(score),
            np.inf if n_trainable is None else n_trainable,
            of.label,
        )

    return sorted(of_all, key=order)


def median_first(rows: Sequence[RunRow]) -> list[RunRow]:
    """Runs by how near they are to the middle of their validation scores; of an even number the worse one first.

    Examples
    --------
    >>> scores = {"a": 0.70, "b": 0.60, "c": 0.65, "d": 0.80}
    >>> rows = [RunRow(name, "baseline", "gru", "c", metrics={"kept/c_index": c}) for name, c in scores.items()]
    >>> [row.run_id for row in median_first(rows)]
    ['c', 'b', 'a', 'd']
    """
    metric = metric_of_choice(rows)

    def shortfall(row: RunRow) -> float:
        score = row.score(metric)
        return float("inf") if score is None else metric.shortfall(score)

    ordered = sorted(rows, key=lambda row: (shortfall(row), row.run_id))
    middle = len(ordered) // 2
    return sorted(ordered, key=lambda row: (abs(ordered.index(row) - middle), -ordered.index(row)))


def _settings(repeat: Repeat) -> Settings:
    """Its settings, and what model it is where they do not say so."""
    told = dict(leaves(repeat.settings))
    if any(path in told for path in CHOSEN):
        return told
    row = repeat.row
    return {CHOSEN[1]: row.model} | told if row.kind == "baseline" else {CHOSEN[0]: row.strategy or row.model} | told
