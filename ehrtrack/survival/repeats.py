"""Differences of two models over repeats: over splits by Nadeau and Bengio, within a split by the bootstrap.

Each test gives the same three facts: an interval at 95 %, a two-sided p, and the interval at 90 % which two one-sided
tests at 5 % compare with a margin of equivalence (Schuirmann 1987, J Pharmacokinet Biopharm 15:657-680).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from scipy.stats import t as student_t

from ehrtrack.arrays import Floats
from ehrtrack.errors import NotMeasurable
from ehrtrack.survival.resampling import LEVEL, Interval, percentile_interval

EQUIVALENCE_LEVEL = 0.90
"""Of the interval that lies within the margin exactly where two one-sided tests at 5 % both reject."""
LEAST_SPLITS = 2
NOTHING = 1e-12
"""A smaller spread is that of floating-point numbers."""
LEAST_BEYOND = 10
"""Resamples beyond 0 whose number is a p-value by itself."""


@dataclass(frozen=True)
class Contrast:
    """A difference of two models with what its test says of it.

    Attributes
    ----------
    interval : at 95 %
    inner : the interval at 90 %, for equivalence
    p : two-sided, of no difference

    Examples
    --------
    >>> tested = Contrast(Interval(0.002, -0.009, 0.013), Interval(0.002, -0.007, 0.011), p=0.7)
    >>> tested.is_within(0.02), tested.is_within(0.01)
    (True, False)
    """

    interval: Interval
    inner: Interval
    p: float

    def is_within(self, margin: float) -> bool:
        """Whether the two models are equivalent within a margin, by two one-sided tests at 5 %."""
        return -margin < self.inner.lower and self.inner.upper < margin


def difference_over_splits(differences: npt.ArrayLike, *, test_to_training: float) -> Contrast:
    """The mean difference over J random splits, by the corrected resampled t-test.

    The variance of the mean is (1/J + n_test/n_train) S², where S² is the variance of the differences: splits of one
    dataset share subjects, and the mean over many of them is less certain than 1/J says (Nadeau & Bengio 2003, Machine
    Learning 52:239-281, equation 9). t has J - 1 degrees of freedom.

    Parameters
    ----------
    differences : (J,) one a split
    test_to_training : test subjects a subject that training subjects are drawn from, which is n_test/n_train where all
        of these are labelled

    Raises
    ------
    NotMeasurable
        If there are fewer than two splits.

    Examples
    --------
    Differences of mean .02 and variance .0002 / 3 over 4 splits, with a test subject to 4 training subjects: the
    standard error is sqrt((1/4 + 1/4) x .0002 / 3) = .00577, and the quantile of t with 3 degrees of freedom is 3.182.

    >>> tested = difference_over_splits([0.01, 0.02, 0.02, 0.03], test_to_training=0.25)
    >>> print(tested.interval, round(tested.p, 3))
    0.020 [0.002, 0.038] 0.041
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size < LEAST_SPLITS:
        raise NotMeasurable(f"there is {values.size} split, and needed are {LEAST_SPLITS} at least")
    mean, degrees = float(values.mean()), values.size - 1
    error = float(np.sqrt((1 / values.size + test_to_training) * values.var(ddof=1)))
    if error < NOTHING:  # models that are the same on every split, such as two names of one
        return Contrast(Interval(mean, mean, mean), Interval(mean, mean, mean), p=float(abs(mean) < NOTHING))

    def interval(level: float) -> Interval:
        reach = float(student_t.ppf((1 + level) / 2, degrees)) * error
        return Interval(mean, mean - reach, mean + reach)

    p = 2 * float(student_t.sf(abs(mean) / error, degrees))
    return Contrast(interval(LEVEL), interval(EQUIVALENCE_LEVEL), p)


