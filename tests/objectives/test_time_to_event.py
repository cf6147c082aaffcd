"""Time-to-event pretraining: what counts as an onset, for how long a code is at risk, and the likelihood."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pretraining import V, dealt_out, diseases, objective_for, train
from scipy.stats import expon
from simulated import History, Visit, store_of
from sksurv.nonparametric import nelson_aalen_estimator
from torch import Tensor, nn

from ehrtrack.data.batch import Batch, collate
from ehrtrack.data.cuts import draw_cuts
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives.time_to_event import (
    Axis,
    Onsets,
    TimeToEvent,
    negative_log_likelihood,
    onsets_after,
)


def axis_of(codes: list[int], edges_days: list[float], vocabulary_size: int = 12) -> Axis:
    column = torch.full((vocabulary_size,), -1)
    column[codes] = torch.arange(len(codes))
    return Axis(torch.tensor(codes), column, torch.tensor(edges_days))


def test_onsets_are_first_occurrences_after_the_cut_censored_at_the_end_of_the_record() -> None:
    #                 cut here, day 0 | day 10: 5 anew, 4 again | day 30: 5 again, 6 anew | end: day 37
    record = History(
        [Visit([4]), Visit([4, 5], 50.0, 10.0), Visit([5, 6], 50.1, 20.0)], end_age_years=50.2, end_gap_days=7.0
    )
    batch = collate(store_of([record]), np.array([0]), max_tokens=100)
    cuts = draw_cuts(batch, 40, torch.Generator().manual_seed(0))
    assert cuts is not None
    number = int((cuts.stop == 1).nonzero()[0])
    onsets = Onsets(*(x[number] for x in onsets_after(batch, cuts, axis_of([4, 5, 6, 7], [0.0]))))
    assert onsets.is_at_risk.tolist() == [False, True, True, True]
    assert onsets.is_event.tolist() == [False, True, True, False]
    assert onsets.days[1:].tolist() == [10.0, 30.0, 37.0]


def test_a_code_from_before_the_window_is_not_at_risk() -> None:
    record = History([Visit([4]), Visit([5], 50.0, 9.0), Visit([6], 50.0, 9.0), Visit([4], 50.0, 9.0)])
    batch = collate(store_of([record]), np.array([0]), max_tokens=4)
    cuts = draw_cuts(batch, 1, batch.generator())
    assert cuts is not None
    onsets = onsets_after(batch, cuts, axis_of([4, 7], [0.0]))
    assert onsets.is_at_risk[0].tolist() == [False, True]
    assert not onsets.is_event.any()


def test_days_at_risk_and_events_fall_into_their_pieces() -> None:
    axis = axis_of([4, 5, 6], [0.0, 10.0, 30.0])
    onsets = Onsets(
        torch.tensor([[10.0, 45.0, 25.0]]), torch.tensor([[True, True, False]]), torch.tensor([[True, True, False]])
    )
    assert axis.exposure(onsets)[0].tolist() == [[10, 10, 0], [0, 20, 0], [0, 15, 0]]
    assert axis.events(onsets)[0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_the_likelihood_of_one_piece_is_the_exponential_distributions() -> None:
    axis = axis_of([4, 5], [0.0])
    onsets = Onsets(torch.tensor([[12.0, 30.0]]), torch.tensor([[True, False]]), torch.ones(1, 2, dtype=torch.bool))
    log_hazard = torch.tensor([[[-3.0, -2.0]]])
    loss = negative_log_likelihood(log_hazard, axis.events(onsets), axis.exposure(onsets))
    expected = -expon(scale=np.exp(3)).logpdf(12) - expon(scale=np.exp(2)).logsf(30)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_a_hazard_that_is_the_same_in_all_pieces_is_that_of_one() -> None:
    onsets = Onsets(
        torch.tensor([[5.0, 20.0, 99.0]]), torch.tensor([[True, True, False]]), torch.ones(1, 3, dtype=torch.bool)
    )
    losses = []
    for edges in ([0.0], [0.0, 10.0, 30.0]):
        axis = axis_of([4, 5, 6], edges)
        rate = torch.tensor([-3.0, -4.0, -5.0]).expand(1, len(edges), 3)
        losses.append(float(negative_log_likelihood(rate, axis.events(onsets), axis.exposure(onsets))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_likelihood_is_greatest_at_nelson_and_aalens_hazard_however_records_end(seed: int) -> None:
    """Hazards that differ from piece to piece, and records that end at random within them."""
    rng, edges = np.random.default_rng(seed), np.array([0.0, 30.0, 90.0, 200.0])
    n, rates = 20_000, rng.uniform(0.0005, 0.004, 4)
    at_edges = np.concatenate([[0.0], np.cumsum(rates[:-1] * np.diff(edges))])
    came = np.interp(rng.exponential(size=n), [*at_edges, at_edges[-1] + 10], [*edges, 200 + 10 / rates[-1]])
    ends = rng.exponential(rng.uniform(50, 300), n)
    days, is_event = np.minimum(came, ends).astype(np.float32), came <= ends
    axis = axis_of([4], edges.tolist())
    onsets = Onsets(
        torch.from_numpy(days)[:, None], torch.from_numpy(is_event)[:, None], torch.ones(n, 1, dtype=torch.bool)
    )
    events, exposure = (x.double() for x in (axis.events(onsets), axis.exposure(onsets)))
    log_rate = (events.sum(dim=0) / exposure.sum(dim=0)).log().requires_grad_()  # (K, 1)
    negative_log_likelihood(log_rate.expand(n, -1, -1), events, exposure).backward()  # type: ignore[no-untyped-call]
    assert log_rate.grad is not None
    assert log_rate.grad.abs().max() < 1e-6  # events over days at risk is where the likelihood is flat
    times, reference = nelson_aalen_estimator(is_event, days)
    cumulative = np.cumsum(log_rate.detach()[:-1, 0].exp().numpy() * np.diff(edges))
    np.testing.assert_allclose(cumulative, reference[np.searchsorted(times, edges[1:], side="right") - 1], atol=0.005)


class Marginal(nn.Module):
    """Predicts what the objective's trivial predictor does."""

    def __init__(self, log_rate: Tensor) -> None:
        super().__init__()
        self.log_rate = log_rate

    def forward(self, batch: Batch) -> Tensor:
        return self.log_rate.expand(len(batch.lengths), -1, -1)


