"""What happens to the subjects of a block: who they are, which diseases they get, when they are seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ehrtrack.arrays import Bools, Floats, Ints
from ehrtrack.simulate.dictionary import DISEASES, SYSTEM_OF, SYSTEMS, world_generator
from ehrtrack.simulate.motifs import NAMED_BY_MOTIFS, NAMED_BY_STAGES, REFERENCE_AGE_YEARS, SECONDS_PER_DAY
from ehrtrack.simulate.world import World

DAYS_PER_YEAR = 365.25
FIRST_INDEX_DATE = np.datetime64("2012-01-01", "s")
N_INDEX_DATES = 1826  # five years of index dates

LOOKBACK_YEARS = 15.0
STEP_YEARS = 0.25
AGE_LIMITS_YEARS = (45.0, 80.0)
HISTORY_LIMITS_YEARS = (1.0, 10.0)
ONSET_PER_YEAR = {  # of the diseases that the hazard names, and of the others
    **dict.fromkeys(DISEASES, 0.006),
    **dict.fromkeys(NAMED_BY_STAGES, 0.006),
    **dict.fromkeys(NAMED_BY_MOTIFS, 0.035),
}
ONSET_LOG_RATE_PER_DECADE = 0.1
ACCELERATION_LIMIT = 3  # diseases of a system that count as accelerating


@dataclass(frozen=True)
class People:
    """The n subjects of a block.

    Attributes
    ----------
    index_time : (n,) datetime64[s] the index date, midnight
    age_days : (n,) i64 age at the index date
    is_male : (n,)
    site : (n,) i64 where they are seen
    history_days : (n,) how long before the index date the record begins
    frailty : (n, 6) of each organ system, standard normal
    visit_propensity : (n,) mean 1
    """

    index_time: npt.NDArray[np.datetime64]
    age_days: Ints
    is_male: Bools
    site: Ints
    history_days: Floats
    frailty: Floats
    visit_propensity: Floats

    @property
    def age_years(self) -> Floats:
        return self.age_days / DAYS_PER_YEAR


@dataclass(frozen=True)
class Diseases:
    """Times of onset and of the late stage in days from the index date, (n, 30); inf for never."""

    onset_days: Floats
    late_days: Floats


@dataclass(frozen=True)
class Visits:
    """All visits of a block, sorted by subject and time: row (V,) i64, seconds (V,) i64 from the index date."""

    row: Ints
    seconds: Ints


def draw_people(n: int, world: World, rng: np.random.Generator) -> People:
    """n subjects."""
    age = np.clip(rng.normal(world.mean_age_years, world.sd_age_years, n), *AGE_LIMITS_YEARS)
    history = world.median_history_years * np.exp(rng.normal(0, 0.5, n))
    shared = rng.normal(size=(n, 1)) * np.sqrt(world.shared_frailty)
    own = rng.normal(size=(n, len(SYSTEMS))) * np.sqrt(1 - world.shared_frailty)
    variance = max(world.visit_irregularity, 1e-9)
    return People(
        index_time=FIRST_INDEX_DATE + rng.integers(0, N_INDEX_DATES, n) * np.timedelta64(SECONDS_PER_DAY, "s"),
        age_days=np.rint(age * DAYS_PER_YEAR).astype(np.int64),
        is_male=rng.random(n) < world.share_male,
        site=rng.integers(0, world.n_sites, n),
        history_days=np.clip(history, *HISTORY_LIMITS_YEARS) * DAYS_PER_YEAR,
        frailty=shared + own,
        visit_propensity=rng.gamma(1 / variance, variance, n),
    )


def draw_diseases(people: People, world: World, rng: np.random.Generator) -> Diseases:
    """Onsets, each at the time its cumulative rate reaches an exponential threshold; rates rise with comorbidity."""
    n, n_diseases = len(people.age_days), len(DISEASES)
    threshold = rng.exponential(size=(n, n_diseases))
    sojourn_years = rng.exponential(world.late_stage_years, (n, n_diseases))
    system_effect = world.system_frailty * people.frailty[:, SYSTEM_OF]  # (n, 30)
    log_rate = np.log(np.maximum(onset_rates(world), 1e-12)) + system_effect - world.system_frailty**2 / 2
    onset = np.full((n, n_diseases), np.inf)
    passed = np.zeros((n, n_diseases))
    for start_years in np.arange(-LOOKBACK_YEARS, world.horizon_days / DAYS_PER_YEAR, STEP_YEARS):
        has = np.isfinite(onset)
        in_system = has.reshape(n, len(SYSTEMS), -1).sum(axis=2)
        speed = world.comorbidity_acceleration * np.minimum(in_system, ACCELERATION_LIMIT)[:, SYSTEM_OF]
        decades = (people.age_years + start_years - REFERENCE_AGE_YEARS) / 10
        step = STEP_YEARS * np.exp(log_rate + speed + ONSET_LOG_RATE_PER_DECADE * decades[:, None])
        starts = ~has & (passed + step >= threshold)
        share = (threshold[starts] - passed[starts]) / step[starts]
        onset[starts] = (start_years + STEP_YEARS * share) * DAYS_PER_YEAR
        passed += step
    late = onset + DAYS_PER_YEAR * sojourn_years * np.exp(-system_effect / 2)
    return Diseases(onset_days=onset, late_days=late)


def onset_rates(world: World) -> Floats:
    """(30,) onsets a year at age 62 and mean frailty, with the world's shift of prevalence."""
    base = np.array([ONSET_PER_YEAR[name] for name in DISEASES])
    shift = world_generator(world, "prevalence").normal(0, 1, len(DISEASES)) * world.prevalence_shift
    return np.asarray(base * world.prevalence * np.exp(shift), dtype=np.float64)


def draw_visits(people: People, diseases: Diseases, world: World, rng: np.random.Generator) -> Visits:
    """Visits from the start of the record to the horizon, more with more diseases, at 08:00 to 18:00."""
    starts = np.arange(-HISTORY_LIMITS_YEARS[1], world.horizon_days / DAYS_PER_YEAR, STEP_YEARS)  # (Q,)
    middle = (starts + STEP_YEARS / 2) * DAYS_PER_YEAR
    n_active = np.stack([(diseases.onset_days < day).sum(axis=1) for day in middle], axis=1)  # (n, Q)
    rate = world.visits_per_year * people.visit_propensity[:, None] * (0.6 + 0.15 * n_active)
    counts = rng.poisson(STEP_YEARS * rate)
    row, quarter = (
        np.repeat(place, counts.ravel()) for place in np.unravel_index(np.arange(counts.size), counts.shape)
    )
    day = np.floor((starts[quarter] + STEP_YEARS * rng.random(len(row))) * DAYS_PER_YEAR).astype(np.int64)
    seconds = day * SECONDS_PER_DAY + rng.integers(8 * 3600, 18 * 3600, len(row))
    keep = (day >= -people.history_days[row]) & (seconds < world.horizon_days * SECONDS_PER_DAY)
    row, seconds = row[keep].astype(np.int64), seconds[keep]
    order = np.lexsort((seconds, row))
    return Visits(row=row[order], seconds=seconds[order])
