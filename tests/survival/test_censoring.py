"""Weights for what censoring hides."""

from __future__ import annotations

import numpy as np
import pytest

from ehrtrack.survival.censoring import FollowUp


def test_where_nobody_is_followed_to_the_horizon_only_events_have_a_weight() -> None:
    days, event = np.array([10.0, 20.0, 30.0, 40.0]), np.array([True, False, True, False])
    weights = FollowUp.of(days, event, days, event).weights_at(1095)
    assert weights[1] == weights[3] == 0
    assert weights[0] == 1  # nobody was censored before
    assert weights[2] == pytest.approx(1.5)  # one of three was, at 20 days
