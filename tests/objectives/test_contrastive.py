"""Contrastive pretraining: what the two views share, and that they are told by codes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining import dealt_out, diseases, train
from simulated import random_store
from torch import Tensor, nn

from ehrtrack.data.batch import MAX_POSITION, Batch, collate
from ehrtrack.data.vocabulary import CLS
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.objectives.contrastive import Contrastive, ContrastiveConfig, two_views


def batch_of(n_subjects: int) -> Batch:
    return collate(diseases(), np.arange(n_subjects), max_tokens=64)


def test_the_views_of_a_subject_are_runs_of_its_two_halves() -> None:
    batch = batch_of(200)
    views = two_views(batch, batch.generator())
    assert views is not None
    rows = torch.split(views.token, list(views.lengths))
    records = torch.split(batch.token, list(batch.lengths))
    seen = set()
    for earlier, later, record in zip(rows[:200], rows[200:], records, strict=True):
        for view, half in ((earlier, record[:3].tolist()), (later, record[3:6].tolist())):
            *codes, cls = view.tolist()
            assert cls == CLS
            first = half.index(codes[0])
            assert codes == half[first : first + len(codes)]
        seen.add((len(earlier), len(later)))
    assert seen == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}


def test_static_facts_and_ages_are_in_neither_view() -> None:
    batch = collate(random_store(40, 30), np.arange(40), max_tokens=64)
    assert (batch.position == MAX_POSITION).any()
    views = two_views(batch, batch.generator())
    assert views is not None
    assert not (views.position == MAX_POSITION).any()
    assert views.age.unique().tolist() == [0]


class Fixed(nn.Module):
    """Projects the views to given places."""

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.places = places

    def forward(self, batch: Batch) -> Tensor:
        return self.places


def test_the_loss_equals_equation_1_of_simclr_written_out() -> None:
    batch, places = batch_of(5), torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    objective = Contrastive(ContrastiveConfig(temperature=0.3), TrainingFacts(np.ones(28, dtype=np.int64)))
    z = places.double().numpy() / np.linalg.norm(places.double().numpy(), axis=1, keepdims=True)
    s = np.exp(z @ z.T / 0.3)
    parts = [-np.log(s[i, (i + 5) % 10] / sum(s[i, k] for k in range(10) if k != i)) for i in range(10)]
    assert objective.loss(Fixed(places), batch).mean == pytest.approx(np.mean(parts), rel=1e-5)
    score = objective.metrics([objective.score(Fixed(places), batch)])
    assert score["val/contrastive_loss"] == pytest.approx(np.mean(parts), rel=1e-5)
    assert score["val/guessing_loss"] == pytest.approx(np.log(9), rel=1e-6)


def test_halves_are_found_where_codes_tell_each_other_and_not_where_they_were_dealt_out(tmp_path: Path) -> None:
    best = train("contrastive", diseases(), tmp_path / "real", epochs=4, lr=5e-3)
    assert best["val/contrastive_loss"] < best["val/guessing_loss"] - 0.5
    without = train("contrastive", dealt_out(diseases()), tmp_path / "dealt", epochs=2, lr=5e-3)
    assert without["val/contrastive_loss"] > without["val/guessing_loss"] - 0.1
