"""The outcome and its truth: risk given the observed history, exactly; complications; censoring; death."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.simulate.dictionary import FIRST_COMPLICATION, N_COMPLICATIONS, OUTCOME, Dictionary
from ehrtrack.simulate.life import DAYS_PER_YEAR, HISTORY_LIMITS_YEARS, People
from ehrtrack.simulate.motifs import REFERENCE_AGE_YEARS, SECONDS_PER_DAY, log_hazard, summarise_history
from ehrtrack.simulate.recording import Events, write_codes
from ehrtrack.simulate.world import World

N_TRUTH_TIMES = 37
FATAL_MEAN_DAYS = 30.0
LANDMARK_DAYS = 365


def truth_times(world: World) -> Floats:
    """(37,) days of the grid of the true survival curves, from 0 to the horizon."""
    return np.linspace(0, world.horizon_days, N_TRUTH_TIMES)


def cumulative_hazard(days: npt.ArrayLike, world: World) -> Floats:
    """Baseline Lambda_0(t) = baseline_hazard (t / horizon)^shape."""
    share = np.asarray(days, dtype=np.float64) / world.horizon_days
    return np.asarray(world.baseline_hazard * share**world.weibull_shape, dtype=np.float64)


def true_survival(eta: Floats, days: Floats, world: World) -> Floats:
    """(n, M) S(t | observed history) = (1 + theta Lambda_0(t) e^eta)^(-1/theta), the gamma frailty integrated out."""
    hazard = cumulative_hazard(days, world)[None, :] * np.exp(eta)[:, None]
    theta = world.outcome_frailty
    return np.exp(-hazard) if theta == 0 else (1 + theta * hazard) ** (-1 / theta)


def censoring_rates(age_years: Floats, is_male: Bools, n_visits_last_year: npt.ArrayLike, world: World) -> Floats:
    """(n,) constant rate of censoring a day, from what the record shows at the index date."""
    log_ratio = (
        world.censoring_per_decade * (age_years - REFERENCE_AGE_YEARS) / 10
        + world.censoring_male * is_male
        + world.censoring_visits * (np.log1p(n_visits_last_year) - np.log1p(world.visits_per_year))
    )
    return np.asarray(world.censoring_per_year / DAYS_PER_YEAR * np.exp(log_ratio), dtype=np.float64)


def visits_in_last_year(row: Ints, seconds: Ints, n: int) -> Ints:
    """(n,) moments in the year up to the index date at which something is recorded; events sorted by row and time."""
    keep = (seconds <= 0) & (seconds > -365 * SECONDS_PER_DAY)
    row, seconds = row[keep], seconds[keep]
    is_new = np.ones(len(row), dtype=bool)
    is_new[1:] = (np.diff(row) != 0) | (np.diff(seconds) != 0)
    return np.bincount(row[is_new], minlength=n)


def eta_at(events: Events, people: People, world: World, day: int = 0) -> Floats:
    """(n,) log hazard from what was recorded up to a day from the index date; `events` sorted."""
    history = summarise_history(
        events.row,
        events.seconds,
        events.concept,
        events.value,
        n_subjects=len(people.age_days),
        until_seconds=day * SECONDS_PER_DAY,
    )
    return log_hazard(history, people.age_years + day / DAYS_PER_YEAR, people.is_male, world)


def draw_complications(
    events: Events, people: People, dictionary: Dictionary, rng: np.random.Generator
) -> tuple[Events, Floats]:
    """Complications, at rates that follow the log hazard of each year's start, and the log hazard at the index date.

    They depend on the record and not the record's hazard on them, so the truth needs none of them.
    """
    world = dictionary.world
    n = len(people.age_days)
    rows, concepts, seconds = [], [], []
    eta = np.zeros(n)
    for day in range(-LANDMARK_DAYS * int(HISTORY_LIMITS_YEARS[1]), LANDMARK_DAYS, LANDMARK_DAYS):
        eta = eta_at(events, people, world, day)
        last = world.horizon_days if day == 0 else day + LANDMARK_DAYS
        rate = world.complications_per_year * np.exp(world.complication_exponent * eta)
        counts = rng.poisson((last - day) / DAYS_PER_YEAR * rate[:, None], (n, N_COMPLICATIONS))
        row, which = (np.repeat(place.ravel(), counts.ravel()) for place in np.indices(counts.shape))
        rows.append(row)
        concepts.append(FIRST_COMPLICATION + which)
        seconds.append(np.floor(rng.uniform(day, last, len(row)) * SECONDS_PER_DAY).astype(np.int64))
    row, concept, second = np.concatenate(rows), np.concatenate(concepts), np.concatenate(seconds)
    written = _as_events(row, second, concept, people, dictionary, rng)
    return written.take(second >= -people.history_days[row] * SECONDS_PER_DAY), eta


@dataclass(frozen=True)
class Outcomes:
    """Follow-up of the n subjects in seconds from the index date, and what happened in it.

    Attributes
    ----------
    follow_up_seconds : (n,) i64, at least 1: outcome, censoring or the horizon, whichever is first
    is_event : (n,)
    record_end_seconds : (n,) i64, when the record ends: it goes on after an outcome
    is_death : (n,) whether it ends with death
    gamma : (n,) the frailty of the outcome, mean 1
    """

    follow_up_seconds: Ints
    is_event: Bools
    record_end_seconds: Ints
    is_death: Bools
    gamma: Floats


def draw_outcomes(eta: Floats, censoring_rate: Floats, world: World, rng: np.random.Generator) -> Outcomes:
    """Outcome times from the frailty model, independent censoring given the covariates, and deaths."""
    n, theta = len(eta), world.outcome_frailty
    gamma = rng.gamma(1 / theta, theta, n) if theta > 0 else np.ones(n)
    hazard_share = rng.exponential(size=n) / (np.maximum(gamma, 1e-300) * world.baseline_hazard * np.exp(eta))
    event_days = world.horizon_days * np.minimum(hazard_share, 1e12) ** (1 / world.weibull_shape)
    censored_days = rng.exponential(size=n) / np.maximum(censoring_rate, 1e-12)
    fatal_days = event_days + rng.exponential(FATAL_MEAN_DAYS, n)
    dies_of_event, dies_else = rng.random(n) < world.fatality, rng.random(n) < world.death_share
    followed_days = np.minimum(censored_days, world.horizon_days)
    is_event = event_days <= followed_days
    is_fatal = is_event & dies_of_event & (fatal_days < followed_days)
    end_days = np.where(is_fatal, fatal_days, followed_days)
    follow_up = np.maximum(_seconds(np.where(is_event, event_days, followed_days)), 1)
    return Outcomes(
        follow_up_seconds=follow_up,
        is_event=is_event,
        record_end_seconds=np.maximum(_seconds(end_days), follow_up),
        is_death=is_fatal | (dies_else & (censored_days < world.horizon_days)),
        gamma=gamma,
    )


def outcome_events(outcomes: Outcomes, people: People, dictionary: Dictionary, rng: np.random.Generator) -> Events:
    """The outcome as it is written down when it happens: after the index date."""
    row = np.flatnonzero(outcomes.is_event)
    return _as_events(row, outcomes.follow_up_seconds[row], np.full(len(row), OUTCOME), people, dictionary, rng)


def _seconds(days: Floats) -> Ints:
    return np.floor(days * SECONDS_PER_DAY).astype(np.int64)


def _as_events(
    row: Ints,
    seconds: Ints,
    concept: Ints,
    people: People,
    dictionary: Dictionary,
    rng: np.random.Generator,
) -> Events:
    code = write_codes(people.site[row], concept, dictionary, rng)
    return Events(row, seconds, concept, code, np.full(len(row), np.nan, dtype=np.float32))
