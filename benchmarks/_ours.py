"""The library's side: the one file to change when the library's training interface does."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._workload import HORIZON_DAYS, LENGTH_SPREAD, MAX_TOKENS, MEDIAN_TOKENS
from ehrtrack import plugins
from ehrtrack.data.batch import Batch, Batches, collate
from ehrtrack.data.features import FeatureStore
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.data.store import TokenStore
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.device import place
from ehrtrack.objectives import mlm, survival
from ehrtrack.objectives.base import Objective, TrainingFacts
from ehrtrack.strategies.base import strategy_of
from ehrtrack.training import loop
from ehrtrack.training.ranks import join_ranks
from ehrtrack.training.snapshots import CheckpointWriter

LR = 1e-3
CLIP_NORM = 1.0
MEAN_TOKENS = MEDIAN_TOKENS * np.exp(LENGTH_SPREAD**2 / 2)


class Training:
    """A model that is being trained by the library's own loop, a step at a time."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        *,
        precision: str = "f32",
        device: str = "cpu",
        snapshot_seconds: float = float("inf"),
    ) -> None:
        ranks = join_ranks(device)
        self.model = place(model, ranks.device)
        if precision == "bf16":
            for module in model.modules():
                if isinstance(module, EhrModel):
                    module.is_bf16 = True
        self.objective = objective
        folder = Path(tempfile.mkdtemp(prefix="ehrtrack-benchmark-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self._loop = loop.Training(
            model,
            objective,
            config=loop.TrainConfig(lr=LR, clip_norm=CLIP_NORM, epochs=1_000_000, graph="auto"),
            ranks=ranks,
            folder=folder,
            snapshot_seconds=snapshot_seconds,
        )
        self.optimizer = self._loop.optimizer
        loop.set_training_mode(model)

    def backward(self, batch: Batch) -> float:
        """Gradients of a batch; returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(self.model, batch)
        loss.total.backward()  # type: ignore[no-untyped-call]
        return loss.mean

    def step(self, batch: Batch) -> float:
        """One optimiser step; returns the real tokens of the batch."""
        self._loop.take_step([batch])
        return float(batch.n_tokens)

    def epoch(self, batches: Batches) -> dict[str, float]:
        """The loop's own epoch on these batches, with its snapshots; returns its metrics, ``train/...``."""
        metrics = self._loop.train_epoch(batches)
        nothing_validated = dict.fromkeys(self.objective.selection.metrics, 0.0)
        self._loop.end_epoch(metrics | nothing_validated)
        return metrics

    def validate(self, batches: Batches, *, is_replayed: bool) -> None:
        """The loop's own validation on these batches, whose passes are replayed where steps are, or not."""
        graphs = self._loop.graphs if is_replayed else None
        loop.evaluate(self.model, self.objective, batches, self._loop.ranks, graphs=graphs)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser state by name: what a checkpoint holds."""
        tensors = {f"model/{name}": p.detach() for name, p in self._loop.trainable.items()}
        for name, p in self._loop.trainable.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[p].items()}
        return tensors


class CachedTraining(Training):
    """Frozen fine-tuning on encoder states that were computed once."""

    def __init__(self, model: EhrModel, objective: Objective, store: TokenStore, outcomes: Outcomes) -> None:
        super().__init__(model, objective)
        self._store, self._outcomes = store, outcomes
        batch = batch_of(store, range(len(store)))
        with torch.no_grad():
            hidden = model.hidden(batch).numpy()
        self._features = FeatureStore(batch.offsets.numpy(), hidden)

    def batch(self, rows: Iterable[int]) -> Batch:
        """Subjects as the states of their tokens."""
        numbers = np.array(list(rows), dtype=np.int64)
        hidden = torch.from_numpy(self._features.hidden_of(numbers))
        return replace(batch_of(self._store, numbers, outcomes=self._outcomes), hidden=hidden)


def mlm_training(
    size: str,
    vocabulary_size: int,
    *,
    precision: str = "f32",
    dropout: float = 0.1,
    device: str = "cpu",
    snapshot_seconds: float = float("inf"),
) -> Training:
    """Masked-token pretraining of an encoder of a size."""
    objective = mlm.MaskedTokens(mlm.MaskedTokensConfig(), TrainingFacts(np.ones(vocabulary_size, dtype=np.int64)))
    model = _model(size, vocabulary_size, objective, dropout)
    return Training(model, objective, precision=precision, device=device, snapshot_seconds=snapshot_seconds)


def survival_training(
    size: str,
    vocabulary_size: int,
    outcomes: Outcomes,
    *,
    strategy: str = "full",
    dropout: float = 0.1,
    precision: str = "f32",
    device: str = "cpu",
    snapshot_seconds: float = float("inf"),
) -> Training:
    """Fine-tuning to a time-to-event outcome with a strategy's default settings."""
    facts = TrainingFacts(np.ones(vocabulary_size, dtype=np.int64), outcomes, HORIZON_DAYS)
    objective = survival.Survival(survival.SurvivalConfig(), facts)
    chosen = strategy_of(plugins.settings("strategies", strategy)())
    adapted = chosen.apply(_model(size, vocabulary_size, objective, dropout))
    return Training(adapted, objective, precision=precision, device=device, snapshot_seconds=snapshot_seconds)


def objective_loss(objective: Objective, model: Any, batch: Batch) -> Tensor:
    """The mean loss of a model, or of a function that gives logits for the batch."""
    loss = objective.loss(model, batch)
    return loss.total / loss.weight


def _model(size: str, vocabulary_size: int, objective: Objective, dropout: float) -> EhrModel:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size=size, dropout=dropout), vocabulary_size)
    model = EhrModel(encoder, objective.make_head(encoder.width))
    if dropout == 0:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return model


