"""What a probe asks, and what it says of states whose worth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import History, Visit, store_of
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, Batches
from ehrtrack.errors import DataError
from ehrtrack.models.behrt import EhrModel
from ehrtrack.models.heads import Head
from ehrtrack.models.record_columns import Levels
from ehrtrack.models.settings import READOUT_DAYS
from ehrtrack.training.probe import Probe

V = 16
FIRST_SIGN, FIRST_DISEASE, EVERYDAY, LAB = 4, 8, 12, 13  # four signs, each of a disease; three bins of a value
N_SUBJECTS = 240
TRAINING, VALIDATION = np.arange(160), np.arange(160, N_SUBJECTS)
NO_LEVELS = Levels(torch.full((V,), -1), torch.zeros(V))
LEVELS = Levels(torch.tensor([-1] * LAB + [0] * 3), torch.tensor([0.0] * LAB + [-1.0, 0.0, 1.0]))


class Codes(nn.Module):
    """States that say which code stands there and how recent it is, or nothing."""

    width = V

    def __init__(self, *, says_nothing: bool) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"code": nn.Embedding(V, V)})
        nn.init.eye_(self.embeddings["code"].weight)
        self.says_nothing = says_nothing

    def forward(self, batch: Batch, places: Tensor | None = None) -> Tensor:
        states = self.embeddings["code"](batch.token) * torch.exp(-batch.days_to_end / 30)[:, None]
        return torch.zeros_like(states) if self.says_nothing else states


def model(*, says_nothing: bool = False) -> EhrModel:
    return EhrModel(Codes(says_nothing=says_nothing), Head())  # type: ignore[arg-type]


def signs(*, with_labs: bool = False) -> Batches:
    """Who has a sign at the first visit has its disease at the third in eight of ten cases; a value stays as it is."""
    rng = np.random.default_rng(0)
    histories = []
    for _ in range(N_SUBJECTS):
        sign = int(rng.integers(4))
        disease = sign if rng.random() < 0.8 else int(rng.integers(4))
        lab = [LAB + int(rng.integers(3))] if with_labs else []
        told = [[FIRST_SIGN + sign, EVERYDAY], [EVERYDAY], [FIRST_DISEASE + disease, EVERYDAY], [EVERYDAY]]
        histories.append(History([Visit([*codes, *lab], 50.0, 10.0) for codes in told], 51.0))
    return Batches(store_of(histories), TRAINING, 4096, 64)


def probe(records: Batches, levels: Levels = NO_LEVELS, seed: int = 0) -> Probe:
    return Probe(
        records, replace(records, rows=VALIDATION), levels=levels, scales_days=READOUT_DAYS, mean_age=None, seed=seed
    )


def test_states_that_hold_the_codes_foretell_what_counts_do_and_empty_ones_nothing() -> None:
    asked = probe(signs())
    found, nothing = asked(model()), asked(model(says_nothing=True))
    assert asked.n_targets == 4  # the diseases: signs come first, and what is said at each visit is never new
    assert found["probe/counts_r2"] == nothing["probe/counts_r2"] > 0.4
    assert found["probe/states_r2"] > 0.75 * found["probe/counts_r2"]
    assert abs(nothing["probe/states_r2"]) < 0.02
    assert nothing["probe/counts_r2"] - nothing["probe/states_r2"] > 5 * nothing["probe/difference_error"] > 0


def test_what_is_asked_of_values_is_their_level() -> None:
    asked = probe(signs(with_labs=True), LEVELS)
    assert asked.n_targets == 5
    plain, of_levels = probe(signs()), asked(model())
    assert 5 * of_levels["probe/counts_r2"] == pytest.approx(4 * plain.counts_r2 + 1, abs=0.1)  # as known as it can be
    assert of_levels["probe/states_r2"] > 0.75 * of_levels["probe/counts_r2"]


def test_it_is_the_same_each_time_and_draws_from_no_other_source_of_random_numbers() -> None:
    of = model()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    asked = probe(signs())
    first = asked(of)
    assert asked(of) == first == probe(replace(signs(), batch_tokens=200, shuffle_seed=3))(of)
    assert probe(signs(), seed=1)(of) != first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]


def test_what_was_nearly_the_same_of_those_fitted_tells_nothing_wild_of_others() -> None:
    asked = probe(signs())
    is_scored = asked._parts[2]
    column = np.where(is_scored, 1.0, np.random.default_rng(0).normal(scale=1e-5, size=len(is_scored)))
    assert (asked._errors(column[:, None]).sum(axis=0) < 2).all()


@pytest.mark.parametrize(
    ("visits", "message"),
    [
        ([Visit([4], 50.0, 1.0)], "no training subject has visits on two days"),
        ([Visit([4], 50.0, 1.0), Visit([5], 50.0, 0.0)], "no training subject has visits on two days"),
        ([Visit([EVERYDAY], 50.0, 1.0)] * 5, "nothing new comes within"),
    ],
)
def test_records_that_are_too_short_or_never_new_are_refused(visits: list[Visit], message: str) -> None:
    records = Batches(store_of([History(visits, end_gap_days=0.0)] * N_SUBJECTS), TRAINING, 4096, 64)
    with pytest.raises(DataError, match=message):
        probe(records)
