"""Times to the first occurrence of many codes at once, with piecewise-constant hazards.

MOTOR (Steinberg et al. 2023, "MOTOR: A Time-To-Event Foundation Model For Structured Medical Records", section 3), with
a bidirectional encoder and so from the [CLS] state at random cuts of the record, where MOTOR reads every visit of a
causal one. The hazard of code c in piece k is exp(logit), in events a day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ehrtrack.arrays import Floats
from ehrtrack.data.batch import Batch
from ehrtrack.data.cuts import Cuts, draw_cuts
from ehrtrack.data.excerpts import ranges
from ehrtrack.data.vocabulary import SPECIAL_TOKENS
from ehrtrack.errors import DataError
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.models.heads import CodeHead, Head
from ehrtrack.objectives._code_effects import fit_onset_effects
from ehrtrack.objectives._cuts import loss_without_targets, sampled
from ehrtrack.objectives.base import BatchLoss, PretrainingObjective, Selection, TrainingFacts
from ehrtrack.objectives.settings import TimeToEventConfig
from ehrtrack.runlog import VALIDATION, VALIDATION_LOSS, named

MOST_TARGETS, MOST_CUTS = 50_000_000, 200_000
"""Cuts times codes, and cuts, that regressions are fitted to, at most: 800 MB of what came and what was to be expected,
and some 2 GB of columns where a record has 150 different codes."""


class Onsets(NamedTuple):
    """What came after P cuts, for C codes.

    Attributes
    ----------
    days : (P, C) float32, from the cut to the first occurrence of the code, or to where the record or window ends
    is_event : (P, C) bool, whether the code came
    is_at_risk : (P, C) bool, whether the subject did not have the code before
    """

    days: Tensor
    is_event: Tensor
    is_at_risk: Tensor


@dataclass(frozen=True)
class Axis:
    """The codes and the pieces of time.

    Attributes
    ----------
    codes : (C,) int64, tokens of the vocabulary
    column : (V,) int64, place of a token in `codes`, or -1
    edges_days : (K,) float32, where pieces begin; the first at 0, the last has no end
    """

    codes: Tensor
    column: Tensor
    edges_days: Tensor

    def exposure(self, onsets: Onsets) -> Tensor:
        """(P, K, C) days at risk within each piece."""
        start = self.edges_days.to(onsets.days.device)[:, None]  # (K, 1)
        end = torch.cat([start[1:], start.new_full((1, 1), torch.inf)])
        within = torch.minimum(onsets.days[:, None], end).sub(start).clamp(min=0)
        return within * onsets.is_at_risk[:, None]

    def events(self, onsets: Onsets) -> Tensor:
        """(P, K, C) float32, 1 in the piece in which the code came: after its beginning and up to its end."""
        edges = self.edges_days.to(onsets.days.device)
        piece = torch.searchsorted(edges[1:].contiguous(), onsets.days.contiguous(), right=False)
        is_in = piece[:, None] == torch.arange(len(edges), device=edges.device)[:, None]
        return (is_in & onsets.is_event[:, None]).float()


class TimeToEvent(PretrainingObjective[dict[str, float]]):
    """Negative log-likelihood of the onsets of all codes, summed over codes and averaged over cuts.

    Beside it that of the marginal predictor: each code's rate in each piece among the training subjects; and, where
    the head starts from one, that of the regression on single codes by itself.
    """

    Config = TimeToEventConfig
    selection = Selection(VALIDATION_LOSS, is_higher_better=False)
    trivial = {f"{VALIDATION}/onset_loss": f"{VALIDATION}/marginal_loss"}  # noqa: RUF012

    def __init__(self, config: TimeToEventConfig, facts: TrainingFacts) -> None:
        self.config = config
        self.axis = fit_axis(config, facts)
        self.log_rate = _log_rates(config, facts, self.axis)  # (K, C)
        self.effects = _effects(config, facts, self.axis, self.log_rate)

    def make_head(self, width: int) -> Head:
        return CodeHead(width, self.axis.codes, self.log_rate, self.effects)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        cuts = draw_cuts(batch, self.config.n_cuts, batch.generator())
        if cuts is None:
            return loss_without_targets(model, batch)
        onsets = onsets_after(batch, cuts, self.axis)
        total = negative_log_likelihood(model(cuts.history), self.axis.events(onsets), self.axis.exposure(onsets))
        return BatchLoss(total, len(cuts), total.item() / len(cuts))

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Sums over cuts."""
        cuts = draw_cuts(batch, self.config.n_cuts, batch.generator())
        if cuts is None:
            names = ("cuts", "loss", "marginal", "events") + (("regression",) if self.effects else ())
            return dict.fromkeys(names, 0.0)
        onsets = onsets_after(batch, cuts, self.axis)
        events, exposure = self.axis.events(onsets), self.axis.exposure(onsets)
        marginal = self.log_rate.to(events.device).expand_as(events)
        return {
            "cuts": float(len(cuts)),
            "loss": float(negative_log_likelihood(model(cuts.history), events, exposure)),
            "marginal": float(negative_log_likelihood(marginal, events, exposure)),
            "events": float(events.sum()),
            **self._of_regression(cuts.history, marginal, events, exposure),
        }

    def _of_regression(self, history: Batch, marginal: Tensor, events: Tensor, exposure: Tensor) -> dict[str, float]:
        if self.effects is None:
            return {}
        log_hazard = marginal + self.effects.to(events.device)(history)[:, None]
        return {"regression": float(negative_log_likelihood(log_hazard, events, exposure))}

    def metrics(self, scores: Sequence[dict[str, float]]) -> dict[str, float]:
        """Losses in nats a cut, and how many of the codes come after a cut."""
        total = {name: sum(score[name] for score in scores) for name in scores[0]}
        if not total["cuts"]:
            raise DataError("no validation subject has two visits within data.max_tokens: nothing comes after a cut")
        loss = total["loss"] / total["cuts"]
        of_regression = {} if self.effects is None else {"regression_loss": total["regression"] / total["cuts"]}
        return named(
            VALIDATION,
            {
                "loss": loss,
                "onset_loss": loss,
                "marginal_loss": total["marginal"] / total["cuts"],
                "onsets_per_cut": total["events"] / total["cuts"],
                **of_regression,
            },
        )


