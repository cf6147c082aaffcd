"""A search space beside a configuration: which settings are meant, and whether each could be one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from ehrtrack.config import PLUGIN_SECTIONS, RunConfig
from ehrtrack.errors import ConfigError
from ehrtrack.evaluation.labels import BASE
from ehrtrack.models.behrt import SIZES
from ehrtrack.plugins import nearest
from ehrtrack.search.drawing import Values, in_order
from ehrtrack.search_space import Choices, Range, Scalar
from ehrtrack.strategies.base import strategy_of
from ehrtrack.study.values import PRETRAIN, SECTIONS, applies, scalar_at, section_of, with_values

SAME_FOR_ALL = ("cohort", "runtime", "data.split", "data.path", "data.fold")
"""What differs between no two trials: they are scored on the same subjects, by the same labels and the same seed."""


def meant(config: RunConfig, settled: RunConfig) -> RunConfig:
    """The configuration without what is searched where nothing was asked for, if its choices have it not.

    Parameters
    ----------
    settled : with the objective that fits the labels
    """
    if "parameters" in config.search.model_fields_set:
        return config
    names = _names(settled)
    kept = {
        path: parameter
        for path, parameter in config.search.parameters.items()
        if any(applies(settled, path, chosen) for chosen in names)
    }
    if len(kept) == len(config.search.parameters):
        return config
    if not kept:
        raise ConfigError(
            f"strategy {settled.strategy.name} with objective {settled.objective.name} has none of the settings that "
            "are searched where none are named; name some in [search.parameters]"
        )
    return config.model_copy(update={"search": config.search.model_copy(update={"parameters": kept})})


def check_space(config: RunConfig) -> None:
    """Refuse, before anything is fitted, what could be searched in no trial.

    Raises
    ------
    ConfigError
        If a path is no setting of what is fitted, differs between trials that then could not be compared, has a value
        that is none, or has a condition that no trial meets.

    Examples
    --------
    >>> from ehrtrack.config import parse_config
    >>> config = {"study": "icu", "data": {"path": "meds"}, "strategy": {"name": "full"}}
    >>> check_space(parse_config(config | {"search": {"parameters": {"strategy.rank": {"choices": [2, 4]}}}}))
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ehrtrack.errors.ConfigError: search.parameters.'strategy.rank' is a setting of no trial: strategy is full; ...
    """
    recipe, space = config.search.recipe, config.search.parameters
    names = _names(config)
    for path in in_order(space):
        where = f"search.parameters.{path!r}"
        if section_of(path) not in SECTIONS[recipe] or path == PRETRAIN:
            known = sorted(set(SECTIONS[recipe]) - {"cohort", "runtime", PRETRAIN})
            raise ConfigError(
                f"{where} is no setting of a {recipe}{nearest(section_of(path), known)}; there are: {', '.join(known)}"
            )
        if any(path == same or path.startswith(f"{same}.") for same in SAME_FOR_ALL):
            raise ConfigError(
                f"{where} differs between trials, and then their scores are of other subjects, labels or seeds and do "
                "not compare; leave it out. Seeds and splits are for a study, `ehrtrack study run`"
            )
        of = [chosen for chosen in names if applies(config, path, chosen)]
        if not of:
            section = section_of(path)
            own = getattr(config, section).name
            those = sorted({str(chosen.get(f"{section}.name", own)) for chosen in names})
            raise ConfigError(
                f"{where} is a setting of no trial: {section} is {' or '.join(those)}; search {section}.name too, or "
                "leave it out"
            )
        for chosen in of:
            for value in _values(space[path]):
                with_values(config, {**chosen, path: value})
        for other, wanted in space[path].when.items():
            _check_condition(config, where, other, wanted)
    if recipe == "finetune" and not config.init.run and BASE not in space:
        for chosen in names:
            made, _ = with_values(config, chosen)
            if reason := strategy_of(made.strategy).refuse(is_pretrained=False, width=SIZES[made.model.size].width):
                raise ConfigError(reason)


def _check_condition(config: RunConfig, where: str, path: str, wanted: Scalar | tuple[Scalar, ...]) -> None:
    asked = set(wanted) if isinstance(wanted, tuple) else {wanted}
    searched = config.search.parameters.get(path)
    if searched is None:
        may_be = {scalar_at(config, path)}
    elif isinstance(searched, Choices):
        may_be = set(searched.choices)
    else:
        raise ConfigError(f"{where} has a condition on {path}, which is drawn from a range; give that one choices")
    if not asked & may_be:
        raise ConfigError(
            f"{where} is drawn where {path} is {', '.join(map(str, asked))}, and in no trial it is so; there it is "
            f"{', '.join(map(str, may_be))}"
        )


def own_values(config: RunConfig) -> Values:
    """The values that the configuration itself has at the paths that are searched: those of the first trial.

    Examples
    --------
    >>> from ehrtrack.config import parse_config
    >>> rate = {"low": 0.1, "high": 1.0, "when": {"strategy.name": "full"}}
    >>> space = {"strategy.rank": {"choices": [4, 8]}, "train.lr": rate}
    >>> config = {"study": "icu", "data": {"path": "meds"}, "strategy": {"name": "lora"}}
    >>> own_values(parse_config(config | {"search": {"parameters": space}}))
    {'strategy.rank': 8}
    """
    space = config.search.parameters
    known = {path: value for path in space if (value := scalar_at(config, path)) is not None}
    named = {other: scalar_at(config, other) for path in space for other in space[path].when}
    return {
        path: value
        for path, value in known.items()
        if applies(config, path, {}) and space[path].is_met({**named, **known})
    }


def _names(config: RunConfig) -> list[Mapping[str, Scalar]]:
    """Each combination of the choices that are searched, such as strategies."""
    space = config.search.parameters
    paths = [f"{section}.name" for section in PLUGIN_SECTIONS if f"{section}.name" in space]
    return [dict(zip(paths, of, strict=True)) for of in product(*(_values(space[path]) for path in paths))]


def _values(parameter: Range | Choices) -> Iterator[Scalar]:
    """All choices, or the ends of a range."""
    if isinstance(parameter, Choices):
        yield from parameter.choices
    else:
        yield from (parameter.low, parameter.high)
