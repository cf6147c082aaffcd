"""Which strategy a cohort's size suggests, and what it will take, before any GPU is rented.

The rule is one of thumb, by the number of labelled training subjects. Sizes are counted on the config's own model and
cohort; speed is measured on the machine that is asked, in a few seconds of real training steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ehrtrack import plugins
from ehrtrack.config import RunConfig, check_objective, override
from ehrtrack.data.batch import Batches
from ehrtrack.pipeline.build import adapt
from ehrtrack.pipeline.cost import Cost, measure
from ehrtrack.pipeline.prepare import CohortRecords, prepare_cohort, settle
from ehrtrack.strategies.base import parameter_table
from ehrtrack.training.ranks import join_ranks

TOKEN_STEP = 256
"""Token budgets are rounded up to this."""

FEW_EVENTS = 100
"""Training events below which no strategy can be told from another."""


@dataclass(frozen=True)
class Rule:
    """What is suggested up to a number of labelled training subjects.

    Attributes
    ----------
    most_subjects : the rule holds up to this
    strategies : to try; the first is the suggestion
    lambda_rank : of the survival objective, least and most
    batch_subjects : subjects a batch, least and most
    settings : further dotted settings
    """

    most_subjects: float
    strategies: tuple[str, ...]
    lambda_rank: tuple[float, float]
    batch_subjects: tuple[int, int]
    settings: dict[str, str | int | float]


RULES = (
    Rule(1_999, ("frozen",), (0.05, 0.05), (16, 32), {"train.patience": 10}),
    Rule(
        20_000,
        ("lora",),
        (0.1, 0.1),
        (32, 64),
        {"strategy.rank": 16, "train.patience": 15, "train.clip_norm": 1.0, "train.weight_decay": 1e-5},
    ),
    Rule(float("inf"), ("lora", "full"), (0.1, 0.2), (64, 128), {}),
)

EVIDENCE = (
    "objective.lambda_rank: the ranking loss did not raise the C-index (projects/public_tables, icu_mortality, "
    "simulated_transfer) and mostly cost Brier score: begin with 0, and keep another only if it wins on validation.",
    "Under 500 labelled subjects of a simulated site (projects/simulated_transfer) full fine-tuning of a pretrained "
    "encoder was ahead of one from scratch in three splits of three, frozen by less than could be shown: try both.",
    "A strategy is a guess until it is compared: on the demo's 2,694 subjects (README) no fine-tuning beat Cox on code "
    "counts, and full, LoRA and frozen could not be told apart. Fit the baselines first: they take minutes.",
)
"""Where our own measurements disagree with the rule."""


@dataclass(frozen=True)
class Option:
    """A strategy with its settings, and what it will take on this machine."""

    overrides: dict[str, str | int | float]
    n_parameters: int
    n_trainable: int
    cost: Cost


@dataclass(frozen=True)
class Advice:
    """What is known of the cohort, and the options by the rule.

    Attributes
    ----------
    subjects, events : of the training split
    tokens : of the training subjects, [CLS] included, cut at `data.max_tokens`
    epochs : at most
    price : of an hour of a machine, or None
    has_lambda_rank : the objective has a ranking loss
    """

    subjects: int
    events: int
    tokens: int
    epochs: int
    device: str
    price: float | None
    rule: Rule
    options: list[Option]
    has_lambda_rank: bool = True

    def to_text(self) -> str:
        """As lines for a terminal."""
        low, high = self.rule.batch_subjects
        mean = self.tokens / self.subjects
        lines = [
            f"{self.subjects:,} labelled training subjects, {self.events:,} with the outcome; {self.tokens:,} tokens, "
            f"{mean:.0f} a subject",
            f"suggested: {' against '.join(self.rule.strategies)}, batches of {low} to {high} subjects "
            f"({_batch_tokens(mean, low):,} to {_batch_tokens(mean, high):,} tokens){self._ranking()}",
        ]
        if self.events < FEW_EVENTS:
            lines.append(
                f"with {self.events} events no strategy can be told from another (below some {FEW_EVENTS}); "
                "lengthen cohort.horizon_days or find more subjects first"
            )
        for option in self.options:
            lines += ["", *self._option_lines(option)]
        lines += [
            "",
            f"Speed was measured on this machine ({self.device}) with batches of this cohort. There is no measurement "
            "of another device here to go by: run this command on a rented one first; it takes seconds.",
            *(EVIDENCE if self.has_lambda_rank else EVIDENCE[1:]),
        ]
        return "\n".join(lines)

    def _ranking(self) -> str:
        """The weight of the ranking loss, where the objective has one."""
        if not self.has_lambda_rank:
            return ""
        return ", lambda_rank " + " to ".join(f"{value:g}" for value in dict.fromkeys(self.rule.lambda_rank))

    def _option_lines(self, option: Option) -> list[str]:
        cost, hours = option.cost, option.cost.hours(self.epochs)
        money = "" if self.price is None else f", {hours * self.price:,.2f} at {self.price:g} an hour"
        return [
            f"{option.overrides['strategy.name']}",
            f"  parameters  {option.n_trainable:,} trainable of {option.n_parameters:,}",
            f"  memory      {cost.megabytes:,.0f} MB for weights, gradients, AdamW and one batch",
            f"  speed       {cost.tokens_per_second:,.0f} tokens a second"
            + (f", and {cost.once_seconds:,.0f} s once for the encoder's states" if cost.once_seconds else ""),
            f"  time        {duration(hours)} for {self.epochs} epochs at most{money}",
            "  settings    " + " ".join(f"--{name} {value}" for name, value in option.overrides.items()),
        ]


def advise(config: RunConfig, *, price: float | None = None, seconds: float = 3.0) -> Advice:
    """Look at the cohort, choose by its size, and measure what that takes here.

    The token store that this makes is the one training from scratch will open.

    Parameters
    ----------
    price : of an hour of the machine that is asked
    seconds : how long the steps of each strategy are measured

    Raises
    ------
    EhrtrackError
        If the configuration or the data cannot be used.
    """
    check_objective(config, "outcome")
    config = settle(config)
    records = prepare_cohort(config)
    rows = records.rows["train"]
    rule = rule_for(len(rows))
    lengths = np.minimum(records.store.n_tokens[rows] + 1, config.data.max_tokens)
    ranks = join_ranks(config.runtime.device)
    return Advice(
        subjects=len(rows),
        events=int(records.outcomes.is_event[rows].sum()),
        tokens=int(lengths.sum()),
        epochs=config.train.epochs,
        device=f"{ranks.device}, {torch.get_num_threads()} threads"
        if ranks.device.type == "cpu"
        else str(ranks.device),
        price=price,
        rule=rule,
        has_lambda_rank="lambda_rank" in type(config.objective).model_fields,
        options=[
            _option(config, records, rule, name, float(lengths.mean()), seconds=seconds) for name in rule.strategies
        ],
    )


def rule_for(n_subjects: int) -> Rule:
    """The rule for so many labelled training subjects."""
    return next(rule for rule in RULES if n_subjects <= rule.most_subjects)


def _option(
    config: RunConfig, records: CohortRecords, rule: Rule, name: str, mean_tokens: float, *, seconds: float
) -> Option:
    """A strategy of the rule on the config's model and cohort."""
    n_subjects = rule.batch_subjects[1]
    suggested = {**rule.settings, "objective.lambda_rank": rule.lambda_rank[0]}
    known = {
        "strategy": plugins.settings("strategies", name).model_fields,
        "objective": type(config.objective).model_fields,
    }

    def is_known(key: str) -> bool:
        section, _, setting = key.partition(".")
        return section not in known or setting in known[section]

    overrides: dict[str, str | int | float] = {
        "strategy.name": name,
        **{key: value for key, value in suggested.items() if is_known(key)},
        "train.batch_tokens": max(_batch_tokens(mean_tokens, n_subjects), config.data.max_tokens),
    }
    chosen = override(config, overrides | {"init.embeddings": ""})  # what a step costs does not depend on the weights
    ranks = join_ranks(config.runtime.device)
    adapted = adapt(chosen, records, None, ranks)
    batches = Batches(
        records.store,
        records.rows["train"],
        int(overrides["train.batch_tokens"]),
        config.data.max_tokens,
        outcomes=records.outcomes,
        shuffle_seed=config.runtime.seed,
    )
    counts = parameter_table(adapted.model, adapted.strategy).row(-1, named=True)
    encoder = adapted.plain if adapted.strategy.keeps_encoder else None
    cost = measure(adapted.model, adapted.objective, batches, ranks.device, encoder=encoder, seconds=seconds)
    return Option(overrides, counts["total"], counts["trainable"], cost)


def _batch_tokens(mean_tokens: float, n_subjects: int) -> int:
    """The token budget that holds about so many subjects."""
    return int(np.ceil(mean_tokens * n_subjects / TOKEN_STEP)) * TOKEN_STEP


def duration(hours: float) -> str:
    """Hours for people.

    >>> duration(0.001), duration(1), duration(30)
    ('4 s', '60 min', '30.0 h')
    """
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 1.5 else f"{hours:.1f} h"
