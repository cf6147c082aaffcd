"""Records to pretrain on, in which codes tell each other, the same with the codes dealt out, and a short training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from simulated import History, Visit, store_of

from ehrtrack import plugins
from ehrtrack.data.batch import Batches
from ehrtrack.data.store import TokenStore
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.record_columns import Levels
from ehrtrack.objectives.base import PretrainingObjective, TrainingFacts
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.training.loop import TrainConfig, fit
from ehrtrack.training.ranks import join_ranks

N_DISEASES, N_CODES, N_SUBJECTS = 4, 6, 400
V = 4 + N_DISEASES * N_CODES
TRAIN, VALIDATION = np.arange(300), np.arange(300, N_SUBJECTS)


def diseases() -> TokenStore:
    """Each subject has one disease, and its six codes in some order, one a visit: all that comes is new."""
    rng = np.random.default_rng(0)
    histories = []
    for _ in range(N_SUBJECTS):
        codes = 4 + N_CODES * int(rng.integers(N_DISEASES)) + rng.permutation(N_CODES)
        age, gaps = float(rng.uniform(30, 80)), rng.exponential(50, N_CODES)
        histories.append(History([Visit([int(c)], age, float(g)) for c, g in zip(codes, gaps, strict=True)], age + 1))
    return store_of(histories)


def dealt_out(store: TokenStore) -> TokenStore:
    """The same codes at the same places, dealt out among subjects: they no longer tell each other."""
    return replace(store, token=np.random.default_rng(0).permutation(store.token))


def objective_for(store: TokenStore, name: str, **settings: Any) -> PretrainingObjective:
    """An objective fitted to the training subjects."""
    chosen = plugins.plugin("objectives", name, PretrainingObjective)
    counts = np.bincount(store.token, minlength=V)
    levels = Levels(torch.full((V,), -1), torch.zeros(V))
    facts = TrainingFacts(counts, records=Batches(store, TRAIN, 4096, 64), levels=levels)
    return chosen(chosen.Config(**settings), facts)


def train(
    name: str, store: TokenStore, folder: Path, *, epochs: int, lr: float = 1e-2, **settings: Any
) -> Mapping[str, float]:
    """Validation metrics of the best epoch."""
    torch.manual_seed(0)
    objective = objective_for(store, name, **settings)
    encoder = Behrt(ModelConfig(size="tiny", dropout=0.0), V)
    return fit(
        EhrModel(encoder, objective.make_head(encoder.width)),
        objective,
        training=lambda epoch: Batches(store, TRAIN, 210, 64, shuffle_seed=epoch),
        validation=Batches(store, VALIDATION, 210, 64),
        config=TrainConfig(epochs=epochs, lr=lr, patience=epochs),
        ranks=join_ranks("cpu"),
        folder=folder,
        logger=MemoryRunLogger(),
    ).kept
