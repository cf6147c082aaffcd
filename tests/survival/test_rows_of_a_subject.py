"""Several rows a subject: every interval draws subjects with all their rows; with one row each nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from ehrtrack.survival.attainable import attainable_interval
from ehrtrack.survival.bootstrap import (
    auc_interval,
    c_index_interval,
    paired_difference,
    slope_interval,
    uno_c_interval,
)
from ehrtrack.survival.calibration import calibration_table
from ehrtrack.survival.cause_measures import cause_c_index_interval
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.likelihood import likelihood_gain
from ehrtrack.survival.resampling import Interval, drawn_counts, resampled_auc
from ehrtrack.survival.subgroups import score_subgroups
from ehrtrack.survival.time_grid import TimeGrid

N = 120
HORIZON = 60.0
RNG = np.random.default_rng(7)
SCORE = RNG.normal(size=N)
OTHER = SCORE + RNG.normal(size=N)
CAME = np.ceil(RNG.exponential(60 * np.exp(-SCORE)))
END = np.ceil(RNG.uniform(20, 120, N))
DAYS, EVENT = np.minimum(CAME, END), CAME <= END
RISK = 1 / (1 + np.exp(-SCORE))
SURVIVAL = np.stack([np.ones(N), 1 - RISK / 2, (1 - RISK / 2) ** 2], axis=1)
POPULATION = np.array([1, 0.6, 0.4])
Ints = npt.NDArray[np.int64]


def follow_up(subject: Ints | None, copies: int = 1) -> FollowUp:
    return FollowUp.of(DAYS, EVENT, np.repeat(DAYS, copies), np.repeat(EVENT, copies), subject=subject)


def gain(subject: Ints | None, copies: int = 1) -> Interval:
    grid = TimeGrid((0.0, HORIZON, 2 * HORIZON)).timed_by(DAYS, EVENT)
    days, event = np.repeat(DAYS, copies), np.repeat(EVENT, copies)
    return likelihood_gain(np.repeat(SURVIVAL, copies, axis=0), POPULATION, grid, days, event, subject=subject)


def of_rows(measure: Callable[..., Interval], *scores: npt.NDArray[np.float64]) -> Callable[..., Interval]:
    def interval(subject: Ints | None, copies: int = 1) -> Interval:
        values = (np.repeat(x, copies) for x in (*scores, DAYS, EVENT))
        return measure(*values, n_resamples=50, subject=subject)

    return interval


def of_follow_up(measure: Callable[..., Interval]) -> Callable[..., Interval]:
    def interval(subject: Ints | None, copies: int = 1) -> Interval:
        return measure(np.repeat(RISK, copies), follow_up(subject, copies), horizon_days=HORIZON, n_resamples=50)

    return interval


def of_cause(subject: Ints | None, copies: int = 1) -> Interval:
    cause = np.repeat(EVENT * (1 + np.arange(N) % 2), copies)
    return cause_c_index_interval(np.repeat(RISK, copies), np.repeat(DAYS, copies), cause, of=1, subject=subject)


def of_gap(subject: Ints | None, copies: int = 1) -> Interval:
    halves = {"half": pl.Series(np.repeat(["a", "b"] * (N // 2), copies))}
    scored = score_subgroups(
        np.repeat(RISK, copies), follow_up(subject, copies), halves, horizon_days=HORIZON, n_resamples=50
    )
    return Interval(*scored.gaps.row(0)[3:])


FORMER = {
    "c_index": (of_rows(c_index_interval, RISK), (0.7009246088193457, 0.6399631340187503, 0.7677904742761487)),
    "paired": (
        of_rows(paired_difference, RISK, OTHER),
        (0.09388335704125184, 0.05121486455173835, 0.13587470015959285),
    ),
    "attainable": (
        of_rows(attainable_interval, OTHER, RISK),
        (0.5327433628318582, 0.296319658381091, 0.7155213552224802),
    ),
    "uno_c": (of_follow_up(uno_c_interval), (0.7085655650730822, 0.6472128551399043, 0.7793715576229818)),
    "auc": (of_follow_up(auc_interval), (0.8144074516714014, 0.7415137819376785, 0.8851035695551672)),
    "slope": (of_follow_up(slope_interval), (1.4668465731857332, 1.0648670211138838, 2.2634815882147885)),
    "cause": (of_cause, (0.6351113716295428, 0.5388820169041475, 0.729991750997982)),
    "gap": (of_gap, (0.00997310390842887, -0.0819612638423532, 0.13605389442508892)),
    "likelihood": (gain, (-0.15349203413173448, -0.24047411209607034, -0.06650995616739862)),
}
"""What each gave before there were subjects with several rows (commit a3f370c)."""


@pytest.mark.parametrize("name", FORMER)
def test_one_row_a_subject_gives_the_former_numbers_to_the_last_bit(name):
    interval, expected = FORMER[name]
    found = interval(None)
    told = (found.estimate, found.lower, found.upper)
    if name == "slope":  # by BLAS, whose last bit depends on the processor
        expected = pytest.approx(expected, rel=1e-12)
    assert told == expected


@pytest.mark.parametrize("name", FORMER)
def test_what_subjects_are_called_changes_nothing(name):
    interval, expected = FORMER[name]
    found = interval(np.random.default_rng(0).permutation(N) + 10_000)
    assert (found.estimate, found.lower, found.upper) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", FORMER)
def test_each_row_four_times_is_no_more_than_once(name):
    """Copies of a subject's row add nothing: drawn as subjects the interval stays, drawn as rows it halves."""
    interval, (estimate, lower, upper) = FORMER[name]
    copies = interval(np.repeat(np.arange(N), 4), 4)
    if name not in ("attainable", "c_index", "paired", "cause", "gap", "uno_c", "auc"):
        assert (copies.lower, copies.upper) == pytest.approx((lower, upper), rel=1e-6)
    apart = interval(None, 4)
    width = upper - lower
    assert copies.upper - copies.lower == pytest.approx(width, rel=0.05)
    assert apart.upper - apart.lower < 0.75 * width
    assert copies.estimate == pytest.approx(estimate, abs=0.005)


