"""Which two parts of records are of one subject: NT-Xent (Chen et al. 2020, SimCLR, equation 1).

The two views are of the first and of the second half of a record's visits, so they share no event. Static facts and
ages are left out of both: they would tell who is who without any code. The negatives are the other subjects of the
batch, on this rank alone: the loss depends on how many subjects a batch has, and beside it stands that of guessing
among as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch
from ehrtrack.data.excerpts import excerpts, visits_of
from ehrtrack.errors import DataError
from ehrtrack.models.heads import Head, ProjectionHead
from ehrtrack.objectives._cuts import loss_without_targets
from ehrtrack.objectives.base import BatchLoss, PretrainingObjective, Selection, TrainingFacts
from ehrtrack.objectives.settings import ContrastiveConfig
from ehrtrack.runlog import VALIDATION, VALIDATION_LOSS, named


class Contrastive(PretrainingObjective[dict[str, float]]):
    """Cross-entropy of finding each view's other half among all other views of the batch."""

    Config = ContrastiveConfig
    selection = Selection(VALIDATION_LOSS, is_higher_better=False)
    trivial = {f"{VALIDATION}/contrastive_loss": f"{VALIDATION}/guessing_loss"}  # noqa: RUF012

    def __init__(self, config: ContrastiveConfig, facts: TrainingFacts) -> None:
        self.config = config

    def make_head(self, width: int) -> Head:
        return ProjectionHead(width, self.config.projection)

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        views = two_views(batch, batch.generator())
        if views is None:
            return loss_without_targets(model, batch)
        logits, target = self._logits(model(views))
        total = F.cross_entropy(logits, target, reduction="sum")
        return BatchLoss(total, len(target), total.item() / len(target))

    def score(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Sums over the views."""
        views = two_views(batch, batch.generator())
        if views is None:
            return {"views": 0.0, "loss": 0.0, "guessing": 0.0, "found": 0.0}
        logits, target = self._logits(model(views))
        n_views = len(target)
        return {
            "views": float(n_views),
            "loss": float(F.cross_entropy(logits, target, reduction="sum")),
            "guessing": n_views * float(torch.tensor(n_views - 1.0).log()),
            "found": float((logits.argmax(1) == target).sum()),
        }

    def metrics(self, scores: Sequence[dict[str, float]]) -> dict[str, float]:
        """Loss and share of views whose other half was the nearest, beside guessing."""
        total = {name: sum(score[name] for score in scores) for name in scores[0]}
        if not total["views"]:
            raise DataError("no validation batch has two subjects of two visits each; raise train.batch_tokens")
        loss = total["loss"] / total["views"]
        return named(
            VALIDATION,
            {
                "loss": loss,
                "contrastive_loss": loss,
                "guessing_loss": total["guessing"] / total["views"],
                "contrastive_accuracy": total["found"] / total["views"],
            },
        )

    def _logits(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities (2B, 2B) of all views, their own left out, and where each one's other half is."""
        z = F.normalize(projected, dim=1)
        n_views = len(z)
        itself = torch.eye(n_views, dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / self.config.temperature).masked_fill(itself, -torch.inf)
        return similarity, torch.arange(n_views, device=z.device).roll(n_views // 2)


def two_views(batch: Batch, generator: torch.Generator) -> Batch | None:
    """A run of visits of each subject's first half, for all with two visits, then one of each second half.

    How long the two runs are does not depend on each other: runs that met at a random visit would be told by their
    lengths, which add up. None with fewer than two subjects.
    """
    visits = visits_of(batch)
    subject = (visits.count > 1).nonzero().squeeze(1)
    if len(subject) < 2:
        return None
    n_first = visits.count[subject] // 2
    n_visits = torch.cat([n_first, visits.count[subject] - n_first])  # of the halves
    begin = torch.cat([visits.first[subject], visits.first[subject] + n_first])
    share = torch.rand((2, len(begin)), generator=generator).to(begin.device)
    length = 1 + (share[0] * n_visits).long()
    first = begin + (share[1] * (n_visits - length + 1)).long()
    views = excerpts(batch, subject.repeat(2), visits.start[first], visits.stop[first + length - 1])
    return replace(views, age=torch.zeros_like(views.age))