def batch_of(store: TokenStore, rows: Any, outcomes: Outcomes | None = None) -> Batch:
    """Subjects packed into one row of tokens."""
    return collate(store, np.asarray(rows, dtype=np.int64), max_tokens=MAX_TOKENS, outcomes=outcomes)


def batches_of(store: TokenStore, batch_size: float, outcomes: Outcomes | None = None, *, seed: int = 0) -> Batches:
    """An epoch over a store in random order, in batches of about so many subjects, as the loop reads it."""
    rows = np.arange(len(store), dtype=np.int64)
    batch_tokens = max(round(batch_size * MEAN_TOKENS), MAX_TOKENS)
    return Batches(store, rows, batch_tokens, MAX_TOKENS, outcomes=outcomes, shuffle_seed=seed)


def batches_over(store: TokenStore, rows: Any, batch_size: int) -> Batches:
    """An epoch over some subjects of a store in random order, in batches of about so many."""
    numbers = np.asarray(rows, dtype=np.int64)
    mean = float(store.n_tokens[numbers].mean()) + 1
    batch_tokens = max(round(batch_size * mean), MAX_TOKENS)
    return Batches(store, numbers, batch_tokens, MAX_TOKENS, shuffle_seed=0)


def masked(training: Training, batch: Batch, seed: int) -> Batch:
    """The batch with its targets chosen, to give the same targets to a peer."""
    generator = torch.Generator().manual_seed(seed)
    return mlm.mask_tokens(
        batch, mlm.MaskedTokensConfig().mask_probability, training.objective.vocabulary_size, generator
    )  # type: ignore[attr-defined]


def cached_frozen_training(size: str, vocabulary_size: int, store: TokenStore, outcomes: Outcomes) -> CachedTraining:
    """Frozen fine-tuning on cached states; `.batch(rows)` gives what `.step` takes."""
    frozen = survival_training(size, vocabulary_size, outcomes, strategy="frozen")
    return CachedTraining(frozen.model, frozen.objective, store, outcomes)


def checkpoint_writer(folder: Path) -> CheckpointWriter:
    """The writer that the loop uses."""
    return CheckpointWriter(folder)
