"""The library's side: the one file to change when the library's training interface does."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._row import NotThereYet
from benchmarks._workload import HORIZON_DAYS, MAX_TOKENS
from ehrtrack import plugins
from ehrtrack.data.batch import Batch, Batches, Outcomes, collate
from ehrtrack.data.store import TokenStore
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives import mlm, survival
from ehrtrack.objectives._protocol import Objective, TrainingFacts
from ehrtrack.training.loop import set_training_mode

LR = 1e-3
CLIP_NORM = 1.0


class Training:
    """A model that is being trained, step by step as `ehrtrack.training.loop` does it."""

    def __init__(self, model: nn.Module, objective: Objective, *, precision: str = "f32", seed: int = 0) -> None:
        self.model = model
        self.objective = objective
        self.precision = precision
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=LR, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        set_training_mode(model)

    def backward(self, batch: Batch) -> float:
        """Gradients of a batch; returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            loss = objective_loss(self.objective, self.model, batch, self.generator)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def step(self, batch: Batch) -> float:
        """One optimiser step; returns the real tokens of the batch."""
        self.backward(batch)
        nn.utils.clip_grad_norm_(self.trainable, CLIP_NORM)
        self.optimizer.step()
        return float(len(batch.token))

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser state by name: what a checkpoint holds."""
        tensors = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"optimizer.{name}.{key}"] = self.optimizer.state[parameter][key]
        return tensors


def mlm_training(size: str, vocabulary_size: int, *, precision: str = "f32", dropout: float = 0.1) -> Training:
    """Masked-token pretraining of an encoder of a size."""
    objective = mlm.build(mlm.Config(), TrainingFacts(np.ones(vocabulary_size, dtype=np.int64)))
    return Training(_model(size, vocabulary_size, objective, dropout), objective, precision=precision)


def survival_training(
    size: str, vocabulary_size: int, outcomes: Outcomes, *, strategy: str = "full", dropout: float = 0.1
) -> Training:
    """Fine-tuning to a time-to-event outcome with a strategy's default settings."""
    facts = TrainingFacts(np.ones(vocabulary_size, dtype=np.int64), outcomes, HORIZON_DAYS)
    objective = survival.build(survival.Config(), facts)
    module = plugins.load("strategies", strategy)
    adapted = module.apply(_model(size, vocabulary_size, objective, dropout), module.Config())
    return Training(adapted, objective)


def objective_loss(objective: Objective, model: Any, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
    """The scalar loss of a model, or of a function that gives logits for the batch."""
    return objective.loss(model, batch, generator or torch.Generator())


def _model(size: str, vocabulary_size: int, objective: Objective, dropout: float) -> EhrModel:
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size=size, dropout=dropout), vocabulary_size)
    model = EhrModel(encoder, objective.make_head(encoder.width))
    if dropout == 0:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model


def batch_of(store: TokenStore, rows: Any, outcomes: Outcomes | None = None) -> Batch:
    """Subjects packed into one row of tokens."""
    return collate(store, np.asarray(rows, dtype=np.int64), max_tokens=MAX_TOKENS, outcomes=outcomes)


def batches_of(store: TokenStore, batch_size: int, outcomes: Outcomes | None = None, *, seed: int = 0) -> Batches:
    """An epoch over a store in random order, as the loop reads it."""
    rows = np.arange(len(store), dtype=np.int64)
    return Batches(store, rows, batch_size, MAX_TOKENS, outcomes=outcomes, shuffle_seed=seed)


def masked(training: Training, batch: Batch, seed: int) -> Batch:
    """The batch with its targets chosen, to give the same targets to a peer."""
    generator = torch.Generator().manual_seed(seed)
    return mlm.mask_tokens(batch, mlm.Config().mask_probability, training.objective.vocabulary_size, generator)  # type: ignore[attr-defined]


def cached_frozen_training(size: str, vocabulary_size: int, store: TokenStore, outcomes: Outcomes) -> Any:
    """Frozen fine-tuning on encoder features that were computed once; has `.step(batch)` and `.batch(rows)`."""
    raise NotThereYet("frozen fine-tuning on cached features (connect it in benchmarks/_ours.py)")


class CheckpointWriter(Protocol):
    """What `ehrtrack.training.snapshots.CheckpointWriter` offers."""

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None: ...
    def wait_copied(self) -> None: ...
    def close(self) -> None: ...


def checkpoint_writer(folder: Path) -> CheckpointWriter:
    """The writer that the loop uses."""
    try:
        snapshots = importlib.import_module("ehrtrack.training.snapshots")
    except ImportError as error:
        raise NotThereYet("ehrtrack.training.snapshots.CheckpointWriter") from error
    writer: CheckpointWriter = snapshots.CheckpointWriter(folder)
    return writer
