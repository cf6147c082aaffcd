"""Pooling: equal to a softmax and a maximum by hand for each subject, with their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ehrtrack.models.pooling import attention_pool, subject_max

LENGTHS = [1, 7, 3]
WIDTH = 5
OFFSETS = torch.tensor([0, 1, 8, 11])
SUBJECT = torch.tensor([0] + [1] * 7 + [2] * 3)


def pooled_by_hand(hidden: Tensor, query: Tensor) -> Tensor:
    return torch.stack([(states @ query).softmax(0) @ states for states in hidden.split(LENGTHS)])  # (B, D)


def states_and_query() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(11, WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)


def test_a_pool_is_the_softmax_weighted_mean_of_its_subject() -> None:
    hidden, query = states_and_query()
    torch.testing.assert_close(attention_pool(hidden, query, SUBJECT, OFFSETS), pooled_by_hand(hidden, query))


def test_gradients_are_those_of_a_softmax() -> None:
    inputs = [tensor.requires_grad_() for tensor in states_and_query()]
    upstream = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(attention_pool(*inputs, SUBJECT, OFFSETS), inputs, upstream)
    expected = torch.autograd.grad(pooled_by_hand(*inputs), inputs, upstream)
    torch.testing.assert_close(found, expected)


def test_scores_that_are_far_apart_do_not_overflow() -> None:
    hidden, query = states_and_query()
    query *= 1e4
    pooled = attention_pool(hidden, query, SUBJECT, OFFSETS)
    highest = hidden[1:8][(hidden[1:8] @ query).argmax()]
    torch.testing.assert_close(pooled[1], highest)


def test_the_maximum_is_that_of_each_subject_and_has_its_gradient() -> None:
    states = -1 - torch.rand(11, WIDTH, generator=torch.Generator().manual_seed(0))  # all below 0: nothing is padded
    found, expected = states.clone().requires_grad_(), states.clone().requires_grad_()
    upstream = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    largest = subject_max(found, SUBJECT, OFFSETS)
    by_hand = torch.stack([subject.amax(0) for subject in expected.split(LENGTHS)])
    assert torch.equal(largest, by_hand)
    assert torch.equal(subject_max(states, SUBJECT, OFFSETS), by_hand)  # without a gradient it goes another way
    largest.backward(upstream)
    by_hand.backward(upstream)
    assert torch.equal(found.grad, expected.grad)


def test_the_maximum_of_weighted_values_is_that_of_their_products_with_the_gradient_of_these() -> None:
    generator = torch.Generator().manual_seed(0)
    states, weights = torch.randn(11, WIDTH, generator=generator), torch.rand(11, 3, generator=generator)
    found, expected = states.clone().requires_grad_(), states.clone().requires_grad_()
    upstream = torch.randn(3, 3 * WIDTH, generator=generator)
    largest = subject_max(found, SUBJECT, OFFSETS, weights)
    by_hand = torch.cat([(expected * weight[:, None]).unsqueeze(0) for weight in weights.T]).split(LENGTHS, dim=1)
    by_hand = torch.stack([subject.amax(1).flatten() for subject in by_hand])
    assert torch.equal(largest, by_hand)
    assert torch.equal(subject_max(states, SUBJECT, OFFSETS, weights), by_hand)
    largest.backward(upstream)
    by_hand.backward(upstream)
    torch.testing.assert_close(found.grad, expected.grad)
