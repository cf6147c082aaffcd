"""Pooling: equal to a softmax and a maximum by hand for each subject, with their gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ehrtrack.models.pooling import attention_pool, subject_max

LENGTHS = [1, 7, 3]
WIDTH = 5
OFFSETS = torch.tensor([0, 1, 8, 11])


def pooled_by_hand(hidden: Tensor, score: nn.Linear) -> Tensor:
    subjects = hidden.split(LENGTHS)
    return torch.stack([score(states).softmax(0).T @ states for states in subjects])  # (B, P, D)


def states_and_scores() -> tuple[Tensor, nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    score = nn.Linear(WIDTH, 2)
    with torch.no_grad():
        score.weight.copy_(torch.randn(2, WIDTH, generator=generator))
        score.bias.copy_(torch.tensor([30.0, -30.0]))  # a softmax does not see it
    return torch.randn(11, WIDTH, generator=generator), score


def test_a_pool_is_the_softmax_weighted_mean_of_its_subject() -> None:
    hidden, score = states_and_scores()
    torch.testing.assert_close(attention_pool(hidden, score, OFFSETS), pooled_by_hand(hidden, score))


def test_gradients_are_those_of_a_softmax() -> None:
    hidden, score = states_and_scores()
    hidden.requires_grad_()
    upstream = torch.randn(3, 2, WIDTH, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(attention_pool(hidden, score, OFFSETS), [hidden, score.weight], upstream)
    expected = torch.autograd.grad(pooled_by_hand(hidden, score), [hidden, score.weight], upstream)
    torch.testing.assert_close(found, expected)


def test_scores_that_are_far_apart_do_not_overflow() -> None:
    hidden, score = states_and_scores()
    with torch.no_grad():
        score.weight.mul_(1e4)
    pooled = attention_pool(hidden, score, OFFSETS)
    highest = hidden[1:8][score(hidden)[1:8, 0].argmax()]
    torch.testing.assert_close(pooled[1, 0], highest)


def test_the_maximum_is_that_of_each_subject_and_has_its_gradient() -> None:
    states = -1 - torch.rand(11, WIDTH, generator=torch.Generator().manual_seed(0))  # all below 0: nothing is padded
    found, expected = states.clone().requires_grad_(), states.clone().requires_grad_()
    upstream = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    largest = subject_max(found, OFFSETS)
    by_hand = torch.stack([subject.amax(0) for subject in expected.split(LENGTHS)])
    assert torch.equal(largest, by_hand)
    largest.backward(upstream)
    by_hand.backward(upstream)
    assert torch.equal(found.grad, expected.grad)
