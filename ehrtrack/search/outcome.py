"""What the trials of a sweep came to: one table, the best of them, and what stopping trials early saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
import polars as pl
from optuna.trial import FrozenTrial, TrialState

from ehrtrack.errors import ConfigError
from ehrtrack.search.drawing import DEFAULTS, Direction, Values

SLOT, DRAW, DEATHS, FAILURE = "slot", "draw", "deaths", "failure"
"""Attributes of a trial: which of the budget it is, from 0; the how-manieth draw for it; workers that died with it; why
it failed."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def trials_of(study: optuna.Study, *, n_trials: int) -> list[FrozenTrial]:
    """The trials within a budget: a study may have been given a larger one since.

    Of two that ended in one place of it the later one counts: the worker of the earlier one had lost the place.
    """
    within = [t for t in study.get_trials(deepcopy=False) if t.user_attrs.get(SLOT, 0) < n_trials]
    counts = {_slot(trial): trial.number for trial in within if trial.state in ENDED}
    return [trial for trial in within if trial.state not in ENDED or counts[_slot(trial)] == trial.number]


def state_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> str:
    """In a word: a trial that was cut off, and whose settings another trial went on with, did not fail."""
    if trial.state != TrialState.FAIL or FAILURE in trial.user_attrs:
        return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
    again = (t for t in trials if t.number > trial.number and _draw_of(t) == _draw_of(trial))
    return "cut off" if any(again) else "failed"


def _draw_of(trial: FrozenTrial) -> tuple[object, object]:
    return trial.user_attrs.get(SLOT), trial.user_attrs.get(DRAW)


def trials_table(
    trials: Sequence[FrozenTrial], names: Sequence[str] = ("value",), runs: Mapping[int, Sequence[str]] | None = None
) -> pl.DataFrame:
    """One row a trial: number, place in the budget, state, scores (null unless complete), epochs, time, parameters.

    Parameters
    ----------
    names : of the columns of the scores
    runs : ids by the place in the budget, from 1
    """
    settings = {trial.number: {**trial.user_attrs.get(DEFAULTS, {}), **trial.params} for trial in trials}
    parameters = sorted({name for of in settings.values() for name in of})
    rows = [
        {"number": trial.number, "trial": _slot(trial) + 1, "state": state_of(trial, trials)}
        | dict.fromkeys(names)
        | (dict(zip(names, trial.values, strict=True)) if trial.state == TrialState.COMPLETE else {})
        | {
            "last_epoch": trial.last_step,
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            "is_default": DEFAULTS in trial.user_attrs,
            "runs": " ".join((runs or {}).get(_slot(trial) + 1, ())),
        }
        | {name: settings[trial.number].get(name) for name in parameters}
        for trial in trials
    ]
    schema = {"number": pl.Int64, "trial": pl.Int64, "state": pl.String, **dict.fromkeys(names, pl.Float64)}
    schema |= {"last_epoch": pl.Int64, "seconds": pl.Float64, "is_default": pl.Boolean, "runs": pl.String}
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)


@dataclass(frozen=True)
class Best:
    """The best complete trial.

    Attributes
    ----------
    value : its score; of two scores the first
    overrides : its settings, by dotted path
    values : its scores
    is_default : whether it has the settings of the configuration itself
    slot : its place in the budget, from 0
    """

    value: float
    overrides: Values
    values: tuple[float, ...] = ()
    is_default: bool = False
    slot: int = 0


def best_of(trials: Sequence[FrozenTrial], directions: Sequence[Direction] = ("maximize",)) -> Best:
    """The best complete trial, read once: the first of those that are equal.

    Of two scores it is the one of the front that is nearest to the best value of each, in units of the front's ranges.

    Raises
    ------
    ConfigError
        If no trial is complete.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        reasons = [str(trial.user_attrs[FAILURE]) for trial in trials if FAILURE in trial.user_attrs]
        why = f" (the last one that failed: {reasons[-1]})" if reasons else ""
        raise ConfigError(
            f"none of the {len(trials)} trials ran to its end{why}; run more, or set search.pruner = 'none'"
        )
    front = front_of(complete, directions)
    lowest = [min(trial.values[n] for trial in front) for n in range(len(directions))]
    highest = [max(trial.values[n] for trial in front) for n in range(len(directions))]

    def shortfall(trial: FrozenTrial) -> float:
        parts = (
            ((high - value) if direction == "maximize" else (value - low)) / ((high - low) or 1.0)
            for value, low, high, direction in zip(trial.values, lowest, highest, directions, strict=True)
        )
        return float(sum(part**2 for part in parts))

    best = min(front, key=lambda trial: (shortfall(trial), _slot(trial)))
    return Best(best.values[0], dict(best.params), tuple(best.values), DEFAULTS in best.user_attrs, _slot(best))


def front_of(trials: Sequence[FrozenTrial], directions: Sequence[Direction]) -> list[FrozenTrial]:
    """The complete trials that no other beats in one score and equals in the others; with one score the best."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return [trial for trial in complete if not any(_beats(other, trial, directions) for other in complete)]


def _beats(this: FrozenTrial, other: FrozenTrial, directions: Sequence[Direction]) -> bool:
    gains = [
        mine - its if direction == "maximize" else its - mine
        for mine, its, direction in zip(this.values, other.values, directions, strict=True)
    ]
    return bool(min(gains) >= 0 and max(gains) > 0)


def n_without_gain(trials: Sequence[FrozenTrial], directions: Sequence[Direction]) -> int:
    """How many trials have ended since the last one that was better than, or not comparable with, all before it."""
    ended = sorted((t for t in trials if t.state in ENDED), key=lambda t: (str(t.datetime_complete), t.number))
    seen: list[FrozenTrial] = []
    count = 0
    for trial in ended:
        is_gain = trial.state == TrialState.COMPLETE and not any(
            _beats(before, trial, directions) or before.values == trial.values for before in seen
        )
        count = 0 if is_gain else count + 1
        seen += [trial] if trial.state == TrialState.COMPLETE else []
    return count


def hours_of(trials: Sequence[FrozenTrial]) -> float:
    """That the trials which have ended took, over all workers."""
    return sum(t.duration.total_seconds() for t in trials if t.state in ENDED and t.duration) / 3600


@dataclass(frozen=True)
class Effort:
    """What the trials cost, and what stopping some early saved.

    Attributes
    ----------
    n_complete, n_pruned : trials
    n_epochs : that they trained
    n_epochs_without : that they would have trained had no trial been stopped, each of those that were as long as the
        others are in the mean
    """

    n_complete: int
    n_pruned: int
    n_epochs: int
    n_epochs_without: float

    @property
    def saved(self) -> float:
        """The share of epochs that was saved."""
        return 1 - self.n_epochs / self.n_epochs_without if self.n_epochs_without else 0.0


def effort_of(trials: Sequence[FrozenTrial]) -> Effort:
    """Of the trials that ended, by the values that they reported after each epoch."""
    epochs = {state: [len(t.intermediate_values) for t in trials if t.state == state] for state in ENDED}
    complete, pruned = epochs[TrialState.COMPLETE], epochs[TrialState.PRUNED]
    mean = sum(complete) / len(complete) if complete else 0.0
    without = sum(complete) + sum(max(mean, n) for n in pruned)
    return Effort(len(complete), len(pruned), sum(complete) + sum(pruned), without)


def _slot(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(SLOT, trial.number))