def test_all_rows_of_a_subject_are_drawn_alike():
    subject = np.array([7, 3, 7, 9, 3, 7])
    (block, counts), *rest = drawn_counts(6, n_resamples=200, seed=0, subject=subject)
    assert (block, rest) == (slice(0, 200), [])
    assert (counts[:, [0, 0, 1]] == counts[:, [2, 5, 4]]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()  # as many draws as there are subjects
    assert np.ptp(counts.sum(axis=1)) > 0  # and so not always as many rows


def test_an_auc_is_resampled_by_subject_too():
    known = {"n_resamples": 3, "seed": 0}
    assert resampled_auc(RISK, EVENT, np.ones(N), **known).tolist() == [
        0.7834491090305044,
        0.6615746180963572,
        0.8048437059983103,
    ]
    subject = np.repeat(np.arange(N), 3)
    thrice = resampled_auc(np.repeat(RISK, 3), np.repeat(EVENT, 3), np.ones(3 * N), **known, subject=subject)
    assert thrice == pytest.approx(resampled_auc(RISK, EVENT, np.ones(N), **known), rel=1e-9)


def test_counts_are_of_different_subjects():
    subject = np.repeat(np.arange(N // 4), 4)
    table = calibration_table(RISK, DAYS, EVENT, horizon_days=HORIZON, n_groups=1, subject=subject)
    has_event = EVENT & (DAYS <= HORIZON)
    n_with_event = len(set(subject[has_event].tolist()))
    assert table.select("n_subjects", "n_events").row(0) == (N // 4, n_with_event)
    groups = {"half": pl.Series(["a", "b"] * (N // 2))}
    scored = score_subgroups(RISK, follow_up(subject), groups, horizon_days=HORIZON, n_resamples=20)
    assert scored.table["n_subjects"].to_list() == [N // 4] * 3
    assert scored.table["n_events"][0] == n_with_event
    members = np.arange(N) < 8
    assert replace(follow_up(subject)).of_members(members).n_people(np.ones(8, dtype=bool)) == 2
