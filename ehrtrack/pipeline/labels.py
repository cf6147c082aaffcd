"""Name runs, and choose the group and the colour that they have in the tracking UI."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from ehrtrack.config import RunConfig
from ehrtrack.plots.style import BLUE, GREEN, INK, ORANGE, PINK, PURPLE, RED, SKY, YELLOW
from ehrtrack.tracking import names

MODEL_KINDS = ("pretrain", "finetune", "trial", "baseline")
"""Kinds of runs that hold one model. Runs of other kinds hold several, and belong to no group."""
_STRATEGY = "strategy.name"
_PALETTE = (BLUE, ORANGE, PINK, SKY, YELLOW, GREEN, RED, PURPLE)
_KNOWN = ("frozen", "lora", "dora", "bitfit", "lp-ft", "full", "scratch")
_REFERENCES = ("cox", "logistic")


def transformer_label(config: RunConfig) -> str:
    """The strategy's name, with the rank of adapters, and that the head is, or begins at, a ridge regression.

    Examples
    --------
    >>> from ehrtrack.config import parse_config
    >>> transformer_label(parse_config({"study": "s", "data": {"path": "d"}, "strategy": {"name": "lora", "rank": 4}}))
    'lora r4'
    """
    strategy = config.strategy
    rank = getattr(strategy, "rank", None)
    of_rank = "" if rank is None else f" r{rank}"
    return strategy.name + of_rank + (" ridge" if getattr(strategy, "head", "") == "ridge" else "")


def run_name(config: RunConfig, model: str, *, has_size: bool) -> str:
    """The name of a run: its model, the size of a transformer, and the seeds by which repeats differ.

    A seed of 0 is not shown.

    Examples
    --------
    >>> from ehrtrack.config import parse_config
    >>> told = {"study": "s", "data": {"path": "d", "split": {"seed": 1}}, "model": {"size": "small"}}
    >>> config = parse_config(told | {"runtime": {"seed": 2}})
    >>> run_name(config, "lora r8", has_size=True)
    'lora r8 · small · seed 2 · split 1'
    >>> run_name(parse_config(told | {"data": {"path": "d"}}), "cox", has_size=False)
    'cox'
    """
    parts = [model, *([config.model.title] if has_size else [])]
    seed, split_seed = config.runtime.seed, getattr(config.data.split, "seed", 0)
    parts += [f"seed {seed}"] if seed else []
    parts += [f"split {split_seed}"] if split_seed else []
    return " · ".join(parts)


def without_strategy(params: Mapping[str, str | int | float | bool], kind: str) -> dict[str, str | int | float | bool]:
    """The params of a run. The strategy is left out if the run holds several models, as the UI groups runs by it."""
    return {name: value for name, value in params.items() if kind in MODEL_KINDS or name != _STRATEGY}


def colour_tags(model: str) -> dict[str, str]:
    """The tag with a run's colour in the UI, which is the same for all runs of a strategy or of a baseline.

    >>> colour_tags("lora r4") == colour_tags("lora r16"), colour_tags("")
    (True, {})
    """
    kind = model.partition(" ")[0]
    if not kind:
        return {}
    number = _KNOWN.index(kind) if kind in _KNOWN else zlib.crc32(kind.encode()) % len(_PALETTE)
    return {names.COLOUR: INK if kind in _REFERENCES else _PALETTE[number]}


def value_text(value: object) -> str:
    """A setting or a fact of a fit as readable text; numbers have four digits, also within a list or a table.

    >>> value_text(0.000123456789), value_text(12345), value_text({"a": [0.5, 1 / 3]})
    ('0.0001235', '12345', 'a 0.5, 0.3333')
    """
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value_text(of_it)}" for name, of_it in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return str(value)
