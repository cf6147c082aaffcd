"""What a trial draws: its settings, by the sampler, from the search space; and when it is stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial, FrozenTrial

from ehrtrack.search_space import Choices, Range, Scalar, SearchConfig

Space = Mapping[str, Range | Choices]
"""What is searched, by dotted path."""
Values = dict[str, Scalar]
"""Settings by dotted path."""
Direction = Literal["minimize", "maximize"]
Applies = Callable[[str, Mapping[str, Scalar]], bool]
"""Whether a path is a setting beside the values that are drawn already: the rank is where the strategy is LoRA."""

DEFAULTS, DRAWN = "defaults", "drawn"
"""Attributes of a trial: of the one with the settings of the configuration itself, those settings; of one whose values
are all drawn, that they are."""


def _everywhere(path: str, values: Mapping[str, Scalar]) -> bool:
    return True


def suggest(
    trial: BaseTrial, space: Space, fixed: Mapping[str, Scalar] | None = None, *, applies: Applies = _everywhere
) -> Values:
    """One trial's settings, by dotted path. What is meaningless beside the others is not drawn.

    Parameters
    ----------
    fixed : what the configuration has at the paths that conditions name
    applies : asked of each path with all values that are known by then
    """
    if DEFAULTS in trial.user_attrs:
        return dict(trial.params)
    drawn: Values = {}
    for path in in_order(space):
        known = {**(fixed or {}), **drawn}
        if applies(path, known) and space[path].is_met(known):
            drawn[path] = _suggest(trial, path, space[path])
    trial.set_user_attr(DRAWN, True)
    return drawn


def in_order(space: Space) -> list[str]:
    """The paths, those that others depend on before them: choices first, and what a condition names before it.

    >>> list(in_order({"strategy.rank": Range(low=1, high=8), "strategy.name": Choices(choices=("lora", "full"))}))
    ['strategy.name', 'strategy.rank']
    """
    ordered: list[str] = []

    def add(path: str, above: tuple[str, ...] = ()) -> None:
        for other in space[path].when:
            if other in space and other not in (*above, path):
                add(other, (*above, path))
        if path not in ordered:
            ordered.append(path)

    for path in sorted(space, key=lambda path: not path.endswith((".name", ".rule"))):
        add(path)
    return ordered


def _suggest(trial: BaseTrial, name: str, parameter: Range | Choices) -> Scalar:
    if isinstance(parameter, Choices):
        return cast(Scalar, trial.suggest_categorical(name, parameter.choices))
    if parameter.is_whole:
        step = 1 if parameter.step is None else int(parameter.step)
        return trial.suggest_int(name, int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def distribution_of(parameter: Range | Choices) -> BaseDistribution:
    """As Optuna has it."""
    if isinstance(parameter, Choices):
        return CategoricalDistribution(parameter.choices)
    if parameter.is_whole:
        step = 1 if parameter.step is None else int(parameter.step)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def within(space: Space, values: Mapping[str, Scalar]) -> Values:
    """Those of some values that could be drawn.

    >>> within({"train.lr": Range(low=1e-4, high=1e-2), "strategy.rank": Choices(choices=(2, 4))},
    ...        {"train.lr": 1e-3, "strategy.rank": 8})
    {'train.lr': 0.001}
    """
    return {path: value for path, value in values.items() if path in space and _may_be(space[path], value)}


def _may_be(parameter: Range | Choices, value: Scalar) -> bool:
    if isinstance(parameter, Choices):
        return any(value == choice and type(value) is type(choice) for choice in parameter.choices)
    if isinstance(value, bool | str) or (parameter.is_whole and value != int(value)):
        return False
    return bool(distribution_of(parameter)._contains(float(value)))


def open_study(
    config: SearchConfig,
    *,
    name: str,
    storage: optuna.storages.BaseStorage,
    seed: int,
    directions: Sequence[Direction] = ("maximize",),
) -> optuna.Study:
    """Begin the study, or join it if it is there.

    Parameters
    ----------
    directions : of each score, ``maximize`` or ``minimize``
    """
    return optuna.create_study(
        study_name=name,
        storage=storage,
        directions=list(directions),
        sampler=sampler(config, seed),
        pruner=pruner(config),
        load_if_exists=True,
    )


def name_scores(study: optuna.Study, titles: Sequence[str]) -> None:
    """Have the dashboard call the scores of trials by these titles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(titles))


def sampler(config: SearchConfig, *seed: int) -> optuna.samplers.BaseSampler:
    """Draws by these numbers alone and by what is known of other trials, whichever worker asks."""
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if config.sampler == "random":
        return optuna.samplers.RandomSampler(seed=mixed)
    is_joint = config.sampler == "tpe"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # grouped: settings of different choices have spaces of their own
        return optuna.samplers.TPESampler(
            seed=mixed, n_startup_trials=config.n_startup_trials, multivariate=is_joint, group=is_joint
        )


def pruner(config: SearchConfig) -> optuna.pruners.BasePruner:
    """What stops a trial that lags behind the others."""
    if not config.prunes:
        return optuna.pruners.NopPruner()
    if config.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, config.n_warmup_epochs))
    return optuna.pruners.MedianPruner(n_startup_trials=config.n_startup_trials, n_warmup_steps=config.n_warmup_epochs)


def all_drawn(trial: optuna.Trial | FrozenTrial, space: Space) -> bool:
    """Whether a trial has all values that it draws."""
    facts = trial.user_attrs
    return DRAWN in facts or DEFAULTS in facts or set(trial.params) == set(space)
