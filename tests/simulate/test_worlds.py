"""The worlds and their dials: each dial moves what it says."""

from __future__ import annotations

import numpy as np
import pytest

from ehrtrack import plugins
from ehrtrack.errors import ConfigError
from ehrtrack.simulate.block import Block, draw_block
from ehrtrack.simulate.dictionary import CONCEPTS, N_CONCEPTS, SYSTEM_OF, Dictionary, generator
from ehrtrack.simulate.life import draw_diseases, draw_people, onset_rates
from ehrtrack.simulate.outcome import true_survival, truth_times
from ehrtrack.simulate.recording import NOISE
from ehrtrack.simulate.world import World, load_world

NAMES = plugins.names("simulate.worlds")


def block(world: str, *dials: str) -> Block:
    return draw_block(Dictionary(load_world(world, dials)), seed=0, number=0)


def noise_share(drawn: Block) -> float:
    return float((drawn.events.concept == NOISE).mean())


def test_the_worlds_there_are() -> None:
    assert NAMES == ["noise", "pretraining-site", "target-site"]


@pytest.mark.parametrize("name", NAMES)
def test_a_world_carries_its_name_and_has_its_own_subjects(name: str) -> None:
    world = load_world(name)
    assert world.name == name
    others = {load_world(other).first_subject_id for other in NAMES if other != name}
    assert all(abs(world.first_subject_id - other) >= 9_000_000 for other in others)


@pytest.mark.parametrize("name", NAMES)
def test_outcome_rate_and_history_length_are_in_the_stated_range(name: str) -> None:
    drawn = block(name)
    assert 0.2 < drawn.outcomes.is_event.mean() < 0.35
    assert 50 < (drawn.events.seconds <= 0).sum() / 1000 < 200


def test_in_the_noise_world_most_codes_are_noise() -> None:
    assert noise_share(block("noise")) > 0.75
    assert noise_share(block("target_site")) < 0.2


def test_both_sites_write_1130_codes_by_the_same_names() -> None:
    target, pretraining = (Dictionary(load_world(name)) for name in ("target_site", "pretraining_site"))
    assert len(set(target.code_names)) == 1130
    assert target.code_names == pretraining.code_names
    assert target.parents == pretraining.parents
    assert target.habits.shape == (2, N_CONCEPTS, 8)
    np.testing.assert_allclose(target.habits.sum(axis=-1), 1)


def test_prevalence_shifts_at_the_target_site() -> None:
    ratio = onset_rates(load_world("target_site")) / onset_rates(load_world("pretraining_site"))
    assert 0.2 < np.log(ratio).std() < 0.5


def test_one_synonym_writes_each_concept_in_one_way() -> None:
    drawn = block("target_site", "n_synonyms=1")
    of_concepts = drawn.events.concept >= 0
    np.testing.assert_array_equal(drawn.events.code[of_concepts], drawn.events.concept[of_concepts])


def test_copy_forward_repeats_diagnoses() -> None:
    n_plain, n_copied = (len(block("target_site", dial).events.row) for dial in ("copy_forward=0", "copy_forward=0.5"))
    assert 1.15 < n_copied / n_plain < 1.6


def test_comorbidity_accelerates_onsets_in_the_same_system() -> None:
    def within_system(acceleration: float) -> float:
        world = load_world("target_site", (f"comorbidity_acceleration={acceleration}", "system_frailty=0"))
        rng = generator("test")
        has = np.isfinite(draw_diseases(draw_people(1000, world, rng), world, rng).onset_days)
        correlation = np.corrcoef(has.T)
        same = (SYSTEM_OF[:, None] == SYSTEM_OF) & ~np.eye(30, dtype=bool)
        return float(correlation[same].mean())

    assert abs(within_system(0)) < 0.02
    assert within_system(0.8) > 0.05


def test_complications_follow_the_risk_also_after_the_index_date() -> None:
    drawn = block("target_site", "complications_per_year=0.1")
    names = [name for name, _ in CONCEPTS]
    numbers = [names.index(name) for name in names if name.startswith("complication")]
    after = np.isin(drawn.events.concept, numbers) & (drawn.events.seconds > 0)
    counts = np.bincount(drawn.events.row[after], minlength=1000)
    is_high = drawn.eta > np.median(drawn.eta)
    assert counts[is_high].mean() > 1.5 * counts[~is_high].mean()


def test_censoring_depends_on_covariates_unless_told_not_to() -> None:
    dials = ("censoring_per_decade=0", "censoring_male=0", "censoring_visits=0")
    assert block("target_site", *dials).censoring_rate.std() == pytest.approx(0, abs=1e-15)
    assert block("target_site").censoring_rate.std() > 1e-5


def test_survival_is_that_of_a_gamma_frailty_integrated_out() -> None:
    world = load_world("target_site", ("outcome_frailty=0.5",))
    eta = np.array([-1.0, 0.0, 1.5])
    gamma = np.random.default_rng(0).gamma(2.0, 0.5, 400_000)
    hazard = world.baseline_hazard * np.exp(eta)
    simulated = [np.exp(-gamma * at_horizon).mean() for at_horizon in hazard]
    np.testing.assert_allclose(true_survival(eta, truth_times(world), world)[:, -1], simulated, atol=2e-3)
    no_frailty = load_world("target_site", ("outcome_frailty=0",))
    np.testing.assert_allclose(true_survival(eta, truth_times(world), no_frailty)[:, -1], np.exp(-hazard))


@pytest.mark.parametrize(
    ("dial", "message"),
    [
        ("signl=0", "unknown dial 'signl' .did you mean 'signal'"),
        ("signal", "has no value"),
        ("signal=-1", "greater than or equal to 0"),
        ("name=other", "unknown dial 'name'"),
    ],
)
def test_a_wrong_dial_is_a_clear_error(dial: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_world("target_site", (dial,))


def test_dials_are_data() -> None:
    assert load_world("target-site", ("visits_per_year=4",)) == World.model_validate(
        load_world("target_site").model_dump() | {"visits_per_year": 4}
    )
