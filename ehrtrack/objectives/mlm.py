"""Masked-token pretraining (Devlin et al. 2019, BERT, section 3.1), with masks drawn anew at each pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch
from ehrtrack.data.vocabulary import MASK, SPECIAL_TOKENS
from ehrtrack.models.heads import Head, TokenHead
from ehrtrack.objectives._cooccurrence import CoOccurrence
from ehrtrack.objectives._cuts import sampled
from ehrtrack.objectives.base import BatchLoss, Prepared, PretrainingObjective, Selection, TrainingFacts
from ehrtrack.objectives.settings import MaskedTokensConfig
from ehrtrack.runlog import VALIDATION, VALIDATION_LOSS, named

NO_TARGET = -100


class MaskedTokens(PretrainingObjective[dict[str, float]]):
    """Cross-entropy of masked tokens, beside that of two predictors that only count, on the same tokens.

    The unigram predictor gives each token its (add-one smoothed) share among the training subjects' tokens. A model
    that has learned anything of how codes go together is below it; one that has learned more than pairs of codes is
    below the co-occurrence predictor too, which there is where training records are given.
    """

    Config = MaskedTokensConfig
    selection = Selection(VALIDATION_LOSS, is_higher_better=False)
    fillers = {"target": NO_TARGET}  # noqa: RUF012
    trivial = {f"{VALIDATION}/mlm_loss": f"{VALIDATION}/unigram_loss"}  # noqa: RUF012

    def __init__(self, config: MaskedTokensConfig, facts: TrainingFacts) -> None:
        self.config = config
        self.vocabulary_size = len(facts.token_counts)
        counts = facts.token_counts.astype(np.float64) + 1
        counts[: len(SPECIAL_TOKENS)] = 1
        self.unigram_log_probability = torch.from_numpy(np.log(counts / counts.sum())).float()  # (V,)
        self.cooccurrence = None
        if facts.records is not None:
            self.cooccurrence = CoOccurrence(sampled(facts.records, config.name), self.unigram_log_probability)

    def make_head(self, width: int) -> Head:
        return TokenHead(width, self.vocabulary_size)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        masked, labels, weight = self.prepare(batch)
        total = self.total(model, masked, labels, weight)
        return BatchLoss(total, weight, total.item() / weight)

    def prepare(self, batch: Batch) -> Prepared:
        masked = self._masked(batch)
        assert masked.targets is not None
        return Prepared(masked, {"target": masked.targets}, len(masked.targets))

    def total(self, model: nn.Module, batch: Batch, labels: Mapping[str, Tensor], weight: int | Tensor) -> Tensor:
        return F.cross_entropy(model(batch), labels["target"], reduction="sum", ignore_index=NO_TARGET)

    def most_targets(self, n_tokens: int) -> int:
        """The mean of a binomial distribution, and four standard deviations more."""
        p = self.config.mask_probability
        return math.ceil(p * n_tokens + 4 * math.sqrt(p * (1 - p) * n_tokens))

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Sums over the targets. A batch's masks are the same at every call, so that epochs can be compared."""
        masked = self._masked(batch)
        assert masked.targets is not None
        logits, targets = model(masked), masked.targets  # (M, V) stay where they are: they are large
        loss, n_correct = F.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(1) == targets).sum()
        targets = targets.cpu()
        by_pairs = {} if self.cooccurrence is None else {"cooccurrence_loss": self.cooccurrence.loss(masked, targets)}
        return by_pairs | {
            "targets": len(targets),
            "correct": int(n_correct),
            "loss": float(loss),
            "unigram_loss": -float(self.unigram_log_probability[targets].sum()),
        }

    def metrics(self, scores: Sequence[dict[str, float]]) -> dict[str, float]:
        """Loss and accuracy on masked tokens, beside the loss of the predictors that only count."""
        total = {name: sum(score[name] for score in scores) for name in scores[0]}
        loss = total["loss"] / total["targets"]
        counting = [name for name in ("unigram_loss", "cooccurrence_loss") if name in total]
        return named(
            VALIDATION,
            {
                "loss": loss,
                "mlm_loss": loss,
                **{name: total[name] / total["targets"] for name in counting},
                "mlm_accuracy": total["correct"] / total["targets"],
            },
        )

    def _masked(self, batch: Batch) -> Batch:
        return mask_tokens(batch, self.config.mask_probability, self.vocabulary_size, batch.generator())


def mask_tokens(batch: Batch, probability: float, vocabulary_size: int, generator: torch.Generator) -> Batch:
    """The batch with its targets chosen and hidden; at least one target, none of them a special token."""
    device, n_special = batch.token.device, len(SPECIAL_TOKENS)
    is_candidate = batch.token >= n_special
    is_target = (torch.rand(batch.token.shape, generator=generator) < probability).to(device) & is_candidate
    if not is_target.any():
        is_target[is_candidate.nonzero()[:1]] = True
    positions = is_target.nonzero().squeeze(1)
    targets = batch.token[positions]
    fate = torch.rand(targets.shape, generator=generator).to(device)
    random_tokens = torch.randint(n_special, vocabulary_size, targets.shape, generator=generator).to(device)
    shown = torch.where(fate < 0.8, torch.full_like(targets, MASK), torch.where(fate < 0.9, random_tokens, targets))
    return replace(
        batch,
        token=batch.token.index_copy(0, positions, shown),
        target_positions=positions,
        targets=targets,
    )
