"""A search as its sweep's run keeps it: enough to draw and judge it again where its database is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from ehrtrack.evaluation.metric_table import METRICS, Metric
from ehrtrack.search.drawing import Direction
from ehrtrack.search.outcome import Best, Effort, best_of, effort_of
from ehrtrack.search_space import SearchConfig

SEARCH = "sweep/search.json"


@dataclass(frozen=True)
class Searched:
    """The trials of a sweep.

    Attributes
    ----------
    config : the search that was asked for
    metrics : keys of those that trials were scored by
    trials : of the budget
    why_over : why the budget was not used up; empty if it was
    runs : ids of the runs of a trial, by its place in the budget, from 1
    """

    config: SearchConfig
    metrics: tuple[str, ...]
    trials: Sequence[FrozenTrial] = field(repr=False)
    why_over: str = ""
    runs: Mapping[int, Sequence[str]] = field(default_factory=dict, repr=False)

    @property
    def scored_by(self) -> list[Metric]:
        """The metrics; the first is the one that curves show."""
        return [METRICS[key] for key in self.metrics]

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Of each score, in Optuna's words."""
        return directions_of(self.scored_by)

    @property
    def best(self) -> Best:
        """The trial that is refitted."""
        return best_of(self.trials, self.directions)

    @property
    def effort(self) -> Effort:
        """What the trials cost."""
        return effort_of(self.trials)

    @property
    def of_whom(self) -> str:
        """The subjects that scores are of, in words."""
        return f"{self.config.folds}-fold cross-fitted" if self.config.folds else "validation"


def directions_of(metrics: Sequence[Metric]) -> tuple[Direction, ...]:
    """Of each metric ``maximize`` or ``minimize``.

    >>> directions_of([METRICS["c_index"], METRICS["ibs"]])
    ('maximize', 'minimize')
    """
    return tuple("maximize" if metric.better == "higher" else "minimize" for metric in metrics)


def to_json(searched: Searched) -> dict[str, Any]:
    """Plain values, the inverse of `from_json`."""
    return {
        "config": searched.config.model_dump(mode="json"),
        "metrics": list(searched.metrics),
        "why_over": searched.why_over,
        "runs": {str(place): list(ids) for place, ids in searched.runs.items()},
        "trials": [_plain(trial) for trial in searched.trials],
    }


def from_json(value: Mapping[str, Any]) -> Searched:
    """The search that `to_json` wrote down."""
    return Searched(
        SearchConfig.model_validate(value["config"]),
        tuple(value["metrics"]),
        [_trial(plain) for plain in value["trials"]],
        value["why_over"],
        {int(place): ids for place, ids in value["runs"].items()},
    )


def _plain(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {name: distribution_to_json(of) for name, of in trial.distributions.items()},
        "intermediate_values": {str(step): value for step, value in trial.intermediate_values.items()},
        "user_attrs": trial.user_attrs,
        "start": trial.datetime_start and trial.datetime_start.isoformat(),
        "complete": trial.datetime_complete and trial.datetime_complete.isoformat(),
    }


def _trial(plain: Mapping[str, Any]) -> FrozenTrial:
    start, complete = (plain[name] and datetime.fromisoformat(plain[name]) for name in ("start", "complete"))
    return FrozenTrial(
        number=plain["number"],
        trial_id=plain["number"],
        state=TrialState[plain["state"]],
        value=None,
        values=plain["values"],
        params=plain["params"],
        distributions={name: json_to_distribution(of) for name, of in plain["distributions"].items()},
        intermediate_values={int(step): value for step, value in plain["intermediate_values"].items()},
        user_attrs=plain["user_attrs"],
        system_attrs={},
        datetime_start=start,
        datetime_complete=complete,
    )
