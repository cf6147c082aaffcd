"""Ridge regression: its numbers against scikit-survival's, its folds, and what it reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from simulated import History, Visit, store_of
from sksurv.datasets import load_whas500
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from ehrtrack.baselines._design import design, z_of
from ehrtrack.baselines._folds import divided, folds, together
from ehrtrack.baselines.base import Labelled, Tabular, TokenHistories
from ehrtrack.baselines.ridge import Ridge, RidgeModel
from ehrtrack.baselines.settings import RidgeConfig
from ehrtrack.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from ehrtrack.errors import DataError
from ehrtrack.survival.metrics import c_index
from ehrtrack.survival.ridge_cox import ridge_path

NAN = float("nan")


def whas500() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """500 subjects of the Worcester Heart Attack Study, standardised; many die on the same day."""
    x, y = load_whas500()
    columns = x.astype(float).to_numpy()
    return (columns - columns.mean(axis=0)) / columns.std(axis=0), y["lenfol"], y["fstat"].astype(bool)


def simulated(n: int, seed: int) -> Tabular:
    """A value that raises the hazard, recorded of two thirds, among twenty that mean nothing; age does too."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 21))
    age = rng.normal(60, 10, n)
    days = rng.exponential(400 * np.exp(-1.2 * x[:, 0] - 0.05 * (age - 60)))
    x[rng.random((n, 21)) < 1 / 3] = NAN
    table = pl.DataFrame(x, schema=[f"last_value LAB//{j}" for j in range(21)]).with_columns(age_years=pl.Series(age))
    return Tabular(table, np.minimum(days, 365), days < 365)


@pytest.mark.parametrize("n_columns", [14, 600])  # fewer and more than subjects
def test_coefficients_are_those_of_scikit_survival(n_columns):
    x, days, is_event = whas500()
    if n_columns > x.shape[1]:
        x, days, is_event = x[:150], days[:150], is_event[:150]
        x = np.column_stack([x, np.random.default_rng(0).normal(size=(150, n_columns - x.shape[1]))])
    penalties = [1.0, 0.1, 0.01]
    found = ridge_path(x, days, is_event, penalties)
    for place in (0, 2):
        library = CoxPHSurvivalAnalysis(alpha=penalties[place] * len(x), tol=1e-12, n_iter=100)
        library.fit(x, Surv.from_arrays(is_event, days))
        np.testing.assert_allclose(found[:, place], library.coef_, atol=1e-4)


def test_the_penalty_is_chosen_on_all_subjects_and_the_model_fitted_to_them():
    """Whether a subject is called a training or a validation subject has no say."""
    train, validation, test = (simulated(n, seed) for seed, n in enumerate((120, 60, 400)))
    model = Ridge(RidgeConfig()).fit(train, validation)
    assert c_index(model.risk(test.features, 365), test.follow_up_days, test.is_event) > 0.65
    both = together(train, validation)
    for n in (90, 150):
        one, other = (_rows(both, rows) for rows in np.split(np.arange(180), [n]))
        assert Ridge(RidgeConfig()).fit(one, other).to_json() == model.to_json()
    alone = Ridge(RidgeConfig(penalties=(model.choice.penalty,))).fit(train, validation)
    np.testing.assert_allclose(alone.risk(test.features, 365), model.risk(test.features, 365), atol=1e-4)


def test_validation_subjects_are_scored_by_models_that_did_not_learn_from_them():
    """Other follow-up in one fold changes what is said of all others, and nothing of those in it."""
    train, validation = simulated(100, 0), simulated(50, 1)
    ridge = Ridge(RidgeConfig(penalties=(0.1,)))
    scored = ridge.validation_survival(ridge.fit(train, validation), validation, [100.0, 300.0])
    in_fold = folds(together(train, validation), 5, seed=0)[100:] == 2
    turned = replace(validation, follow_up_days=np.where(in_fold, 366 - validation.follow_up_days, 100.0))
    again = ridge.validation_survival(ridge.fit(train, turned), turned, [100.0, 300.0])
    kept = replace(turned, follow_up_days=np.where(in_fold, validation.follow_up_days, 100.0))
    expected = ridge.validation_survival(ridge.fit(train, kept), kept, [100.0, 300.0])
    assert scored.shape == (50, 2)
    np.testing.assert_array_equal(again[in_fold], expected[in_fold])
    assert (again[~in_fold] != expected[~in_fold]).any(axis=1).all()


