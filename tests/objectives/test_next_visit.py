"""Next-visit pretraining: what is shown, what is to be predicted, and against what it is scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pretraining import dealt_out, diseases, train
from simulated import History, Visit, random_store, store_of
from sklearn.metrics import log_loss
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, Batches, collate
from ehrtrack.data.cuts import draw_cuts
from ehrtrack.errors import DataError
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.objectives.next_visit import NextVisit, NextVisitConfig, next_codes
from ehrtrack.training.loop import evaluate
from ehrtrack.training.ranks import join_ranks

V, N_CODES = 14, 10
RECORD = History([Visit([13], is_static=True), Visit([4, 5]), Visit([4, 6], 1.0, 5.0), Visit([7, 5], 1.5, 9.0)])


def records_of(*histories: History) -> Batches:
    return Batches(store_of(histories), np.arange(len(histories)), 4096, 100)


def facts(records: Batches) -> TrainingFacts:
    return TrainingFacts(np.bincount(records.store.token, minlength=V), records=records)


def every_cut(batch: Batch) -> dict[int, tuple[list[int], set[int], set[int]]]:
    """By the number of visits shown: the tokens shown, the codes to predict, and those known before."""
    cuts = draw_cuts(batch, 50, torch.Generator().manual_seed(0))
    assert cuts is not None
    targets, found = next_codes(batch, cuts, N_CODES), {}
    for number, tokens in enumerate(torch.split(cuts.history.token, list(cuts.history.lengths))):
        position = torch.split(cuts.history.position, list(cuts.history.lengths))[number]
        there, known = (set((row[number].nonzero().squeeze(1) + 4).tolist()) for row in targets)
        found[int(position[position < 1000].max())] = (tokens.tolist()[:-1], there, known)
    return found


def test_a_cut_shows_what_came_before_and_asks_for_the_visit_behind_it() -> None:
    assert every_cut(next(iter(records_of(RECORD)))) == {
        1: ([13, 4, 5], {4, 6}, {13, 4, 5}),
        2: ([13, 4, 5, 4, 6], {5, 7}, {13, 4, 5, 6}),
    }


def test_no_token_of_the_predicted_visit_or_later_is_shown() -> None:
    """Other codes, ages and gaps from the predicted visit on leave the row that is shown as it is, to the bit."""
    store = random_store(60, V, longest=8)
    batch = collate(store, np.arange(60), max_tokens=100)
    cuts = draw_cuts(batch, 3, torch.Generator().manual_seed(0))
    assert cuts is not None
    for number in range(0, len(cuts), 5):
        subject, stop = int(cuts.subject[number]), int(cuts.stop[number])
        cls = int(batch.offsets[subject + 1]) - 1
        changed = {name: getattr(batch, name).clone() for name in ("token", "age", "gap")}
        changed["token"][stop:cls] = 4 + (changed["token"][stop:cls] - 3) % (V - 4)
        changed["age"][stop : cls + 1] += 7
        changed["gap"][stop : cls + 1] = 9
        other = draw_cuts(replace(batch, **changed), 3, torch.Generator().manual_seed(0))
        assert other is not None
        mine = slice(int(cuts.history.offsets[number]), int(cuts.history.offsets[number + 1]))
        for name in ("token", "age", "segment", "position", "gap"):
            assert torch.equal(getattr(cuts.history, name)[mine], getattr(other.history, name)[mine]), name


def test_a_code_from_before_the_window_is_no_new_onset() -> None:
    record = History([Visit([4]), Visit([5], 1.0, 9.0), Visit([6], 1.1, 9.0), Visit([4], 1.2, 9.0)])
    batch = collate(store_of([record]), np.array([0]), max_tokens=4)
    assert batch.token[:3].tolist() == [5, 6, 4]
    assert every_cut(batch)[2] == ([5, 6], {4}, {4, 5, 6})


class Constant(nn.Module):
    """Gives every cut the same logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.shown = 0

    def forward(self, batch: Batch) -> Tensor:
        self.shown += len(batch.lengths)
        return self.logits.expand(len(batch.lengths), 1, -1)


def targets_of(batch: Batch) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    cuts = draw_cuts(batch, 2, batch.generator())
    assert cuts is not None
    targets = next_codes(batch, cuts, N_CODES)
    return targets.is_there.numpy(), targets.is_known.numpy()


def test_losses_equal_an_independent_computation() -> None:
    records = Batches(random_store(80, V), np.arange(80), 300, 100)
    objective = NextVisit(NextVisitConfig(), facts(records))
    logits = torch.linspace(-2, 1, N_CODES)
    metrics = evaluate(Constant(logits), objective, records, join_ranks("cpu"))
    there, known = (np.concatenate(parts) for parts in zip(*(targets_of(batch) for batch in records), strict=True))
    n = len(there)
    share = np.broadcast_to(logits.sigmoid().numpy(), there.shape)
    rates = np.where(known, objective.rates.repeated, objective.rates.new)
    new = log_loss(there[~known], share[~known], normalize=False)
    repeat = log_loss(there[known], share[known], normalize=False)
    trivial = log_loss(there.ravel(), rates.ravel(), normalize=False)
    assert metrics["val/new_onset_loss"] == pytest.approx(new / n, rel=1e-5)
    assert metrics["val/repeat_loss"] == pytest.approx(repeat / n, rel=1e-5)
    assert metrics["val/next_visit_loss"] == pytest.approx((new + repeat) / n, rel=1e-5)
    assert metrics["val/prevalence_loss"] == pytest.approx(trivial / n, rel=1e-5)
    assert metrics["val/new_onset_recall_at_10"] == 1  # all ten codes are listed
    batch = next(iter(records))
    loss, score = objective.loss(Constant(logits), batch), objective.score(Constant(logits), batch)
    assert loss.mean == pytest.approx((score["new"] + score["repeat"]) / score["visits"], rel=1e-5)


def test_rates_are_counted_anew_and_again_apart() -> None:
    same = History([Visit([4]), Visit([4], 1.0, 5.0)])  # code 4 always comes again
    other = History([Visit([5]), Visit([6], 1.0, 5.0)])  # code 6 comes anew, code 5 never again
    rates = NextVisit(NextVisitConfig(n_cuts=1), facts(records_of(*[same] * 50, *[other] * 50))).rates
    assert float(rates.repeated[0]) > 0.98
    assert float(rates.repeated[1]) < 0.02
    assert float(rates.new[2]) == pytest.approx(0.5, abs=0.01)
    assert float(rates.overall[0]) == pytest.approx(0.5, abs=0.01)


def test_records_of_one_visit_are_refused() -> None:
    with pytest.raises(DataError, match="no training subject has two visits"):
        NextVisit(NextVisitConfig(), facts(records_of(History([Visit([4])]))))


def test_it_beats_the_prevalence_where_codes_tell_each_other(tmp_path: Path) -> None:
    best = train("next-visit", diseases(), tmp_path, epochs=5)
    assert best["val/next_visit_loss"] < 0.93 * best["val/prevalence_loss"]
    assert best["val/new_onset_loss"] < 0.93 * best["val/prevalence_new_onset_loss"]
    assert best["val/new_onset_recall_at_10"] > best["val/prevalence_new_onset_recall_at_10"] + 0.05


def test_it_does_not_beat_the_prevalence_where_codes_were_dealt_out(tmp_path: Path) -> None:
    best = train("next-visit", dealt_out(diseases()), tmp_path, epochs=2)
    assert best["val/next_visit_loss"] > 0.99 * best["val/prevalence_loss"]