def negative_log_likelihood(log_hazard: Tensor, events: Tensor, exposure: Tensor) -> Tensor:
    """Sum over P, K and C of ``hazard * exposure - event * log(hazard)``; the three are (P, K, C).

    It is that of exponential times within each piece; a censored code adds its exposure alone.
    """
    return (log_hazard.exp() * exposure - events * log_hazard).sum()


def onsets_after(batch: Batch, cuts: Cuts, axis: Axis) -> Onsets:
    """First occurrences after the cuts, censored where the record or its window ends.

    A code that the subject had before is not at risk, also where it was before the window and comes again; one that
    was before the window and never comes again counts as at risk.
    """
    assert batch.is_first is not None
    column, cls = axis.column.to(batch.token.device), batch.cls_positions[cuts.subject]
    after_cut = batch.days_to_end[cuts.stop - 1]  # (P,) days that are left of the record
    shape = (len(cuts), len(axis.codes))
    days = after_cut[:, None].repeat(1, shape[1])
    is_event, is_known = (torch.zeros(shape, dtype=torch.bool, device=days.device) for _ in range(2))

    place, cut = ranges(cuts.stop, cls)
    code, is_first = column[batch.token[place]], batch.is_first[place]
    is_onset, is_again = (code >= 0) & is_first, (code >= 0) & ~is_first
    days[cut[is_onset], code[is_onset]] = (after_cut[cut] - batch.days_to_end[place])[is_onset]
    is_event[cut[is_onset], code[is_onset]] = True
    first_after = is_event.clone()
    is_known[cut[is_again], code[is_again]] = True
    is_known &= ~first_after  # it comes again after its first time, which was after the cut as well
    place, cut = ranges(cuts.start, cuts.stop)
    code = column[batch.token[place]]
    is_known[cut[code >= 0], code[code >= 0]] = True
    return Onsets(days, is_event, ~is_known)