def difference_within_split(
    this: tuple[Floats, Floats], to: tuple[Floats, Floats], *, generator: np.random.Generator
) -> Contrast:
    """The difference of two models on the test subjects of one split, by the bootstrap over subjects and seeds.

    Parameters
    ----------
    this, to : of either model the estimates of its S seeds (S,), and their values in R resamples of the test subjects
        (S, R), which are the same resamples for both models
    generator : draws the seeds

    Raises
    ------
    NotMeasurable
        If too many resamples have no value.

    Examples
    --------
    Two models of one seed each, of which one is better by .1 in each of a hundred resamples:

    >>> resampled = np.linspace(0.6, 0.8, 100)[None, :]
    >>> this, to = (np.array([0.8]), resampled + 0.1), (np.array([0.7]), resampled)
    >>> tested = difference_within_split(this, to, generator=np.random.default_rng(0))
    >>> print(tested.interval, round(tested.p, 3))
    0.100 [0.100, 0.100] 0.02
    """
    return difference_over_draws([(this, to)], generator=generator)


def difference_over_draws(
    draws: Sequence[tuple[tuple[Floats, Floats], tuple[Floats, Floats]]], *, generator: np.random.Generator
) -> Contrast:
    """As `difference_within_split`, where both models learned from the same few labels, drawn several times.

    A draw that is good to one model is mostly good to the other. So differences are taken draw by draw, and it is of
    these that new draws are made.

    Parameters
    ----------
    draws : of each draw of labels the two models, as in `difference_within_split`

    Examples
    --------
    Two draws, one of them bad for both models; the first model is better by .1 in both:

    >>> resampled = np.linspace(0.6, 0.8, 100)[None, :]
    >>> good = ((np.array([0.8]), resampled + 0.1), (np.array([0.7]), resampled))
    >>> bad = ((np.array([0.7]), resampled), (np.array([0.6]), resampled - 0.1))
    >>> print(difference_over_draws([good, bad], generator=np.random.default_rng(0)).interval)
    0.100 [0.100, 0.100]
    """
    estimate = float(np.mean([this[0].mean() - to[0].mean() for this, to in draws]))
    of_draws = [_over_drawn_seeds(this[1], generator) - _over_drawn_seeds(to[1], generator) for this, to in draws]
    resampled = _over_drawn_seeds(np.stack(of_draws), generator)
    interval, inner = (percentile_interval(estimate, resampled, level) for level in (LEVEL, EQUIVALENCE_LEVEL))
    return Contrast(interval, inner, _bootstrap_p(resampled))


def _over_drawn_seeds(resampled: Floats, generator: np.random.Generator) -> Floats:
    """(R,) mean over S seeds that are drawn anew in each resample.

    Means of S draws out of S vary by (S - 1)/S of what means of S new seeds do; with 2 or 3 seeds that is much, so
    what the draws change is stretched by the root of its inverse.
    """
    n_seeds, n_resamples = resampled.shape
    mean: Floats = resampled.mean(axis=0)
    if n_seeds == 1:
        return mean
    drawn = generator.integers(n_seeds, size=(n_seeds, n_resamples))
    over_drawn: Floats = np.take_along_axis(resampled, drawn, axis=0).mean(axis=0)
    stretched: Floats = mean + np.sqrt(n_seeds / (n_seeds - 1)) * (over_drawn - mean)
    return stretched


def _bootstrap_p(resampled: Floats) -> float:
    """Two-sided p that belongs to the percentile interval: the least level at which the interval reaches 0.

    Where few resamples lie beyond 0, their number says little, and p is by the normal distribution if that is smaller:
    a family of many tests needs p-values below what resamples can count.
    """
    defined = resampled[np.isfinite(resampled)]
    beyond = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    counted = min(1.0, 2 * (beyond + 1) / (defined.size + 1))
    spread = float(defined.std(ddof=1))
    if beyond >= LEAST_BEYOND or spread < NOTHING:
        return counted
    return min(counted, 2 * float(norm.sf(abs(float(defined.mean())) / spread)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, adjusted so that a false claim among all of them has 5 % (Holm 1979).

    Examples
    --------
    The smallest is multiplied by 3, the next by 2, and none becomes smaller than one before it:

    >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    from statsmodels.stats.multitest import multipletests  # 1.5 s, for comparisons over repeats alone

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []
