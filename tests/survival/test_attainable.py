"""The share of the attainable, by hand and against its own definition."""

from __future__ import annotations

import numpy as np
import pytest

from ehrtrack.errors import DataError
from ehrtrack.survival.attainable import attainable_interval, share_of_attainable
from ehrtrack.survival.bootstrap import c_index_interval


def population(n: int = 800) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True risk, days and events of subjects whose hazard is the exponential of the true risk."""
    rng = np.random.default_rng(0)
    risk = rng.normal(size=n)
    return risk, rng.exponential(np.exp(-risk)), rng.random(n) < 0.7


@pytest.mark.parametrize(
    ("c", "oracle", "share"), [(0.65, 0.8, 0.5), (0.8, 0.8, 1.0), (0.5, 0.8, 0.0), (0.44, 0.8, -0.2)]
)
def test_the_share_is_that_of_what_lies_above_chance(c: float, oracle: float, share: float) -> None:
    assert share_of_attainable(c, oracle) == pytest.approx(share)


def test_an_oracle_at_chance_leaves_nothing_to_attain() -> None:
    with pytest.raises(DataError, match=r"oracle's C-index is 0\.500 .* no better than chance"):
        share_of_attainable(0.6, 0.5)


def test_the_oracle_attains_all_of_it_in_every_resample() -> None:
    risk, days, event = population()
    found = attainable_interval(np.exp(risk), risk, days, event)
    assert (found.estimate, found.lower, found.upper) == (1.0, 1.0, 1.0)


def test_pairing_makes_the_interval_narrower_than_the_models_own() -> None:
    truth, days, event = population()
    risk = truth + np.random.default_rng(1).normal(scale=1.0, size=truth.size)
    found, own = attainable_interval(risk, truth, days, event), c_index_interval(risk, days, event)
    oracle = c_index_interval(truth, days, event).estimate
    assert found.estimate == pytest.approx((own.estimate - 0.5) / (oracle - 0.5))
    assert found.lower < found.estimate < found.upper < 1
    assert found.upper - found.lower < (own.upper - own.lower) / (oracle - 0.5)
