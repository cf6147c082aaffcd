"""Tests of differences over repeats: hand-worked numbers, and how often they claim what is not so.

`EHRTRACK_NULL_COMPARISONS=200` simulates as many comparisons of each kind; the suite takes fewer.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from ehrtrack.arrays import Floats
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.repeats import (
    Contrast,
    difference_over_splits,
    difference_within_split,
    holm,
)
from ehrtrack.survival.resampling import Interval, c_indices_and_resamples

N_COMPARISONS = int(os.environ.get("EHRTRACK_NULL_COMPARISONS", "60"))


def test_nadeau_and_bengio_by_hand() -> None:
    # Mean .03, S² = (.02² + .01² + 0 + .01² + .02²) / 4 = .00025; the test split is 3/14 of the training split.
    # Standard error sqrt((1/5 + 3/14) x .00025) = .0101770; t.975 with 4 degrees is 2.776445, t.95 2.131847.
    tested = difference_over_splits([0.01, 0.02, 0.03, 0.04, 0.05], test_to_training=3 / 14)
    assert tested.interval.estimate == pytest.approx(0.03)
    assert tested.interval.upper == pytest.approx(0.03 + 2.776445 * 0.0101770, abs=1e-6)
    assert tested.interval.lower == pytest.approx(0.03 - 2.776445 * 0.0101770, abs=1e-6)
    assert tested.inner.upper == pytest.approx(0.03 + 2.131847 * 0.0101770, abs=1e-6)
    assert tested.p == pytest.approx(0.042, abs=5e-4)  # t = 2.947814


def test_two_splits_have_one_degree_of_freedom_and_one_split_has_no_test() -> None:
    tested = difference_over_splits([0.01, 0.03], test_to_training=0.0)  # standard error .01, t.975 of 1 is 12.7062
    assert tested.interval.upper == pytest.approx(0.02 + 12.7062 * 0.01, abs=1e-6)
    with pytest.raises(NotMeasurable, match="there is 1 split, and needed are 2 at least"):
        difference_over_splits([0.01], test_to_training=0.0)


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.01, 0.0)])
def test_a_model_under_two_names_does_not_differ_from_itself(value: float, p: float) -> None:
    tested = difference_over_splits([value] * 3, test_to_training=0.2)
    assert (tested.interval, tested.p) == (Interval(value, value, value), p)


def test_holm_by_hand() -> None:
    # In order .005, .01, .03, .04: x 4 = .02, x 3 = .03, x 2 = .06, x 1 = .04, which may not be below .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("bounds", "is_within"), [((-0.009, 0.009), True), ((-0.011, 0.009), False), ((0.0, 0.01), False)]
)
def test_equivalence_is_the_inner_interval_within_the_margin(bounds: tuple[float, float], is_within: bool) -> None:
    inner = Interval(sum(bounds) / 2, *bounds)
    assert Contrast(Interval(0, -1, 1), inner, 0.5).is_within(0.01) is is_within


def against_nothing(resampled: Floats) -> Contrast:
    nothing = np.zeros((1, resampled.size))
    estimate = np.array([resampled.mean()])
    return difference_within_split(
        (estimate, resampled[None, :]), (nothing[:, 0], nothing), generator=np.random.default_rng(0)
    )


def test_the_p_of_the_bootstrap_counts_resamples_beyond_zero() -> None:
    resampled = np.concatenate([np.full(11, -0.01), np.full(188, 0.02)])
    assert against_nothing(resampled).p == pytest.approx(2 * 12 / 200)


def test_where_few_resamples_are_beyond_zero_p_is_by_the_normal_distribution() -> None:
    # Of mean 5 and standard deviation 1: no resample is beyond 0, which alone would say .02; 5 deviations say 5.7e-7.
    resampled = np.array([4.0, 6.0] * 49 + [5.0])
    tested = against_nothing(resampled * 0.01 / np.std(resampled, ddof=1))
    assert tested.p == pytest.approx(2 * 2.87e-7, rel=0.15)
    assert against_nothing(np.full(99, 0.02)).p == 0.02  # and where they do not vary, it is counted


def test_a_draw_of_seeds_varies_as_much_as_new_seeds_would() -> None:
    # Seeds of .60 and .70, alike in every resample: their variance is .005, that of a mean of two .0025.
    seeds = np.repeat([[0.60], [0.70]], 20_000, axis=1)
    none = np.zeros((1, 20_000))
    tested = difference_within_split((seeds[:, 0], seeds), (none[:, 0], none), generator=np.random.default_rng(0))
    # Of two draws the mean is .60, .65 or .70; stretched by the root of 2 the ends are .65 -+ .0707.
    assert tested.interval.lower == pytest.approx(0.65 - 0.05 * np.sqrt(2))
    assert tested.interval.upper == pytest.approx(0.65 + 0.05 * np.sqrt(2))


# How often a difference is claimed


def rejected(test: Callable[[np.random.Generator], Contrast]) -> float:
    """Share of the simulated comparisons that are rejected at 5 %."""
    return float(np.mean([test(np.random.default_rng(number)).p < 0.05 for number in range(N_COMPARISONS)]))


def over_splits(
    generator: np.random.Generator, *, gain: float = 0.0, n_labels: int | None = None, n_splits: int = 5
) -> Contrast:
    """Two learners that each know one half of the covariates, which say equally much: neither is better.

    With a gain, those of the first say more.
    """
    n, width = 1400, 8
    x = generator.normal(size=(n, 2 * width))
    effect = np.full(2 * width, 0.25)
    effect[:width] *= 1 + gain
    log_days = -x @ effect + generator.gumbel(size=n)
    differences = []
    for _ in range(n_splits):
        order = generator.permutation(n)
        test, training = order[: int(0.2 * n)], order[int(0.2 * n) :][:n_labels]
        scores = []
        for half in (slice(0, width), slice(width, None)):
            fitted, *_ = np.linalg.lstsq(x[training, half], log_days[training], rcond=None)
            scores.append(c_index(-x[test, half] @ fitted, np.exp(log_days[test]), np.ones(len(test), dtype=bool)))
        differences.append(scores[0] - scores[1])
    return difference_over_splits(differences, test_to_training=0.2 / 0.8)


def within_split(
    generator: np.random.Generator, *, gain: float = 0.0, n_seeds: int = 2, n_test: int = 400, n_resamples: int = 200
) -> Contrast:
    """Two models whose seeds know the true risk up to noise of the same size; a gain takes noise from the first."""
    truth = generator.normal(size=n_test)
    days, censored = generator.exponential(np.exp(-truth)), generator.exponential(3, size=n_test)
    event, days = days <= censored, np.minimum(days, censored)

    def model(noise: float) -> tuple[Floats, Floats]:
        own = generator.normal(size=n_test)
        spread = 0.1 if n_seeds > 1 else 0.0  # what one seed varies by cannot be seen
        sizes = noise * np.exp(spread * generator.normal(size=n_seeds))
        risks = [truth + size * (0.8 * own + 0.6 * generator.normal(size=n_test)) for size in sizes]
        scored = c_indices_and_resamples(risks, days, event, n_resamples=n_resamples, seed=1, subject=None)
        return np.array([estimate for estimate, _ in scored]), np.stack([resampled for _, resampled in scored])

    this, to = model(1 - gain), model(1)
    return difference_within_split(this, to, generator=generator)


@pytest.mark.parametrize("n_labels", [None, 100])
def test_over_splits_a_difference_is_rarely_claimed_where_there_is_none(n_labels: int | None) -> None:
    assert rejected(lambda generator: over_splits(generator, n_labels=n_labels)) <= 0.10


def test_within_a_split_a_difference_is_rarely_claimed_where_there_is_none() -> None:
    assert rejected(within_split) <= 0.10
