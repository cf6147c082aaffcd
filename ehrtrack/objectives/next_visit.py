"""The codes of the next visit, given everything up to the end of a visit (multi-label).

BEHRT (Li et al. 2020, section "Disease prediction") scores it in fine-tuning; here it is pretraining, at cuts that are
drawn anew at each pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.arrays import Floats
from ehrtrack.data.batch import Batch
from ehrtrack.data.cuts import Cuts, draw_cuts
from ehrtrack.data.excerpts import ranges
from ehrtrack.data.vocabulary import SPECIAL_TOKENS
from ehrtrack.errors import DataError
from ehrtrack.models.heads import CodeHead, Head
from ehrtrack.objectives._cuts import loss_without_targets, sampled
from ehrtrack.objectives.base import BatchLoss, PretrainingObjective, Selection, TrainingFacts
from ehrtrack.objectives.settings import NextVisitConfig
from ehrtrack.runlog import VALIDATION, VALIDATION_LOSS, named

N_LISTED = 10
"""Codes that are listed for a visit when new onsets among them are counted."""


class Targets(NamedTuple):
    """What is to be predicted at P cuts.

    Attributes
    ----------
    is_there : (P, C) float32, 1 where the next visit has the code
    is_known : (P, C) bool, whether the subject had the code before: it would be a repeat, else a new onset
    """

    is_there: Tensor
    is_known: Tensor


class Rates(NamedTuple):
    """The trivial predictor: the share of next visits with a code, among subjects with and without it before.

    Attributes
    ----------
    new, repeated : (C,) float32
    overall : (C,) float32
    """

    new: Tensor
    repeated: Tensor
    overall: Tensor

    def logits(self, is_known: Tensor) -> Tensor:
        """(P, C)"""
        return torch.where(is_known, self.repeated.logit(), self.new.logit())


class NextVisit(PretrainingObjective[dict[str, float]]):
    """Binary cross-entropy of all codes, summed over codes and averaged over visits.

    It is scored on new onsets and on repeats apart, each beside a predictor that knows, for every code, how often it
    comes anew and how often again. To copy the last visits forward is no better than that.
    """

    Config = NextVisitConfig
    selection = Selection(VALIDATION_LOSS, is_higher_better=False)
    trivial = {  # noqa: RUF012
        f"{VALIDATION}/next_visit_loss": f"{VALIDATION}/prevalence_loss",
        f"{VALIDATION}/new_onset_loss": f"{VALIDATION}/prevalence_new_onset_loss",
        f"{VALIDATION}/repeat_loss": f"{VALIDATION}/prevalence_repeat_loss",
    }

    def __init__(self, config: NextVisitConfig, facts: TrainingFacts) -> None:
        self.config = config
        self.codes = torch.arange(len(SPECIAL_TOKENS), len(facts.token_counts))
        self.rates = count_rates(config, facts)

    def make_head(self, width: int) -> Head:
        return CodeHead(width, self.codes, self.rates.overall.logit()[None])

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        cuts = draw_cuts(batch, self.config.n_cuts, batch.generator())
        if cuts is None:
            return loss_without_targets(model, batch)
        logits = model(cuts.history).squeeze(1)
        is_there = next_codes(batch, cuts, len(self.codes)).is_there
        total = F.binary_cross_entropy_with_logits(logits, is_there, reduction="sum")
        return BatchLoss(total, len(cuts), total.item() / len(cuts))

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Sums over the visits that are predicted."""
        cuts = draw_cuts(batch, self.config.n_cuts, batch.generator())
        if cuts is None:
            return {"visits": 0.0}
        targets = Targets(*(x.cpu() for x in next_codes(batch, cuts, len(self.codes))))
        sums = {"visits": float(len(cuts)), "onsets": float(targets.is_there[~targets.is_known].sum())}
        for prefix, logits in (("", model(cuts.history).squeeze(1).cpu()), ("prevalence_", self._trivial(targets))):
            loss = F.binary_cross_entropy_with_logits(logits, targets.is_there, reduction="none")
            sums[f"{prefix}new"] = float(loss[~targets.is_known].sum(dtype=torch.float64))
            sums[f"{prefix}repeat"] = float(loss[targets.is_known].sum(dtype=torch.float64))
            sums[f"{prefix}listed"] = float(listed_onsets(logits, targets))
        return sums

    def metrics(self, scores: Sequence[dict[str, float]]) -> dict[str, float]:
        """Losses in nats a visit, and the share of new onsets among the ten likeliest new codes."""
        found = [score for score in scores if score["visits"]]
        if not found:
            raise DataError("no validation subject has two visits within data.max_tokens: there is no next visit")
        total = {name: sum(score[name] for score in found) for name in found[0]}
        n_visits, n_onsets = total["visits"], max(total["onsets"], 1.0)
        loss = (total["new"] + total["repeat"]) / n_visits
        return named(
            VALIDATION,
            {
                "loss": loss,
                "next_visit_loss": loss,
                "prevalence_loss": (total["prevalence_new"] + total["prevalence_repeat"]) / n_visits,
                "new_onset_loss": total["new"] / n_visits,
                "prevalence_new_onset_loss": total["prevalence_new"] / n_visits,
                "repeat_loss": total["repeat"] / n_visits,
                "prevalence_repeat_loss": total["prevalence_repeat"] / n_visits,
                "new_onset_recall_at_10": total["listed"] / n_onsets,
                "prevalence_new_onset_recall_at_10": total["prevalence_listed"] / n_onsets,
            },
        )

    def _trivial(self, targets: Targets) -> Tensor:
        return self.rates.logits(targets.is_known)


def next_codes(batch: Batch, cuts: Cuts, n_codes: int) -> Targets:
    """The codes of the visit after each cut, special tokens aside.

    A code is known if it is in the excerpt, or was in a part of the record before the window.
    """
    shape, first_code = (len(cuts), n_codes), len(SPECIAL_TOKENS)
    device = batch.token.device
    is_there, is_known = (torch.zeros(shape, dtype=torch.bool, device=device) for _ in range(2))
    place, cut = ranges(cuts.stop, cuts.next_stop)
    code = batch.token[place] - first_code
    is_code = code >= 0
    is_there[cut[is_code], code[is_code]] = True
    assert batch.is_first is not None
    is_old = is_code & ~batch.is_first[place]
    is_known[cut[is_old], code[is_old]] = True
    place, cut = ranges(cuts.start, cuts.stop)
    code = batch.token[place] - first_code
    is_known[cut[code >= 0], code[code >= 0]] = True
    return Targets(is_there.float(), is_known)


def listed_onsets(logits: Tensor, targets: Targets) -> int:
    """New onsets among the `N_LISTED` likeliest codes that a subject did not have before."""
    scores = logits.masked_fill(targets.is_known, -torch.inf)
    listed = scores.topk(min(N_LISTED, scores.shape[1]), dim=1).indices
    is_onset = targets.is_there.bool() & ~targets.is_known
    return int(is_onset.gather(1, listed).sum())


def count_rates(config: NextVisitConfig, facts: TrainingFacts) -> Rates:
    """Rates among the training subjects at cuts like those of training.

    A code's rate is drawn towards the mean of all codes with the weight of one visit: none is 0 or 1.
    """
    n_codes = len(facts.token_counts) - len(SPECIAL_TOKENS)
    hits = np.zeros((2, n_codes))  # anew, again
    visits = np.zeros((2, n_codes))
    for batch in sampled(facts.records, config.name):
        cuts = draw_cuts(batch, config.n_cuts, batch.generator())
        if cuts is None:
            continue
        is_there, is_known = (x.numpy() for x in next_codes(batch, cuts, n_codes))
        for number, among in enumerate((~is_known, is_known)):
            hits[number] += (is_there * among).sum(axis=0)
            visits[number] += among.sum(axis=0)
    if not hits.any():
        raise DataError("no training subject has two visits within data.max_tokens: there is no next visit to learn")
    new, repeated = (_shrunk(h, n) for h, n in zip(hits, visits, strict=True))
    return Rates(new, repeated, _shrunk(hits.sum(axis=0), visits.sum(axis=0)))


def _shrunk(hits: Floats, visits: Floats) -> Tensor:
    mean = (hits.sum() + 0.5) / (visits.sum() + 1)
    return torch.from_numpy((hits + mean) / (visits + 1)).float()
