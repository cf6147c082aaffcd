"""Every baseline reads subjects whose age is not known, if told to, and tells them from newborns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from simulated import random_store

from ehrtrack import plugins
from ehrtrack.baselines._ages import age_to_fill
from ehrtrack.baselines.base import Labelled, TokenHistories, baseline_class, read_counts
from ehrtrack.data.store import TokenStore
from ehrtrack.data.value_features import SCHEMA
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "A", "B", "C", "D"), {})
N = 150
NO_VALUES = pl.DataFrame(schema=SCHEMA)
QUICK = {"n_candidates": 1, "epochs": 1, "batch_tokens": 512, "n_trees": 5, "max_trees": 10, "widths": (4,)}


def store(age_of_unknown: float = float("nan")) -> TokenStore:
    """A store in which every third subject is of unknown age, and these soon have the event."""
    made = random_store(N, len(VOCABULARY), longest=6)
    is_unknown = np.arange(N) % 3 == 0
    by_token = np.repeat(is_unknown, made.n_tokens)
    return replace(
        made,
        end_age_years=np.where(is_unknown, age_of_unknown, made.end_age_years).astype(np.float32),
        age_years=np.where(by_token & (made.visit > 0), age_of_unknown, made.age_years).astype(np.float32),
    )


def histories(of: TokenStore, *, may_lack_age: bool = True) -> TokenHistories:
    return TokenHistories(of, VOCABULARY, np.arange(N), max_tokens=16, may_lack_age=may_lack_age, values=NO_VALUES)


def test_the_table_has_a_column_for_it_only_where_it_is_asked_for() -> None:
    table = read_counts(histories(store()))
    assert table["is_age_unknown"].to_list() == [float(subject % 3 == 0) for subject in range(N)]
    assert age_to_fill(table) == pytest.approx(table["age_years"].fill_nan(None).mean())
    of_old_runs = read_counts(histories(store(50.0), may_lack_age=False))
    assert "is_age_unknown" not in of_old_runs.columns
    assert age_to_fill(of_old_runs) is None


@pytest.mark.parametrize("name", plugins.names("baselines"))
def test_a_baseline_scores_an_unknown_age_otherwise_than_age_0(name: str) -> None:
    settings = plugins.settings("baselines", name)
    known = {key: value for key, value in QUICK.items() if key in settings.model_fields}
    known |= {"n_candidates": 20, "min_penalty_ratio": 0.01} if name == "cox" else {}  # the first penalty keeps nothing
    baseline = baseline_class(name)(settings(**known))
    rng = np.random.default_rng(0)
    days = np.where(np.arange(N) % 3 == 0, rng.uniform(1, 60, N), rng.uniform(60, 400, N))
    features = baseline.read(histories(store()))
    labelled = Labelled(features, days, days < 300)
    model = baseline.from_json(baseline.fit(labelled, labelled).to_json())
    risk = model.risk(features, 200.0)
    assert np.isfinite(risk).all()
    as_newborns = model.risk(baseline.read(histories(store(0.0))), 200.0)
    is_unknown = np.arange(N) % 3 == 0
    np.testing.assert_allclose(as_newborns[~is_unknown], risk[~is_unknown], atol=1e-6)
    assert np.abs(as_newborns[is_unknown] - risk[is_unknown]).max() > 3e-6


OF_TABLES = {
    "cox": {"n_candidates": 20},
    "gradient-boosting": QUICK | {"n_trees": 40},
    "gradient-boosting-timing": QUICK,
    "random-survival-forest": QUICK,
}


@pytest.mark.parametrize("name", OF_TABLES)
def test_an_unknown_age_is_scored_as_the_mean_of_those_it_was_fitted_with(name: str) -> None:
    """The first hundred subjects train; the mean of those who are scored is another."""
    settings = plugins.settings("baselines", name)
    known = {key: value for key, value in OF_TABLES[name].items() if key in settings.model_fields}
    baseline = baseline_class(name)(settings(**known))
    ages = np.where(np.arange(N) % 3 == 0, np.nan, np.where(np.arange(N) < 100, 40.0, 70.0) + np.arange(N) % 20)
    features = baseline.read(histories(replace(store(), end_age_years=ages.astype(np.float32))))
    days = np.exp(6 - 0.05 * np.nan_to_num(ages, nan=60.0)) * np.random.default_rng(1).uniform(1, 2, N)
    labelled = Labelled(features[:100], days[:100], days[:100] < np.quantile(days, 0.8))
    model = baseline.from_json(baseline.fit(labelled, labelled).to_json())
    assert model.mean_age == pytest.approx(np.nanmean(ages[:100]), rel=1e-6)
    unknown = features.filter(pl.col("is_age_unknown") == 1)
    risk = {age: model.risk(unknown.with_columns(age_years=pl.lit(age, pl.Float32)), 100.0) for age in (40.0, 60.0)}
    assert (risk[40.0] != risk[60.0]).any()  # ages have a say
    filled = unknown.with_columns(age_years=pl.lit(model.mean_age, pl.Float32))
    np.testing.assert_array_equal(model.risk(unknown, 100.0), model.risk(filled, 100.0))
