"""Age and static facts beside what a head reads of the record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import History, Visit, store_of

from ehrtrack.data.batch import Batch, collate
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.static_effects import StaticEffects, columns
from ehrtrack.objectives.survival import rebuild_hazard_head

FEMALE, MALE, FEVER = 5, 6, 7
WIDTH = 4


def batch() -> Batch:
    """A woman of 70, a man of 50 whose sex is noted at a visit alone, and one without a record whose age is unknown."""
    store = store_of(
        [
            History([Visit([FEMALE], is_static=True), Visit([FEVER], 69.5, 3)], end_age_years=70.2),
            History([Visit([MALE, FEVER], 49.5, 3)], end_age_years=50.9),
            History([], end_age_years=float("nan")),
        ]
    )
    return collate(store, np.arange(3), max_tokens=16)


def effects(n_outputs: int = 1, mean_age: float | None = 60.0) -> StaticEffects:
    n_columns = 3 + (mean_age is not None)
    return StaticEffects(
        torch.tensor([FEMALE, MALE]),
        torch.arange(n_columns).float(),
        torch.full((n_columns,), 2.0),
        torch.arange(n_columns * n_outputs).float().reshape(n_columns, n_outputs),
        None if mean_age is None else torch.tensor(mean_age),
    )


def test_columns_are_age_whether_it_is_unknown_and_facts_that_are_of_no_time() -> None:
    found = columns(batch(), torch.tensor([FEMALE, MALE]), torch.tensor(60.0))
    assert found.tolist() == [[70, 0, 1, 0], [50, 0, 0, 0], [60, 1, 0, 0]]


def test_where_every_age_is_known_there_is_no_column_for_unknown_ones() -> None:
    known = replace(batch(), age=batch().age.clamp(max=80))
    assert columns(known, torch.tensor([MALE]), None).tolist() == [[70, 0], [50, 0], [80, 0]]
    assert columns(known, torch.tensor([], dtype=torch.int64), None).tolist() == [[70], [50], [80]]


@pytest.mark.parametrize("n_causes", [1, 2])
def test_a_head_adds_them_to_every_interval_and_gradients_reach_them(n_causes: int) -> None:
    torch.manual_seed(0)
    baseline = torch.randn(3) if n_causes == 1 else torch.randn(3, n_causes)
    of = batch()
    hidden = torch.randn(len(of.token), WIDTH)
    head = HazardHead(WIDTH, baseline, statics=effects(n_causes)).eval()
    statics = head.statics
    assert statics is not None
    with_statics = head(hidden, of, torch.zeros(0))
    head.statics = None
    added = (with_statics - head(hidden, of, torch.zeros(0))).reshape(3, 3, n_causes)
    expected = ((columns(of, statics.token, statics.mean_age) - statics.mean) / 2) @ statics.effect  # (B, R)
    torch.testing.assert_close(added, expected[:, None].expand(-1, 3, -1))
    with_statics.sum().backward()
    assert statics.effect.grad is not None
    assert (statics.effect.grad != 0).any()


def test_weights_are_read_back_and_those_of_before_have_none() -> None:
    torch.manual_seed(0)
    head = HazardHead(WIDTH, torch.zeros(3), statics=effects()).eval()
    plain = HazardHead(WIDTH, torch.zeros(3))
    of, hidden = batch(), torch.randn(len(batch().token), WIDTH)
    again = rebuild_hazard_head(head.state_dict(), 1, width=WIDTH, n_intervals=3).eval()
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(hidden, of, torch.zeros(0)), head(hidden, of, torch.zeros(0)))
    of_before = rebuild_hazard_head(plain.state_dict(), 1, width=WIDTH, n_intervals=3)
    assert of_before.statics is None
    of_before.load_state_dict(plain.state_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token", torch.tensor([MALE, FEMALE])),
        ("token", torch.tensor([-1, MALE])),
        ("token", torch.tensor([FEMALE])),
        ("scale", torch.zeros(4)),
        ("mean", torch.zeros(3)),
        ("effect", torch.zeros(4)),
    ],
)
def test_weights_that_do_not_fit_each_other_are_refused(name: str, value: torch.Tensor) -> None:
    weights = {f"statics.{key}": tensor for key, tensor in effects().state_dict().items()}
    with pytest.raises(ValueError, match=r"effects of shapes|static facts are rising tokens"):
        StaticEffects.from_weights(weights | {f"statics.{name}": value}, "statics.")
