from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ehrtrack.survival.losses import negative_log_likelihood, ranking_loss, survival_loss
from ehrtrack.survival.time_grid import TimeGrid


def random_subjects(seed: int, n: int = 12, k: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (n, k) in float64, interval, is_event, follow_up_days, with many tied times."""
    generator = torch.Generator().manual_seed(seed)
    grid = TimeGrid(tuple(float(10 * edge) for edge in range(k + 1)))
    days = torch.randint(1, 10 * k + 1, (n,), generator=generator).double()
    event = torch.rand(n, generator=generator) < 0.5
    interval = torch.from_numpy(grid.interval_of(days.numpy(), event.numpy()))
    return torch.randn(n, k, generator=generator, dtype=torch.float64), interval, event, days


def test_likelihood_by_hand() -> None:
    # Hazards .1, .2, .3 for everybody. Event in interval 1: .9 * .2. Censored with 2 intervals survived: .9
    # * .8.
    logits = torch.logit(torch.tensor([[0.1, 0.2, 0.3]] * 2))
    loss = negative_log_likelihood(logits, torch.tensor([1, 2]), torch.tensor([True, False]))
    assert loss.item() == pytest.approx(-(math.log(0.9 * 0.2) + math.log(0.9 * 0.8)) / 2, abs=1e-6)


def test_a_subject_followed_to_the_horizon_has_survived_every_interval() -> None:
    logits = torch.logit(torch.tensor([[0.1, 0.2, 0.3]]))
    loss = negative_log_likelihood(logits, torch.tensor([3]), torch.tensor([False]))
    assert loss.item() == pytest.approx(-math.log(0.9 * 0.8 * 0.7), abs=1e-6)


def test_intervals_after_the_subject_left_change_nothing() -> None:
    logits, interval, event, _ = random_subjects(0)
    position = torch.arange(logits.shape[1])
    is_later = position > interval[:, None]
    is_unseen = is_later | ((position == interval[:, None]) & ~event[:, None])
    moved = torch.where(is_unseen, logits + 7.0, logits)
    assert not torch.equal(moved, logits)
    assert torch.equal(
        negative_log_likelihood(moved, interval, event), negative_log_likelihood(logits, interval, event)
    )


def test_extreme_logits_give_finite_loss_and_gradient() -> None:
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = survival_loss(
        logits, torch.tensor([0, 2]), torch.tensor([True, False]), torch.tensor([5.0, 20.0]), lambda_rank=0.1
    )
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_summed_in_single_precision() -> None:
    logits, interval, event, days = random_subjects(3)
    half = logits.bfloat16()
    assert survival_loss(half, interval, event, days, lambda_rank=0.1).dtype == torch.float32
    assert ranking_loss(half, interval, event, days).dtype == torch.float32
    assert negative_log_likelihood(half, interval, event).dtype == torch.float32


def test_likelihood_gradient_is_exact() -> None:
    logits, interval, event, _ = random_subjects(1, n=6, k=4)
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: negative_log_likelihood(x, interval, event), (logits,))


def test_ranking_gradient_is_exact() -> None:
    logits, interval, event, days = random_subjects(2, n=6, k=4)
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: ranking_loss(x, interval, event, days, sigma=0.3), (logits,))


def deephit_ranking(logits: Tensor, interval: Tensor, event: Tensor, days: Tensor, sigma: float) -> float:
    """Lee et al. 2018 as written, pair by pair: A_ij eta(F(s_i | x_i), F(s_i | x_j))."""
    terms = []
    for i in range(len(days)):
        for j in range(len(days)):
            outlives = days[i] < days[j] or (days[i] == days[j] and not event[j])
            if event[i] and outlives:
                k = int(interval[i])
                f_i = 1 - math.prod(1 - torch.sigmoid(x).item() for x in logits[i, : k + 1])
                f_j = 1 - math.prod(1 - torch.sigmoid(x).item() for x in logits[j, : k + 1])
                terms.append(math.exp(-(f_i - f_j) / sigma))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_ranking_loss_equals_the_double_loop_of_the_paper(seed: int, sigma: float) -> None:
    logits, interval, event, days = random_subjects(seed)
    loss = ranking_loss(logits, interval, event, days, sigma=sigma)
    assert loss.item() == pytest.approx(deephit_ranking(logits, interval, event, days, sigma), rel=1e-10)


def test_ranking_loss_falls_when_the_earlier_event_gets_the_higher_risk() -> None:
    days, event, interval = torch.tensor([5.0, 15.0]), torch.tensor([True, False]), torch.tensor([0, 1])
    right = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    assert ranking_loss(right, interval, event, days) < ranking_loss(right.flip(0), interval, event, days)


@pytest.mark.parametrize(
    ("days", "event"),
    [
        pytest.param([5.0, 15.0], [False, False], id="all censored"),
        pytest.param([5.0, 5.0], [True, True], id="two events at one time"),
        pytest.param([5.0, 15.0], [False, True], id="the event comes last"),
        pytest.param([5.0], [True], id="one subject"),
    ],
)
def test_ranking_without_an_admissible_pair_is_zero_with_a_zero_gradient(days: list[float], event: list[bool]) -> None:
    logits = torch.randn(len(days), 2, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    grid = TimeGrid((0.0, 10.0, 20.0))
    interval = torch.from_numpy(grid.interval_of(days, event))
    loss = ranking_loss(logits, interval, torch.tensor(event), torch.tensor(days))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_pair_outside_the_set_cannot_make_the_loss_nan_however_small_sigma_is() -> None:
    # The pair (1, 0) is not admissible, and its term would overflow to inf.
    logits = torch.tensor([[9.0, 9.0], [-9.0, -9.0]], requires_grad=True)
    interval, event, days = torch.tensor([0, 1]), torch.tensor([True, True]), torch.tensor([5.0, 15.0])
    loss = ranking_loss(logits, interval, event, days, sigma=0.001)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_total_is_likelihood_plus_weighted_ranking() -> None:
    logits, interval, event, days = random_subjects(4)
    total = survival_loss(logits, interval, event, days, lambda_rank=0.3, sigma=0.5)
    nll = negative_log_likelihood(logits, interval, event)
    rank = ranking_loss(logits, interval, event, days, sigma=0.5)
    assert rank > 0
    assert total.item() == pytest.approx(nll.item() + 0.3 * rank.item())


def test_at_weight_zero_the_total_is_the_likelihood() -> None:
    logits, interval, event, days = random_subjects(4)
    total = survival_loss(logits, interval, event, days, lambda_rank=0.0)
    assert total.item() == negative_log_likelihood(logits, interval, event).item()


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_order_of_subjects_changes_nothing(seed: int) -> None:
    logits, interval, event, days = random_subjects(seed)
    order = torch.randperm(len(days), generator=torch.Generator().manual_seed(seed))
    before = survival_loss(logits, interval, event, days, lambda_rank=0.2)
    after = survival_loss(logits[order], interval[order], event[order], days[order], lambda_rank=0.2)
    assert before.item() == pytest.approx(after.item(), rel=1e-12)
