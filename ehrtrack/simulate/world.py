"""A world: every dial of the generative model. The worlds there are lie in `ehrtrack/simulate/worlds`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from ehrtrack import plugins
from ehrtrack.errors import ConfigError
from ehrtrack.section import Section


class World(Section):
    """The dials; symbols as in docs/simulation.md. Rates are per year, times in days unless named otherwise.

    Examples
    --------
    A world of which the records say nothing about the outcome, so that the best C-index is .5:

    >>> World(name="null", signal=0).signal
    0.0
    """

    name: str
    description: str = ""
    first_subject_id: int = Field(1, ge=0)

    # people
    mean_age_years: float = 62.0
    sd_age_years: float = Field(8.0, gt=0)
    share_male: float = Field(0.5, ge=0, le=1)
    median_history_years: float = Field(4.5, gt=0)

    # diseases
    prevalence: float = Field(1.0, ge=0, description="factor on every onset rate")
    prevalence_shift: float = Field(0.0, ge=0, description="sd of a log factor per disease, drawn for the world")
    system_frailty: float = Field(0.7, ge=0, description="effect of a system's frailty on onsets in it")
    shared_frailty: float = Field(0.3, ge=0, le=1, description="correlation of the frailties of two systems")
    comorbidity_acceleration: float = Field(0.3, ge=0, description="log rate per disease there is in the system")
    late_stage_years: float = Field(4.0, gt=0, description="mean time from onset to the late stage")

    # visits and what is written down
    visits_per_year: float = Field(2.0, gt=0)
    visit_irregularity: float = Field(0.35, ge=0, description="variance of the subjects' visit propensity")
    diagnosis_probability: float = Field(0.2, ge=0, le=1)
    drug_probability: float = Field(0.2, ge=0, le=1)
    procedure_probability: float = Field(0.06, ge=0, le=1)
    lab_probability: float = Field(0.2, ge=0, le=1)
    symptom_probability: float = Field(0.1, ge=0, le=1, description="ambiguous codes, shared by two systems")
    prompt_treatment: float = Field(0.7, ge=0, le=1, description="share of diseases treated from onset, not later")
    copy_forward: float = Field(0.2, ge=0, lt=1, description="probability that a diagnosis is copied to the next visit")
    noise_per_visit: float = Field(0.7, ge=0)
    n_noise_codes: int = Field(50, ge=1)
    noise_zipf: float = Field(1.0, ge=0)

    # codes
    n_synonyms: int = Field(8, ge=1, description="interchangeable codes of a concept")
    n_sites: int = Field(4, ge=1)
    habit_zipf: float = Field(0.8, ge=0, description="how much a site prefers some synonyms: share ~ rank^-habit_zipf")

    # outcome
    horizon_days: float = Field(1095.0, gt=0)
    baseline_hazard: float = Field(0.15, gt=0, description="cumulative baseline hazard at the horizon")
    weibull_shape: float = Field(1.1, gt=0)
    signal: float = Field(1.0, ge=0, description="factor on the whole log hazard; 0: nobody can be told apart")
    motif_weight: float = Field(1.0, ge=0, description="factor on the order, timing, trend and pair terms")
    outcome_frailty: float = Field(0.3, ge=0, description="variance of a gamma frailty that no record shows")
    complications_per_year: float = Field(0.015, ge=0, description="rate of each complication at log hazard 0")
    complication_exponent: float = Field(0.6, description="complications follow exp(exponent x log hazard)")

    # censoring and death
    censoring_per_year: float = Field(0.07, ge=0)
    censoring_per_decade: float = Field(0.25, description="log rate per 10 years of age")
    censoring_male: float = 0.1
    censoring_visits: float = Field(-0.3, description="log rate per log(1 + visits in the last year)")
    death_share: float = Field(0.3, ge=0, le=1, description="share of censorings that are deaths")
    fatality: float = Field(0.25, ge=0, le=1, description="share of outcome events followed by death")


def load_world(name: str, dials: Sequence[str] = ()) -> World:
    """A world by name (``target_site`` or ``target-site``), with dials turned by ``name=value``.

    Raises
    ------
    ConfigError
        If there is no such world or dial, or a value is out of range.

    Examples
    --------
    >>> load_world("target-site", ["signal=0.5"]).signal
    0.5
    """
    world: World = plugins.load("simulate.worlds", name.replace("_", "-")).WORLD
    changes: dict[str, Any] = {}
    for dial in dials:
        key, equals, value = dial.partition("=")
        if not equals:
            raise ConfigError(f"dial {dial!r} has no value; write --dial {key}=VALUE")
        if key not in World.model_fields or key in ("name", "description"):
            known = [field for field in World.model_fields if field not in ("name", "description")]
            raise ConfigError(f"unknown dial {key!r}{plugins.nearest(key, known)}; there are: {', '.join(known)}")
        changes[key] = value
    try:
        return World.model_validate(world.model_dump() | changes)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ConfigError(f"dial {'.'.join(map(str, fault['loc']))}={fault['input']}: {fault['msg']}") from error
