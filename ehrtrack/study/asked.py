"""The settings by which what a study found good is asked for elsewhere, as `ehrtrack advise` gives them to paste."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ehrtrack.config import RunConfig
from ehrtrack.section import Section
from ehrtrack.strategies.base import strategy_of
from ehrtrack.study.values import Recipe, section_of

OF_DATA = ("data", "cohort", "runtime")
"""Sections that say what is learned from and where. What of them a matrix names may be asked for all the same."""
NOT_ASKED = (
    *("cohort.n_labels", "cohort.labels", "data.path", "data.split"),  # with what begins like these
    *("baseline.seed", "baseline.scales_days", "model.readout_days"),
)
"""What suits a study's data alone, such as times in hours, and what repeats it."""


def asked(config: RunConfig, recipe: Recipe, matrix: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings of a baseline or a fine-tuned network that are not the defaults, and its name.

    Parameters
    ----------
    matrix : of the settings that the study's matrix names, those that mean something to this configuration

    Examples
    --------
    >>> from ehrtrack.config import parse_config
    >>> told = {"study": "s", "data": {"path": "d"}, "strategy": {"name": "full"}, "train": {"lr": 1e-4}}
    >>> asked(parse_config(told), "finetune", {"cohort.n_labels": 64, "data.vocabulary.n_value_bins": 20})
    {'strategy.name': 'full', 'train.lr': 0.0001, 'data.vocabulary.n_value_bins': 20}

    A head that is solved for has no rate:

    >>> told["strategy"] = {"name": "frozen", "head": "ridge"}
    >>> asked(parse_config(told), "finetune", {})
    {'strategy.name': 'frozen', 'strategy.head': 'ridge'}
    """
    if recipe == "baseline":
        found = _own("baseline", config.baseline)
    else:
        found = _own("strategy", config.strategy) | _own("objective", config.objective) | _own("model", config.model)
        found.pop("objective.name")
        if not strategy_of(config.strategy).solves_head:
            found["train.lr"] = config.train.lr
    beside = {path: value for path, value in matrix.items() if section_of(path) in (*OF_DATA, "init") and value != ""}
    return {path: value for path, value in (found | beside).items() if not path.startswith(NOT_ASKED)}


def _own(section: str, of: Section) -> dict[str, Any]:
    """What of a section is not its default, and what is chosen in it."""
    found = of.model_dump(mode="json", exclude_defaults=True)
    name = {"name": of.name} if hasattr(of, "name") else {}
    return {f"{section}.{key}": value for key, value in (name | found).items()}