def test_rows_of_a_subject_are_in_one_fold_and_events_in_all():
    rng = np.random.default_rng(0)
    subject = rng.integers(0, 40, 200)
    rows = Labelled(pl.DataFrame({"x": rng.normal(size=200)}), np.ones(200), rng.random(200) < 0.2, subject)
    fold = folds(rows, 5, seed=0)
    assert all(len(set(fold[subject == one])) == 1 for one in set(subject))
    assert [bool(rows.is_event[fold == number].any()) for number in range(5)] == [True] * 5
    held_out = np.concatenate([held_out for _, held_out in divided(rows, fold)])
    assert sorted(held_out) == list(range(200))


def test_there_are_no_more_folds_than_events():
    rows = Tabular(pl.DataFrame({"x": range(30)}), np.arange(1.0, 31), np.arange(30) < 3)
    assert set(folds(rows, 5, seed=0)) == {0, 1, 2}


def test_one_event_is_too_few():
    train = Tabular(pl.DataFrame({"x": range(30)}), np.arange(1.0, 31), np.arange(30) < 1)
    validation = replace(train, is_event=np.zeros(30, dtype=bool))
    with pytest.raises(DataError, match="1 of 60 subjects to learn from have the event"):
        Ridge(RidgeConfig()).fit(train, validation)


def test_values_are_cut_off_and_gaps_told_apart():
    values = [*map(float, range(100)), 1e6, NAN, NAN, NAN, NAN, NAN]
    table = pl.DataFrame(
        {"last_value A": values, "mean_value A": values, "n_values A": [3.0] * 101 + [0.0] * 5, "age_years": 50.0}
    )
    terms = design(Tabular(table, np.ones(106), np.ones(106, dtype=bool)), min_subjects=5)
    kinds = [(term.name, term.kind) for term in terms]
    assert kinds == [
        ("last_value A", "number"),
        ("last_value A", "missing"),
        ("mean_value A", "number"),
        ("n_values A", "count"),
    ]
    z = z_of(terms, table)
    assert terms[0].high == 95.0
    assert z[95, 0] == z[100, 0] == z[:, 0].max()
    assert (z[101:, 0] == 0).all()  # the mean
    assert (z[101:, 1] > 0).all()
    assert (z[:101, 1] < 0).all()


def test_a_table_in_which_nobody_has_a_value_lacks_its_columns():
    train = simulated(150, 0)
    model = Ridge(RidgeConfig()).fit(train, simulated(50, 1))
    features = train.features[:5].with_columns(pl.lit(NAN).alias("last_value LAB//0"))
    expected = model.risk(features, 100)
    np.testing.assert_array_equal(model.risk(features.drop("last_value LAB//0"), 100), expected)
    with pytest.raises(DataError, match="'age_years'"):
        model.risk(features.drop("age_years"), 100)


def test_age_and_sex_bear_a_tenth_of_the_penalty():
    """Two columns that say the same of the outcome: the one that is called age has ten times the other's share."""
    x = np.random.default_rng(0).normal(size=200)
    days = np.exp(-x) * np.random.default_rng(1).exponential(100, 200)
    subjects = Tabular(pl.DataFrame({"age_years": x, "other": x}), days, days < 200)
    model = Ridge(RidgeConfig()).fit(subjects, subjects)
    share = {term.name: term.beta / term.scale for term in model.terms}
    assert share["age_years"] == pytest.approx(10 * share["other"], rel=1e-3)


VOCABULARY = Vocabulary((*SPECIAL_TOKENS, "SEX//MALE", "A", "FEMALE"), {})


def histories(vocabulary: Vocabulary = VOCABULARY) -> TokenHistories:
    subjects = [History([Visit([4], is_static=True), Visit([5], 60.0)]), History([Visit([6], is_static=True)])]
    return TokenHistories(store_of(subjects), vocabulary, np.arange(2), max_tokens=8)


def test_age_and_sex_alone_can_be_read():
    ridge = Ridge(RidgeConfig(features="age-sex"))
    assert not ridge.reads_values
    assert ridge.title == "cox-age-sex"
    assert ridge.read(histories()).columns == ["age_years", "SEX//MALE", "FEMALE"]
    with pytest.raises(DataError, match=r"baseline\.sex"):
        ridge.read(histories(Vocabulary((*SPECIAL_TOKENS, "M", "A", "F"), {})))


def test_values_that_were_not_read_are_missed():
    with pytest.raises(DataError, match="reads_values"):
        Ridge(RidgeConfig()).read(histories())


def test_a_model_with_unequal_steps_is_refused():
    model = Ridge(RidgeConfig()).fit(simulated(80, 0), simulated(40, 1))
    text = replace(model, baseline_days=model.baseline_days[1:]).to_json()
    with pytest.raises(Exception, match="is not a ridge regression"):
        RidgeModel.from_json(text)


def _rows(subjects: Tabular, rows: np.ndarray) -> Tabular:
    return Tabular(subjects.features[rows], subjects.follow_up_days[rows], subjects.is_event[rows])
