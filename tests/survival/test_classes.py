"""Measures of classes on hand-worked labels, beside scikit-learn's, and drawn over subjects."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.classes import (
    Classes,
    auprc_interval,
    auroc,
    auroc_difference,
    auroc_interval,
    calibration_groups,
    calibration_intercept,
    calibration_slope,
    calibration_slope_interval,
    ratio_interval,
    smooth_calibration,
)


def classes(risk: list[float], truth: list[int], subject: list[int] | None = None) -> Classes:
    return Classes(np.array(risk), np.array(truth, dtype=bool), None if subject is None else np.array(subject))


def drawn(n: int, *, slope: float = 1.0, shift: float = 0.0, seed: int = 0) -> Classes:
    """N labels whose log odds are `slope` times those predicted, and `shift` more."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(-0.5, 1.2, n)
    truth = rng.random(n) < 1 / (1 + np.exp(-(slope * log_odds + shift)))
    return Classes(1 / (1 + np.exp(-log_odds)), truth)


def test_auroc_is_the_share_of_pairs_in_order_and_ties_count_half() -> None:
    assert auroc(classes([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])) == 0.75  # 3 of 4 pairs
    assert auroc(classes([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])) == 0.875  # 3 and a half of 4
    assert auroc(classes([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1])) == 0.5


def test_auroc_needs_both_classes() -> None:
    with pytest.raises(NotMeasurable, match="4 of 4 labels are true and 0 are false"):
        auroc(classes([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1]))


def test_auprc_is_average_precision_with_ties_called_together() -> None:
    # called at 0.9: 1 of 1; at 0.6: both ties, 2 of 3; at 0.2: 2 of 4
    of_ties = classes([0.9, 0.6, 0.6, 0.2] * 10, [1, 1, 0, 0] * 10)
    assert auprc_interval(of_ties, n_resamples=20).estimate == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # resampling every subject as often changes nothing: bounds are average precisions of drawn subjects
    one = drawn(300)
    interval = auprc_interval(one, n_resamples=200)
    assert interval.estimate == pytest.approx(average_precision_score(one.truth, one.risk))
    assert one.truth.mean() < interval.lower < interval.estimate < interval.upper < 1


def test_a_resample_of_auprc_is_that_of_the_drawn_rows() -> None:
    one = drawn(200)
    generator = np.random.default_rng(7)
    rows = generator.integers(200, size=200)
    expected = average_precision_score(one.truth[rows], one.risk[rows])
    only = auprc_interval(one, n_resamples=1, seed=7)
    assert only.lower == only.upper == pytest.approx(expected)


@pytest.mark.parametrize("measure", [auroc_interval, auprc_interval, calibration_slope_interval])
def test_rows_of_a_subject_are_drawn_together(measure) -> None:  # type: ignore[no-untyped-def]
    """Each of 150 subjects four times over: drawn one by one, the rows would make the interval half as wide."""
    once = drawn(150)
    repeated = Classes(*(np.repeat(values, 4) for values in (once.risk, once.truth, np.arange(150))))
    of_once, of_repeated = measure(once, n_resamples=60), measure(repeated, n_resamples=60)
    assert of_repeated.estimate == pytest.approx(of_once.estimate)
    assert (of_repeated.lower, of_repeated.upper) == pytest.approx((of_once.lower, of_once.upper))


def test_a_difference_of_a_model_to_itself_is_nothing_and_of_noise_is_found() -> None:
    one = drawn(400)
    same = auroc_difference(one, one.risk, n_resamples=50)
    assert (same.estimate, same.lower, same.upper) == (0, 0, 0)
    other = auroc_difference(one, np.random.default_rng(1).random(400), n_resamples=100)
    assert other.lower > 0


def test_a_share_is_one_sum_over_another() -> None:
    found = ratio_interval([1, 0, 1, 0] * 25, [1, 1, 1, 0] * 25, classes([0.5] * 100, [1, 0] * 50), n_resamples=50)
    assert found.estimate == pytest.approx(2 / 3)
    assert found.lower < 2 / 3 < found.upper
    with pytest.raises(NotMeasurable, match="no row"):
        ratio_interval([0, 0], [0, 0], classes([0.5, 0.5], [1, 0]))


def test_slope_and_intercept_are_those_of_a_logistic_regression() -> None:
    one = drawn(3_000, slope=2.0, shift=0.7)
    library = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky").fit(one.log_odds[:, None], one.truth)
    assert calibration_slope(one) == pytest.approx(library.coef_[0, 0], rel=1e-6)
    assert calibration_slope(one) == pytest.approx(2.0, abs=0.25)
    assert calibration_intercept(drawn(3_000, shift=0.7)) == pytest.approx(0.7, abs=0.12)


def test_a_calibrated_model_has_slope_1_and_an_ici_of_nearly_0() -> None:
    one = drawn(3_000)
    interval = calibration_slope_interval(one, n_resamples=60)
    assert interval.lower < 1 < interval.upper
    assert smooth_calibration(one).ici < 0.02
    assert smooth_calibration(drawn(3_000, shift=1.0)).ici > 0.1


def test_risks_that_separate_the_classes_have_no_slope() -> None:
    apart = classes([0.1] * 20 + [0.9] * 20, [0] * 20 + [1] * 20)
    with pytest.raises(NotMeasurable, match="separate the classes"):
        calibration_slope(apart)


def test_groups_are_shares_with_wilsons_interval() -> None:
    table = calibration_groups(classes([0.2] * 20 + [0.6] * 20, [1] * 4 + [0] * 16 + [1] * 12 + [0] * 8), n_groups=2)
    assert table["observed"].to_list() == [0.2, 0.6]
    # Wilson 1927 for 4 of 20: (0.2 + z2/40 -+ z sqrt(0.2 0.8 / 20 + z2/1600)) / (1 + z2/20)
    assert table["lower"][0] == pytest.approx(0.0807, abs=5e-4)
    assert table["upper"][0] == pytest.approx(0.4160, abs=5e-4)
