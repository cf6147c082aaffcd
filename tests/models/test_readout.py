"""What [CLS] reads of the record: detectors, the largest of each, and its age."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import nn

from ehrtrack.data.batch import Batch, collate
from ehrtrack.models.behrt import Behrt, ModelConfig, Readout

VOCABULARY_SIZE = 40
YEAR = 365.25


def readout_of_the_first_feature() -> Readout:
    """The first detector alone sees something, and the hidden layer passes on what was read."""
    readout = Readout(4, (1.0, 30.0, YEAR), 0.0).requires_grad_(False)
    readout.norm = readout.read_norm = readout.fc1 = readout.fc2 = readout.activation = nn.Identity()  # type: ignore[assignment]
    nn.init.zeros_(readout.detect.weight)
    nn.init.zeros_(readout.detect.bias)
    readout.detect.weight[0, 0] = 1.0
    return readout


def packed_at(days_to_end: Sequence[Sequence[float]]) -> Batch:
    """A batch that knows its tokens' times alone, each subject's [CLS] at its end."""
    days = [[*subject, 0.0] for subject in days_to_end]
    nothing = torch.zeros(sum(map(len, days)), dtype=torch.long)
    return Batch(
        rows=torch.arange(len(days)),
        lengths=tuple(map(len, days)),
        seed=0,
        token=nothing,
        age=nothing,
        segment=nothing,
        position=nothing,
        gap=nothing,
        days_to_end=torch.tensor([day for subject in days for day in subject]),
    )


def test_the_readout_is_the_largest_of_each_detector_decayed_and_grown_by_its_age() -> None:
    batch = packed_at([[400.0, 30.0], [torch.inf]])  # two tokens and [CLS]; a static fact and [CLS]
    x = torch.zeros(5, 4)
    x[:, 0] = torch.tensor([2.0, 1.0, -5.0, 3.0, 0.0])
    recent, old = np.exp(-30 / YEAR), 2 * np.exp(-400 / YEAR)
    assert recent > old
    first = [2 * (1 - np.exp(-400 / scale)) for scale in (1.0, 30.0, YEAR)]
    expected = [[2.0, np.exp(-30), np.exp(-1), recent, *first], [3.0, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(readout_of_the_first_feature()(x, batch)[:, ::4], expected, rtol=1e-5)


def test_the_readout_starts_as_nothing_and_then_reaches_every_token_of_its_subject_through_cls() -> None:
    """So do masked tokens train it, whose head does not read [CLS]."""
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny", dropout=0.0), VOCABULARY_SIZE).eval()
    batch = collate(random_store(4, VOCABULARY_SIZE), np.arange(4), max_tokens=24)
    with torch.no_grad():
        start = encoder(batch)
        encoder.readout.detect.weight.mul_(2)
        assert torch.equal(encoder(batch), start)
        encoder.readout.fc2.weight.normal_()
        assert (encoder(batch) != start).any(dim=1).all()


def test_states_in_bfloat16_are_decayed_in_full_precision() -> None:
    """Decays of years differ in the third digit within ten days, which bfloat16 does not have."""
    batch = packed_at([[1000.0], [1010.0]])
    x = torch.zeros(4, 4, dtype=torch.bfloat16)
    x[[0, 2], 0] = 1.0
    readout = readout_of_the_first_feature()
    readout.detect = readout.detect.to(torch.bfloat16)
    read = readout(x, batch)
    assert float(read[0, 12] - read[1, 12]) == pytest.approx(np.exp(-1000 / YEAR) - np.exp(-1010 / YEAR), rel=1e-4)