def test_the_trivial_predictor_has_the_rates_of_the_training_subjects() -> None:
    objective = objective_for(diseases(), "time-to-event", n_pieces=4)
    assert isinstance(objective, TimeToEvent)
    assert len(objective.axis.edges_days) == 4
    assert len(objective.axis.codes) == 24
    batch = collate(diseases(), np.arange(300), max_tokens=64)
    cuts = draw_cuts(batch, 60, batch.generator())
    assert cuts is not None
    onsets = onsets_after(batch, cuts, objective.axis)
    rates = objective.axis.events(onsets).sum(0) / objective.axis.exposure(onsets).sum(0)
    ratio = (objective.log_rate.exp() / rates).log()  # 600 cuts against 18,000
    assert float(ratio.abs().mean()) < 0.25
    assert float(ratio.mean()) == pytest.approx(0, abs=0.05)
    metrics = objective.metrics([objective.score(Marginal(objective.log_rate), batch)])
    assert metrics["val/onset_loss"] == pytest.approx(metrics["val/marginal_loss"], rel=1e-6)


def test_it_beats_the_marginal_rates_where_codes_tell_each_other(tmp_path: Path) -> None:
    best = train("time-to-event", diseases(), tmp_path, epochs=5, n_pieces=3)
    assert best["val/onset_loss"] < 0.93 * best["val/marginal_loss"]


def test_a_head_starts_from_the_regression_of_each_onset_and_says_what_that_reaches_alone(tmp_path: Path) -> None:
    objective = objective_for(diseases(), "time-to-event", n_pieces=3, lasso=0.1)
    assert isinstance(objective, TimeToEvent)
    assert objective.effects is not None
    batch = collate(diseases(), np.arange(300, 400), max_tokens=64)
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    model = EhrModel(encoder, objective.make_head(encoder.width)).eval()
    with torch.no_grad():
        expected = objective.effects(batch)[:, None] + objective.log_rate
        torch.testing.assert_close(model(batch), expected, rtol=0, atol=0.5)
        metrics = objective.metrics([objective.score(model, batch)])
    assert metrics["val/regression_loss"] < 0.8 * metrics["val/marginal_loss"]  # a code of a disease tells the others
    assert metrics["val/onset_loss"] == pytest.approx(metrics["val/regression_loss"], rel=0.02)
    assert not any("effects" in name for name, _ in model.named_parameters())
    best = train("time-to-event", diseases(), tmp_path, epochs=3, n_pieces=3, lasso=0.1)
    assert best["val/onset_loss"] < best["val/regression_loss"]


def test_without_a_regression_none_is_scored() -> None:
    objective = objective_for(diseases(), "time-to-event", n_pieces=3)
    batch = collate(diseases(), np.arange(300, 400), max_tokens=64)
    metrics = objective.metrics([objective.score(Marginal(objective.log_rate), batch)])  # type: ignore[attr-defined]
    assert "val/regression_loss" not in metrics


def test_it_does_not_beat_the_marginal_rates_where_codes_were_dealt_out(tmp_path: Path) -> None:
    best = train("time-to-event", dealt_out(diseases()), tmp_path, epochs=2, n_pieces=3)
    assert best["val/onset_loss"] > 0.99 * best["val/marginal_loss"]
