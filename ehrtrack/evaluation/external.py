"""Evaluation of a model on subjects of another dataset: every number with an interval, and beside other models.

There are no training subjects here. What measures take from them (the censoring, and the population's curve) is that of
the subjects who are evaluated, so that no number depends on data that are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl

from ehrtrack.arrays import Floats, Ints
from ehrtrack.errors import NotMeasurable
from ehrtrack.evaluation.benchmark import verdict_of
from ehrtrack.evaluation.evaluate import evaluate
from ehrtrack.evaluation.report import Report
from ehrtrack.evaluation.split import Context, Split
from ehrtrack.runlog import Task
from ehrtrack.survival.bootstrap import FEWER_RESAMPLES, paired_difference
from ehrtrack.survival.brier import brier_at
from ehrtrack.survival.calibration_curve import calibration_curve, observed_to_expected
from ehrtrack.survival.classes import Classes, auroc_difference
from ehrtrack.survival.discrimination import antolini_c, average_precision, precision_recall_table
from ehrtrack.survival.in_the_large import fit_in_the_large
from ehrtrack.survival.resampling import Interval, drawn_counts, percentile_interval

Number = Callable[[Split], float]

PAIRED_SCHEMA: dict[str, type[pl.DataType]] = {
    "against": pl.String,
    "measure": pl.String,
    "difference": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "verdict": pl.String,
    "left_out": pl.String,
}


def _skill_against_population(split: Split) -> float:
    trivial = replace(split, survival=np.tile(split.population, (len(split.survival), 1)), incidence=None)
    return 1 - split.ibs / trivial.ibs


def _ici(split: Split) -> float:
    return calibration_curve(split.risk, split.follow_up, horizon_days=split.horizon_days).ici


def _average_precision(split: Split) -> float:
    return average_precision(precision_recall_table(split.risk, split.follow_up, horizon_days=split.horizon_days))


NUMBERS: Mapping[str, Number] = {
    "ibs": lambda split: split.ibs,
    "ibs_skill": _skill_against_population,
    "brier": lambda split: brier_at(split.risk, split.follow_up, horizon_days=split.horizon_days),
    "observed_to_expected": lambda split: observed_to_expected(
        split.risk, split.follow_up, horizon_days=split.horizon_days
    ),
    "ici": _ici,
    "antolini_c": lambda split: antolini_c(split.survival, split.grid, split.follow_up),
    "average_precision": _average_precision,
}
"""Measures whose interval is that of plain resamples; the others bring one of their own."""
PAIRED: Mapping[str, Number] = {name: NUMBERS[name] for name in ("ibs", "brier")}
"""Errors whose difference to another model is told beside that of the C-index."""
AFTER_SHIFT: Mapping[str, Number] = {name: NUMBERS[name] for name in ("ibs", "brier", "ici")}


def evaluate_externally(split: Split, context: Context, *, task: Task = "survival") -> Report:
    """Every measure of subjects who are of no training, with intervals, and recalibration in the large.

    Parameters
    ----------
    split : whose ``training`` are the outcomes of the evaluated subjects themselves

    Returns
    -------
    As `evaluate.evaluate`, and of survival models also the interval of each of `NUMBERS`; ``in_the_large``, the log of
    the factor of all hazards that brings the mean risk to the observed one; and ``in_the_large_...``, measures after
    it. The factor is fitted on the subjects on whom they are computed: as it is one number, that flatters them little.

    Examples
    --------
    Half of the subjects have the event, and a risk of .4 is predicted for half of those and of .2 for everybody else:

    >>> from ehrtrack.data.outcomes import Outcomes
    >>> from ehrtrack.evaluation.split import EvaluationConfig
    >>> from ehrtrack.survival.time_grid import TimeGrid
    >>> event = np.array([True, False] * 20)
    >>> outcomes = Outcomes(np.where(event, 10.0 + np.arange(40) / 4, 30.0), event)
    >>> curves = np.where(np.arange(40) % 4 == 0, 0.6, 0.8)[:, None] ** [0, 1]
    >>> split = Split(curves, TimeGrid((0, 30)), training=outcomes, outcomes=outcomes)
    >>> report = evaluate_externally(split, Context(EvaluationConfig(n_resamples=50), seed=0))
    >>> report.text("c_index"), str(report.intervals["observed_to_expected"])
    ('0.678 [0.575, 0.753]', '2.000 [1.555, 2.500]')
    """
    report = evaluate(split, context, task=task, is_alone=True)
    if task == "classes":
        return report
    for name, interval in _intervals(split, NUMBERS, report, seed=context.seed).items():
        report.add({name: interval})
    report.include("in_the_large", partial(_in_the_large, split))
    return report


def _in_the_large(split: Split) -> Report:
    shift = fit_in_the_large(split.survival, split.follow_up, horizon_days=split.horizon_days)
    after, report = replace(split, survival=shift.apply(split.survival), incidence=None), Report()
    report.add({"in_the_large": shift.log_ratio})

    def measured(name: str, number: Number) -> dict[str, float]:
        return {name: number(after)}

    for name, number in AFTER_SHIFT.items():
        report.include(f"in_the_large_{name}", partial(measured, f"in_the_large_{name}", number))
    return report


def paired_with(split: Split, others: Mapping[str, Split], *, task: Task, n_resamples: int, seed: int) -> pl.DataFrame:
    """Differences of a model to others on the same rows, each with its paired interval.

    Parameters
    ----------
    others : what a model is called -> its predictions of the same rows, with the same outcomes

    Returns
    -------
    By `PAIRED_SCHEMA`: of labels of classes the AUROC, else the C-index and the errors `PAIRED`. The difference is this
    model's value minus the other's; of errors, lower is better.

    Examples
    --------
    The other model ranks the subjects the wrong way round:

    >>> from ehrtrack.data.outcomes import Outcomes
    >>> from ehrtrack.survival.time_grid import TimeGrid
    >>> outcomes = Outcomes(np.arange(1.0, 41.0), np.arange(40) < 30)
    >>> right, wrong = (np.linspace(*ends, 40)[:, None] ** [0, 1] for ends in ((0.1, 0.9), (0.9, 0.1)))
    >>> mine, other = (Split(curves, TimeGrid((0, 50)), outcomes, outcomes) for curves in (right, wrong))
    >>> pairs = paired_with(mine, {"other": other}, task="survival", n_resamples=50, seed=0)
    >>> pairs.select("measure", pl.col("difference").round(2), "verdict").rows()[0]
    ('c_index', 1.0, 'better')
    """
    lines: list[dict[str, object]] = []
    for name, other in others.items():
        report = Report()
        drawn = partial(_difference, split, other, n_resamples=n_resamples, seed=seed)
        if task == "classes":
            report.include("auroc", partial(drawn, "auroc"))
        else:
            report.include("c_index", partial(drawn, "c_index"))
            _add_errors(report, split, other, seed=seed)
        for measure, found in report.intervals.items():
            is_error = measure in PAIRED
            better = Interval(-found.estimate, -found.upper, -found.lower) if is_error else found
            bounds = {"difference": found.estimate, "lower": found.lower, "upper": found.upper}
            lines.append({"against": name, "measure": measure, **bounds, "verdict": verdict_of(better)})
        lines += [{"against": name, "measure": of, "left_out": why} for of, why in report.left_out.items()]
    return pl.DataFrame(lines, schema=PAIRED_SCHEMA)


def _difference(split: Split, other: Split, measure: str, *, n_resamples: int, seed: int) -> dict[str, Interval]:
    draw = {"n_resamples": n_resamples, "seed": seed}
    if measure == "auroc":
        mine = Classes(split.risk, split.outcomes.is_event, _subjects(split))
        return {measure: auroc_difference(mine, other.risk, **draw)}
    risk, days, event = split.observed
    return {measure: paired_difference(risk, other.risk, days, event, **draw, subject=split.outcomes.subject)}


def _add_errors(report: Report, split: Split, other: Split, *, seed: int) -> None:
    """The differences of `PAIRED`, on the same resamples of both models."""
    mine, theirs = (_resampled(one, PAIRED, seed=seed) for one in (split, other))

    def difference(name: str, number: Number) -> dict[str, Interval]:
        return {name: percentile_interval(number(split) - number(other), mine[name] - theirs[name])}

    for name, number in PAIRED.items():
        report.include(name, partial(difference, name, number))


def _intervals(split: Split, numbers: Mapping[str, Number], report: Report, *, seed: int) -> dict[str, Interval]:
    """Of those numbers that have a value on the subjects as they are."""
    wanted = {name: number for name, number in numbers.items() if name in report.metrics}
    drawn = _resampled(split, wanted, seed=seed)
    found: dict[str, Interval] = {}
    for name, values in drawn.items():
        interval = report.measure(f"{name}_interval", partial(percentile_interval, report.metrics[name], values))
        found |= {} if interval is None else {name: interval}
    return found


def _resampled(split: Split, numbers: Mapping[str, Number], *, seed: int) -> dict[str, Floats]:
    """(R,) each number in resamples of subjects, who stand for the censoring too; NaN where it has no value."""
    n_rows = len(split.survival)
    values = {name: np.full(FEWER_RESAMPLES, np.nan) for name in numbers}
    draws = drawn_counts(n_rows, n_resamples=FEWER_RESAMPLES, seed=seed, subject=split.outcomes.subject)
    for place, counts in draws:
        for number_of_draw, count in zip(range(place.start, place.stop), counts, strict=True):
            drawn = _rows(split, np.repeat(np.arange(n_rows), count.astype(np.int64)))
            for name, number in numbers.items():
                with suppress(NotMeasurable):
                    values[name][number_of_draw] = number(drawn)
    return values


def _rows(split: Split, rows: Ints) -> Split:
    outcomes = split.outcomes[rows]
    return replace(split, survival=split.survival[rows], training=outcomes, outcomes=outcomes, incidence=None)


def _subjects(split: Split) -> Ints:
    subject = split.outcomes.subject
    return np.arange(len(split.survival)) if subject is None else subject
