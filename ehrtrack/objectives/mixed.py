"""A weighted sum of pretraining objectives over one encoder, each with a head and a forward pass of its own.

The parts show the encoder different rows (masked tokens, excerpts), so there is nothing to share between their passes;
the memory of a step is that of all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ehrtrack.data.batch import Batch
from ehrtrack.models.heads import Head, PartHeads
from ehrtrack.objectives.base import BatchLoss, PretrainingObjective, Selection, TrainingFacts, pretraining_objective
from ehrtrack.objectives.settings import MixedConfig
from ehrtrack.runlog import VALIDATION_LOSS


class _Part(nn.Module):
    """The model as a part sees it: with that part's head."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, batch: Batch) -> Tensor:
        return cast(Tensor, self.model(replace(batch, part=self.name)))


class Mixed(PretrainingObjective[dict[str, object]]):
    """The parts' mean losses in a batch, weighted and added.

    A batch weighs as many as it has subjects: over the batches of a step the loss is the mean of the batches' losses,
    weighted so. The parts' validation metrics keep their names.
    """

    Config = MixedConfig
    selection = Selection(VALIDATION_LOSS, is_higher_better=False)

    def __init__(self, config: MixedConfig, facts: TrainingFacts) -> None:
        self.weights = config.weights
        self.parts = {name: pretraining_objective(part, facts) for name, part in config.parts().items()}
        self.trivial = {loss: trivial for part in self.parts.values() for loss, trivial in part.trivial.items()}

    def make_head(self, width: int) -> Head:
        return PartHeads({name: part.make_head(width) for name, part in self.parts.items()})

    def loss(self, model: nn.Module, batch: Batch) -> BatchLoss:
        losses = {name: part.loss(_Part(model, name), batch) for name, part in self.parts.items()}
        n_subjects = len(batch.lengths)
        mean = torch.stack([self.weights[name] * part.total / part.weight for name, part in losses.items()]).sum()
        return BatchLoss(mean * n_subjects, n_subjects, mean.item())

    def score(self, model: nn.Module, batch: Batch) -> dict[str, object]:
        """The parts' scores, by name."""
        return {name: part.score(_Part(model, name), batch) for name, part in self.parts.items()}

    def metrics(self, scores: Sequence[dict[str, object]]) -> dict[str, float]:
        """The parts' metrics, and the weighted sum of their losses."""
        found: dict[str, float] = {}
        loss = 0.0
        for name, part in self.parts.items():
            metrics = part.metrics([score[name] for score in scores])
            loss += self.weights[name] * metrics.pop(VALIDATION_LOSS)
            found |= metrics
        return found | {VALIDATION_LOSS: loss}
