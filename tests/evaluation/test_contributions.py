"""Contributions over a cohort, worked out by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ehrtrack.evaluation.contributions import hits, share_interval, summarise_contributions


def of(rows: list[tuple[int, str, float]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["row", "code", "contribution"], orient="row")


def test_means_are_over_all_subjects_or_over_those_who_have_the_code() -> None:
    rows = [(row, "A", 1.0 if row % 4 == 0 else -0.5) for row in range(0, 40, 2)]
    rows += [(row, "B", 0.2) for row in range(40)]
    a, b = summarise_contributions(of(rows), range(40)).sort("code").iter_rows(named=True)
    assert (a["n_subjects"], a["share_subjects"], a["share_raising"]) == (20, 0.5, 0.5)
    assert a["mean_size"] == pytest.approx((10 * 1.0 + 10 * 0.5) / 40)
    assert a["mean_contribution"] == pytest.approx(0.25)
    assert a["spread"] == pytest.approx(np.std([1.0] * 10 + [-0.5] * 10 + [0.0] * 20))
    assert (b["mean_contribution"], b["mean_size"]) == pytest.approx((0.2, 0.2))
    assert b["spread"] == pytest.approx(0, abs=1e-9)
    assert a["mean_contribution_lower"] < 0.25 < a["mean_contribution_upper"]


def test_what_all_have_alike_comes_last_however_large_it_is() -> None:
    rows = [(row, "ALL", -2.0) for row in range(30)] + [(row, "SOME", 0.1) for row in range(15)]
    assert summarise_contributions(of(rows), range(30))["code"].to_list() == ["SOME", "ALL"]


def test_codes_of_fewer_than_eleven_people_are_not_told() -> None:
    rows = [(row, "FEW", 1.0) for row in range(10)] + [(row, "MORE", 1.0) for row in range(11)]
    assert summarise_contributions(of(rows), range(40))["code"].to_list() == ["MORE"]
    people = [row // 2 for row in range(40)]  # eleven records of six people
    assert summarise_contributions(of(rows), people).is_empty()


def test_resamples_are_of_people_and_not_of_their_records() -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(size=40)
    once = summarise_contributions(of([(n, "A", x) for n, x in enumerate(effects)]), range(40))
    thrice = of([(3 * n + k, "A", x) for n, x in enumerate(effects) for k in range(3)])
    by_person = summarise_contributions(thrice, np.repeat(np.arange(40), 3))
    bounds = ("mean_contribution_lower", "mean_contribution_upper", "spread_lower", "spread_upper")
    assert by_person.select(bounds).row(0) == pytest.approx(once.select(bounds).row(0))


def test_hits_are_counted_whatever_their_sign_and_chance_is_the_share_in_the_record() -> None:
    found = hits([0.1, -0.9, 0.5, 0.0, 0.2], [False, True, False, False, True], n_top=2)
    assert found == (1, 2 * 2 / 5)
    assert hits([0.3, 0.1], [True, False], n_top=5) == (1, 1.0)  # of all codes chance finds as many


def test_a_ratio_of_sums_has_an_interval_over_subjects() -> None:
    part, whole = np.array([1.0, 0.0] * 50), np.ones(100)
    interval = share_interval(part, whole)
    assert interval.estimate == 0.5
    assert 0.38 < interval.lower < 0.42
