"""From predictions on the folds to a table with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.public_tables.study import Scored
from benchmarks.public_tables.tables import Table
from ehrtrack.arrays import Floats
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.resampling import Interval, drawn_counts, percentile_interval, resampled_c_index

N_RESAMPLES = 1_000
OURS = "discrete-hazards"
C_MARGIN = 0.02
IBS_MARGIN = 0.005


@dataclass(frozen=True)
class Result:
    """Mean over the folds of a model's C-index and integrated Brier score, and the same of R resamples."""

    c: float
    ibs: float
    resampled_c: Floats
    resampled_ibs: Floats

    def c_interval(self) -> Interval:
        """C-index with its interval over subjects, drawn within their folds."""
        return percentile_interval(self.c, self.resampled_c)

    def ibs_interval(self) -> Interval:
        """Integrated Brier score with its interval."""
        return percentile_interval(self.ibs, self.resampled_ibs)

    def minus(self, other: Result) -> tuple[Interval, Interval]:
        """Differences of C-index and integrated Brier score on the same resamples."""
        return (
            percentile_interval(self.c - other.c, self.resampled_c - other.resampled_c),
            percentile_interval(self.ibs - other.ibs, self.resampled_ibs - other.resampled_ibs),
        )


def risk_of(survival: Floats) -> Floats:
    """(B,) share of the evaluation range expected to be lost: the same order as a Cox model's linear predictor."""
    risk: Floats = 1 - survival.mean(axis=1)
    return risk


def squared_errors(scored: Scored, table: Table) -> Floats:
    """(B,) what each subject adds to the integrated Brier score, whose mean over subjects is the score."""
    train, test = scored.train_rows, scored.rows
    follow_up = FollowUp.of(table.days[train], table.is_event[train], table.days[test], table.is_event[test])
    errors = np.empty_like(scored.survival)
    for column, day in enumerate(scored.times):
        is_past = follow_up.outlives(day)
        weight = follow_up.weights_at(day)
        errors[:, column] = weight * (is_past - scored.survival[:, column]) ** 2
    integral: Floats = np.trapezoid(errors, scored.times, axis=1) / (scored.times[-1] - scored.times[0])
    return integral


def result_of(table: Table, parts: Sequence[Scored]) -> Result:
    """The mean over folds; a resample draws subjects within each fold, the same for every model."""
    c, ibs, resampled_c, resampled_ibs = [], [], [], []
    for fold, scored in enumerate(parts):
        days, event = table.days[scored.rows], table.is_event[scored.rows]
        risk, errors = risk_of(scored.survival), squared_errors(scored, table)
        c.append(c_index(risk, days, event))
        ibs.append(errors.mean())
        resampled_c.append(resampled_c_index(risk, days, event, n_resamples=N_RESAMPLES, seed=fold))
        blocks = drawn_counts(len(days), n_resamples=N_RESAMPLES, seed=fold)
        resampled_ibs.append(np.concatenate([counts @ errors / len(days) for _, counts in blocks]))
    return Result(float(np.mean(c)), float(np.mean(ibs)), np.mean(resampled_c, axis=0), np.mean(resampled_ibs, axis=0))


def to_markdown(results: Mapping[str, Mapping[str, Result]]) -> str:
    """One row a table and model; differences are of the discrete hazards less the model."""
    lines = [
        "| table | model | C-index (95 % interval) | IBS (95 % interval) | C-index: ours − model | IBS: ours − model |",
        "|---|---|---|---|---|---|",
    ]
    for table, models in results.items():
        for name, result in models.items():
            differences = ("", "")
            if name != OURS:
                differences = tuple(_signed(interval) for interval in models[OURS].minus(result))
            cells = [table, name, str(result.c_interval()), _four(result.ibs_interval()), *differences]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *[verdict(table, models) for table, models in results.items()]])


def verdict(table: str, models: Mapping[str, Result]) -> str:
    """Whether the discrete hazards are as near as they have to be; estimates decide, intervals say how surely."""
    ours, cox, forest = models[OURS], models["cox"], models["random-survival-forest"]
    behind = max(cox.c, forest.c) - ours.c
    worse = ours.ibs - cox.ibs
    met = behind <= C_MARGIN and worse <= IBS_MARGIN
    return (
        f"- {table}: {'met' if met else '**missed**'}. C-index {behind:+.3f} behind the better of the two (at most "
        f"{C_MARGIN}), IBS {worse:+.4f} over Cox (at most {IBS_MARGIN})"
    )


def _signed(interval: Interval) -> str:
    return f"{interval.estimate:+.4f} [{interval.lower:+.4f}, {interval.upper:+.4f}]"


def _four(interval: Interval) -> str:
    return f"{interval.estimate:.4f} [{interval.lower:.4f}, {interval.upper:.4f}]"
