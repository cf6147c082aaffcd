"""Pretraining by forecasts: which window is asked for, what is counted in it, and against what it is scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining import dealt_out, diseases, train
from simulated import History, Visit, random_store, store_of
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, Batches
from ehrtrack.data.cuts import Cuts, draw_cuts
from ehrtrack.errors import DataError
from ehrtrack.models.record_columns import Levels
from ehrtrack.models.windows import Axis, after, before
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.objectives.forecast import Forecast, ForecastConfig
from ehrtrack.training.loop import evaluate
from ehrtrack.training.ranks import join_ranks

V = 14
LEVELS = Levels(torch.tensor([-1] * 8 + [0, 0, 0, 1, 1, 1]), torch.tensor([0.0] * 8 + [-1.0, 0.0, 1.0] * 2))
AXIS = Axis.of(LEVELS)
COUNTS = ["lab 0", "lab 1", "4", "5", "6", "7"]
NAMES = COUNTS + [f"{how} {lab}" for how in ("mean", "lowest", "highest") for lab in ("lab 0", "lab 1")]
RECORD = History(
    [Visit([4, 8]), Visit([9, 4], 1.0, 2.0), Visit([8, 10, 13], 1.1, 3.0), Visit([5], 1.2, 4.0), Visit([6], 1.3, 9.0)],
    end_age_years=2.0,
)


def records_of(*histories: History) -> Batches:
    return Batches(store_of(histories), np.arange(len(histories)), 4096, 100)


def facts(records: Batches) -> TrainingFacts:
    return TrainingFacts(np.bincount(records.store.token, minlength=V), records=records, levels=LEVELS)


def cuts_of(batch: Batch, least_days: float = 0.0) -> Cuts:
    cuts = draw_cuts(batch, 50, torch.Generator().manual_seed(0), least_days=least_days)
    assert cuts is not None
    return cuts


def told(numbers: Tensor) -> dict[str, float]:
    """What is there, by name."""
    named = dict(zip(NAMES, numbers.tolist(), strict=True))
    return {name: round(x, 4) for name, x in named.items() if x == x and (x or name not in COUNTS)}


def by_visits_shown(least_days: float, of: object, window_days: float) -> dict[int, dict[str, float]]:
    batch = next(iter(records_of(RECORD)))
    cuts = cuts_of(batch, least_days)
    numbers = of(batch, cuts, AXIS, window_days)  # type: ignore[operator]
    n_shown = [int(part[part < 1000].max()) for part in torch.split(cuts.history.position, list(cuts.history.lengths))]
    return {n: told(row) for n, row in zip(n_shown, numbers, strict=True)}


def test_a_window_holds_what_comes_within_it_and_levels_of_nothing_else() -> None:
    log2 = round(float(np.log(2)), 4)
    log3 = round(float(np.log(3)), 4)
    asked = by_visits_shown(7.0, after, 7.0)
    assert asked[2] == {
        "lab 0": log3,  # two values three days later: the lowest and the highest bin
        "lab 1": log2,
        "5": log2,  # seven days later
        "mean lab 0": 0.0,
        "lowest lab 0": -1.0,
        "highest lab 0": 1.0,
        "mean lab 1": 1.0,
        "lowest lab 1": 1.0,
        "highest lab 1": 1.0,
    }
    assert asked[1].keys() >= {"lab 0", "4", "mean lab 0"}
    assert "5" not in asked[1]  # nine days later


def test_only_visits_that_a_whole_window_of_the_record_follows_are_cut_after() -> None:
    assert by_visits_shown(0.0, after, 7.0).keys() == {1, 2, 3, 4}
    assert by_visits_shown(11.0, after, 7.0).keys() == {1, 2, 3}
    assert by_visits_shown(15.0, after, 7.0).keys() == {1, 2}


def test_the_window_before_ends_with_the_cut() -> None:
    log2 = round(float(np.log(2)), 4)
    assert by_visits_shown(0.0, before, 2.0)[2] == {
        "lab 0": log2,
        "4": log2,
        "mean lab 0": 0.0,
        "lowest lab 0": 0.0,
        "highest lab 0": 0.0,
    }


class Constant(nn.Module):
    """Forecasts the same of every cut."""

    def __init__(self, number: float, n_targets: int) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.full((n_targets,), number))

    def forward(self, batch: Batch) -> Tensor:
        return self.number.expand(len(batch.lengths), -1)


def test_losses_equal_an_independent_computation() -> None:
    records = Batches(random_store(80, V), np.arange(80), 300, 100)
    objective = Forecast(ForecastConfig(window_days=20.0, n_cuts=3), facts(records))
    model = Constant(0.5, len(objective.scale.kept))
    metrics = evaluate(model, objective, records, join_ranks("cpu"))
    errors, persistence = [], []
    for batch in records:
        cuts = draw_cuts(batch, 3, batch.generator(), least_days=20.0)
        if cuts is None:
            continue
        y, x = (of(batch, cuts, objective.axis, 20.0)[:, objective.scale.kept].numpy() for of in (after, before))
        target = (y - objective.scale.mean.numpy()) / objective.scale.sd.numpy()
        errors.append(np.nanmean((0.5 - target) ** 2, axis=1))
        guess = (x - objective.scale.mean_before.numpy()) * objective.scale.slope.numpy()
        persistence.append(np.nanmean((np.where(np.isnan(guess), 0, guess) - target) ** 2, axis=1))
    assert metrics["val/forecast_loss"] == pytest.approx(np.concatenate(errors).mean(), rel=1e-5)
    assert metrics["val/persistence_loss"] == pytest.approx(np.concatenate(persistence).mean(), rel=1e-5)


def test_members_learn_each_by_itself_and_forecast_their_mean() -> None:
    """Of two that miss by as much, one above and one below, each is taught its own error; together they are right."""
    records = Batches(random_store(80, V), np.arange(80), 100_000, 100)
    config = ForecastConfig(window_days=20.0)
    alone, both = (Forecast(config, replace(facts(records), n_members=n)) for n in (1, 2))
    batch, n_targets = next(iter(records)), len(alone.scale.kept)

    class Fixed(nn.Module):
        def __init__(self, *said: float) -> None:
            super().__init__()
            self.said = said

        def forward(self, history: Batch) -> Tensor:
            return torch.tensor(self.said).repeat_interleave(n_targets).repeat(len(history.lengths), 1)

    above, below, middle = (alone.loss(Fixed(said), batch).mean for said in (1.0, -1.0, 0.0))
    assert both.loss(Fixed(1.0, -1.0), batch).mean == pytest.approx((above + below) / 2)
    assert above + below > 2 * middle
    assert both.score(Fixed(1.0, -1.0), batch)["forecast"] == pytest.approx(alone.score(Fixed(0.0), batch)["forecast"])
    head = both.make_head(8)
    with torch.no_grad():
        of_two = head(torch.cat([torch.ones(3, 4), torch.zeros(3, 4)], dim=1), batch, torch.empty(0))
    assert torch.equal(of_two[:, n_targets:], torch.zeros(3, n_targets))  # the other member has a bias of 0
    assert of_two[:, :n_targets].abs().sum() > 0


def test_targets_have_mean_0_and_variance_1_among_training_windows() -> None:
    records = Batches(random_store(200, V), np.arange(200), 4096, 100)
    objective = Forecast(ForecastConfig(window_days=20.0), facts(records))
    targets = []
    for batch in replace(records, rows=np.random.default_rng(0).permutation(records.rows)):
        cuts = draw_cuts(batch, 4, batch.generator(), least_days=20.0)
        assert cuts is not None
        targets.append(objective.scale.targets(after(batch, cuts, objective.axis, 20.0)).numpy())
    values = np.concatenate(targets)
    np.testing.assert_allclose(np.nanmean(values, axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.nanstd(values, axis=0), 1, atol=1e-4)


def test_who_goes_on_as_before_is_foretold_by_persistence() -> None:
    often, seldom = (
        History([Visit([4] * n, 1.0 + day / 365, 1.0) for day in range(40)], end_age_years=2.0) for n in (3, 1)
    )
    records = records_of(*[often, seldom] * 20)
    objective = Forecast(ForecastConfig(window_days=5.0), facts(records))
    model = Constant(0.0, len(objective.scale.kept))
    metrics = evaluate(model, objective, records, join_ranks("cpu"))
    assert metrics["val/forecast_loss"] == pytest.approx(1, abs=0.1)
    assert metrics["val/persistence_loss"] < 0.3  # the first days have a shorter past


@pytest.mark.parametrize(
    ("window_days", "message"),
    [(None, "no training subject has two visits"), (400.0, "Set another objective.window_days")],
)
def test_records_with_nothing_to_forecast_are_refused(window_days: float | None, message: str) -> None:
    record = History([Visit([4])]) if window_days is None else RECORD
    with pytest.raises(DataError, match=message):
        Forecast(ForecastConfig(window_days=window_days), facts(records_of(record)))


def test_it_forecasts_where_codes_tell_each_other_and_not_where_they_were_dealt_out(tmp_path: Path) -> None:
    told_apart = train("forecast", diseases(), tmp_path / "told", epochs=6)
    assert told_apart["val/forecast_loss"] < 0.93 * told_apart["val/persistence_loss"]
    null = train("forecast", dealt_out(diseases()), tmp_path / "null", epochs=2)
    assert null["val/forecast_loss"] > 0.98 * null["val/persistence_loss"]