def fit_axis(config: TimeToEventConfig, facts: TrainingFacts) -> Axis:
    """Codes and pieces, from what came after cuts like those of training."""
    vocabulary_size = len(facts.token_counts)
    every = _axis(torch.arange(len(SPECIAL_TOKENS), vocabulary_size), vocabulary_size, torch.zeros(1))
    counts, days = np.zeros(len(every.codes), dtype=np.int64), []
    for batch in sampled(facts.records, config.name):
        cuts = draw_cuts(batch, config.n_cuts, batch.generator())
        if cuts is None:
            continue
        onsets = onsets_after(batch, cuts, every)
        counts += onsets.is_event.sum(dim=0).numpy()
        days.append(onsets.days[onsets.is_event].numpy())
    if not counts.any():
        raise DataError("no code comes anew after a cut of the training records: time-to-event has nothing to learn")
    frequent = np.argsort(-counts, kind="stable")[: min(config.n_codes, np.count_nonzero(counts))]
    inner = np.quantile(np.concatenate(days), np.arange(1, config.n_pieces) / config.n_pieces)
    edges = np.concatenate([[0.0], np.unique(inner[inner > 0])]).astype(np.float32)
    return _axis(every.codes[torch.from_numpy(np.sort(frequent))], vocabulary_size, torch.from_numpy(edges))


def _effects(config: TimeToEventConfig, facts: TrainingFacts, axis: Axis, log_rate: Tensor) -> CodeEffects | None:
    """The regression of each onset on what the record holds at the cuts."""
    if not config.lasso:
        return None
    histories, expected, came = [], [], []
    n_cuts = min(MOST_TARGETS // len(axis.codes), MOST_CUTS)
    for batch in sampled(facts.records, config.name, at_most=n_cuts // config.n_cuts):
        cuts = draw_cuts(batch, config.n_cuts, batch.generator())
        if cuts is not None:
            onsets = onsets_after(batch, cuts, axis)
            histories.append(cuts.history)
            expected.append((axis.exposure(onsets) * log_rate.exp()).sum(dim=1))
            came.append((onsets.is_event & onsets.is_at_risk).float())
    arrays = (torch.cat(parts).double().numpy() for parts in (expected, came))
    return fit_onset_effects(config.lasso, facts, histories, *arrays)


def _axis(codes: Tensor, vocabulary_size: int, edges_days: Tensor) -> Axis:
    column = torch.full((vocabulary_size,), -1)
    column[codes] = torch.arange(len(codes))
    return Axis(codes, column, edges_days)


def _log_rates(config: TimeToEventConfig, facts: TrainingFacts, axis: Axis) -> Tensor:
    """(K, C) log of events a day, each drawn towards its code's rate over all pieces with the weight of one event."""
    shape = (len(axis.edges_days), len(axis.codes))
    events: Floats = np.zeros(shape)
    exposure: Floats = np.zeros(shape)
    for batch in sampled(facts.records, config.name):
        cuts = draw_cuts(batch, config.n_cuts, batch.generator())
        if cuts is not None:
            onsets = onsets_after(batch, cuts, axis)
            events += axis.events(onsets).sum(dim=0).numpy()
            exposure += axis.exposure(onsets).sum(dim=0).numpy()
    rate = events.sum(axis=0) / np.maximum(exposure.sum(axis=0), 1.0)
    return torch.from_numpy(np.log((events + 1) / (exposure + 1 / rate))).float()
