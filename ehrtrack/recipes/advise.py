"""What studies with as many labels suggest for a cohort, and what it will take, before any GPU is rented.

The studies are the project's own (`ehrtrack.study.evidence`). Sizes are counted on the config's own model and
cohort; speed is measured on the machine that is asked, in a few seconds of real training steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ehrtrack.config import RunConfig, check_objective, override
from ehrtrack.pipeline.cost import Cost, measure_adaptation
from ehrtrack.pipeline.prepare import CohortRecords, prepare_cohort, settle
from ehrtrack.strategies.base import parameter_table
from ehrtrack.study.evidence import (
    NEAR,
    Result,
    Setting,
    Standing,
    best_baselines,
    nearest,
    ratio,
    read_results,
    standings,
)
from ehrtrack.training.ranks import join_ranks

FEW_EVENTS = 100
"""Training events below which no strategy can be told from another."""


@dataclass(frozen=True)
class Option:
    """A strategy with its settings, and what it will take on this machine."""

    overrides: Mapping[str, Any]
    n_parameters: int
    n_trainable: int
    cost: Cost


@dataclass(frozen=True)
class Advice:
    """What is known of the cohort, what studies of its size found, and what the best network of theirs takes here.

    Attributes
    ----------
    subjects, events : of the training split
    tokens : of the training subjects, [CLS] included, cut at `data.max_tokens`
    price : of an hour of a machine, or None
    settings : what each study found at the number of labels nearest to the cohort's
    baselines : the best of each study
    network : the one nearest to the best of each study
    option : the network on the config's model and cohort
    """

    subjects: int
    events: int
    tokens: int
    device: str
    price: float | None
    settings: tuple[Setting, ...]
    baselines: tuple[Result, ...]
    network: Standing
    option: Option

    def to_text(self) -> str:
        """As lines for a terminal."""
        mean = self.tokens / self.subjects
        lines = [
            f"{self.subjects:,} labelled training subjects, {self.events:,} with the outcome; {self.tokens:,} tokens, "
            f"{mean:.0f} a subject"
        ]
        if self.events < FEW_EVENTS:
            lines.append(
                f"with {self.events} events no strategy can be told from another (below some {FEW_EVENTS}); "
                "lengthen cohort.horizon_days or find more subjects first"
            )
        lines += ["", *self._evidence(), "", *self._baseline_lines(), "", *self._option_lines()]
        lines += [
            "",
            f"Speed was measured on this machine ({self.device}) with batches of this cohort. There is no measurement "
            "of another device here to go by: run this command on a rented one first; it takes seconds.",
        ]
        return "\n".join(lines)

    def _evidence(self) -> list[str]:
        """What the studies found, and how near they are."""
        far = [setting for setting in self.settings if ratio(setting.n_labels, self.subjects) > NEAR]
        lines = ["best baseline and best network of our studies, by test C-index (projects/*/README.md):"]
        lines += [f"  {setting.to_line()}" for setting in self.settings]
        if far:
            which = "all of them" if len(far) == len(self.settings) else ", ".join(setting.study for setting in far)
            lines.append(
                f"  {which}: more than {NEAR:g} times as many labels or as few, so that this is a guess; a study of "
                "your own decides (`ehrtrack init`, `ehrtrack study run`)"
            )
        return lines

    def _baseline_lines(self) -> list[str]:
        """The baselines to fit first, and whether a network was ever ahead of one."""
        both = [
            (baseline.c_index, network.c_index)
            for setting in self.settings
            if (baseline := setting.best(is_baseline=True)) and (network := setting.best(is_baseline=False))
        ]
        ahead = sum(network > baseline for baseline, network in both)
        return [
            "fit first, in minutes:",
            *(f"  {_as_words(baseline.settings)}" for baseline in self.baselines),
            f"  a network was above the best baseline in {ahead} of {len(both)}; whether by more than chance is in the "
            "studies' pages",
        ]

    def _option_lines(self) -> list[str]:
        """The network to compare with it, and what that takes."""
        cost = self.option.cost
        money = "" if self.price is None else f", {cost.hours * self.price:,.2f} at {self.price:g} an hour"
        return [
            f"then compare: {_described(self.network)}",
            "  settings    " + _as_words(self.option.overrides),
            *self._pretraining_line(),
            f"  parameters  {self.option.n_trainable:,} trainable of {self.option.n_parameters:,}",
            f"  memory      {cost.megabytes:,.0f} MB for weights, gradients, AdamW and one batch",
            f"  speed       {cost.tokens_per_second:,.0f} tokens a second"
            + (f", and {cost.once_seconds:,.0f} s once for the encoder's states" if cost.once_seconds else ""),
            f"  time        {duration(cost.hours)} for {cost.of_what}{money}",
        ]

    def _pretraining_line(self) -> list[str]:
        """By what the network has to be pretrained, where it is."""
        result = self.network.result
        if not result.pretraining:
            return []
        encoder = {path: value for path, value in result.settings.items() if path.startswith("model.")}
        return ["  pretrained  " + _as_words({"objective.name": result.pretraining} | encoder)]


def _described(standing: Standing) -> str:
    """A network, and how near it was to the best."""
    n = standing.n_studies
    score = f"{standing.shortfall:.3f}".removeprefix("0")
    far = "the best network" if standing.shortfall < 0.0005 else f"{score} below the best network on average"
    return f"{standing.result.model}, {far} of {n} {'study' if n == 1 else 'studies'}"


def _as_words(settings: Mapping[str, Any]) -> str:
    """To be pasted behind a command.

    >>> _as_words({"baseline.name": "gradient-boosting", "baseline.learning_rates": [0.2, 0.1]})
    '--baseline.name gradient-boosting --baseline.learning_rates [0.2,0.1]'
    """
    return " ".join(f"--{name} {_as_word(value)}" for name, value in settings.items())


def _as_word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def advise(config: RunConfig, *, price: float | None = None, seconds: float = 3.0) -> Advice:
    """Look at the cohort, find what was best with about as many labels, and measure what that takes here.

    The token store that this makes is the one training from scratch will open.

    Parameters
    ----------
    price : of an hour of the machine that is asked
    seconds : how long the steps of the network are measured

    Raises
    ------
    EhrtrackError
        If the configuration or the data cannot be used.
    """
    check_objective(config, "outcome")
    config = settle(config)
    records = prepare_cohort(config)
    rows = records.rows["train"]
    lengths = np.minimum(records.store.n_tokens[rows] + 1, config.data.max_tokens)
    ranks = join_ranks(config.runtime.device)
    settings = tuple(nearest(read_results(), len(rows)))
    network = standings(settings)[0]
    return Advice(
        subjects=len(rows),
        events=int(records.outcomes.is_event[rows].sum()),
        tokens=int(lengths.sum()),
        device=f"{ranks.device}, {torch.get_num_threads()} threads"
        if ranks.device.type == "cpu"
        else str(ranks.device),
        price=price,
        settings=settings,
        baselines=tuple(best_baselines(settings)),
        network=network,
        option=_option(config, records, network.result.settings, seconds=seconds),
    )


def _option(config: RunConfig, records: CohortRecords, overrides: Mapping[str, Any], *, seconds: float) -> Option:
    """A strategy on the config's model and cohort."""
    chosen = override(config, {**overrides, "init.embeddings": ""})  # what a step costs does not depend on the weights
    ranks = join_ranks(config.runtime.device)
    adapted, cost = measure_adaptation(chosen, records, ranks, seconds=seconds)
    counts = parameter_table(adapted.model, adapted.strategy).row(-1, named=True)
    return Option(overrides, counts["total"], counts["trainable"], cost)


def duration(hours: float) -> str:
    """Hours for people.

    >>> duration(0.001), duration(1), duration(30)
    ('4 s', '60 min', '30.0 h')
    """
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1.5 else f"{hours:.1f} h"
