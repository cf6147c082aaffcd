"""Configurations over repeats: seeds and splits of one configuration are one row, on which differences rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ehrtrack.evaluation.benchmark import RunRow
from ehrtrack.survival.resampling import Interval

Method = Literal["Nadeau and Bengio over splits", "paired bootstrap within the split"]
Finding = Literal["better", "worse", "equivalent", "no difference shown", "not tested"]


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

    The split of a repeat is its cohort: `row.cohort_fingerprint`.
    """

    row: RunRow
    settings: Mapping[str, str | int | float | bool]
    seed: int
    n_train: int
    n_test: int


@dataclass(frozen=True)
class Configuration:
    """The repeats of one configuration.

    Attributes
    ----------
    label : by the settings in which the configurations differ, such as ``lora r8 · small``
    settings : as in `Repeat`
    repeats : at least one
    """

    label: str
    settings: Mapping[str, str | int | float | bool]
    repeats: tuple[Repeat, ...] = field(repr=False)


@dataclass(frozen=True)
class Difference:
    """A difference between two configurations in one metric, over their repeats.

    Attributes
    ----------
    question : that it answers, in words; empty of a difference to the reference that nobody asked about by name
    this, to : labels of the configurations
    metric : key in the metric table
    interval : of this minus to, at 95 %; None where it could not be tested (`finding` is then "not tested")
    p, p_holm : two-sided; the latter adjusted by Holm over all differences that were asked about
    method, n_splits, n_seeds : how the interval was made, and from how much
    margin : of equivalence
    is_equivalent : by two one-sided tests at 5 %
    finding : what may be said
    sentence : that says it, such as "lora r8 is better than cox by .012 [.004, .020]"
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
