"""A hazard head begins at a regression on age and static facts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import random_store

from ehrtrack.config import parse_config, parse_run_config
from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.record_columns import Levels
from ehrtrack.objectives.base import OutcomeObjective, TrainingFacts
from ehrtrack.objectives.classification import Classification
from ehrtrack.objectives.competing_risks import CompetingRisks
from ehrtrack.objectives.survival import Survival, SurvivalConfig
from ehrtrack.survival.metrics import c_index

N, V = 300, 40
STORE = random_store(N, V)
AGE = np.floor(STORE.end_age_years.astype(np.float64))
OLDER = (AGE - AGE.mean()) / AGE.std()


def facts(log_hazard: np.ndarray, n: int = N) -> TrainingFacts:
    rng = np.random.default_rng(0)
    days = rng.exponential(500 * np.exp(-log_hazard))
    cause = np.where(days <= 365, 1 + (rng.random(N) < 0.5), 0)
    outcomes = Outcomes(np.minimum(days, 365), days <= 365, cause)
    records = Batches(STORE, np.arange(n), 400, 64, outcomes=outcomes)
    return TrainingFacts(np.ones(V, dtype=np.int64), outcomes[np.arange(n)], 365.0, records)


def few_intervals(kind: type[OutcomeObjective]) -> dict[str, int]:
    return {} if kind is Classification else {"n_intervals": 4}


def head_of(objective: OutcomeObjective) -> HazardHead:
    head = objective.make_head(32)
    assert isinstance(head, HazardHead)
    return head


@pytest.mark.parametrize("kind", [Survival, CompetingRisks, Classification])
def test_a_fresh_model_tells_the_old_from_the_young(kind: type[OutcomeObjective]) -> None:
    told = facts(OLDER)
    objective = kind(kind.Config(**few_intervals(kind)), told)
    head = head_of(objective)
    assert head.statics is not None
    assert (head.statics.effect[0] > 0.5).all()
    assert head.statics.effect.shape[1] == (2 if kind is CompetingRisks else 1)
    torch.manual_seed(0)
    model, records = EhrModel(Behrt(ModelConfig(size="tiny"), V), head), told.records
    assert records is not None
    assert told.outcomes is not None
    risk = objective.predict(model, records, torch.device("cpu")).risk
    days, is_event = told.outcomes.follow_up_days, told.outcomes.is_event
    assert c_index(risk, days, is_event) > c_index(AGE, days, is_event) - 0.01 > 0.65


def test_its_risks_are_as_many_as_the_events_that_came() -> None:
    """The population's baseline beside effects would foretell too many, as the mean of risks is not that of logits."""
    told = facts(2 * OLDER)
    objective = Classification(Classification.Config(), told)
    statics, baseline = head_of(objective).statics, head_of(objective).baseline
    assert statics is not None
    assert told.records is not None
    with torch.no_grad():
        risk = torch.cat([(statics(batch) + baseline).sigmoid() for batch in told.records])
    assert float(risk.mean()) == pytest.approx(objective.prevalence, abs=0.002)


def test_age_that_tells_nothing_moves_risks_little() -> None:
    statics = head_of(Survival(SurvivalConfig(n_intervals=4), facts(np.zeros(N)))).statics
    assert statics is not None
    assert statics.effect[0].abs() < 0.1


def test_static_facts_are_those_that_some_have_and_some_have_not() -> None:
    """Each subject of the store has one of 36 tokens as its static fact, and 43 of 300 have none."""
    statics = head_of(Survival(SurvivalConfig(n_intervals=4), facts(OLDER))).statics
    assert statics is not None
    of_subject = STORE.token[STORE.offsets[:-1][STORE.n_tokens > 0]]
    common = np.flatnonzero(np.bincount(of_subject, minlength=V) >= 5)
    assert statics.token.tolist() == common.tolist()


def test_an_unknown_age_is_the_mean_and_a_column_of_its_own() -> None:
    unknown = np.arange(N) % 3 == 0
    store = replace(STORE, end_age_years=np.where(unknown, np.nan, STORE.end_age_years).astype(np.float32))
    told = facts(np.where(unknown, 2.0, 0.0))
    assert told.records is not None
    told = replace(told, records=replace(told.records, store=store), mean_age=60.0)
    statics = head_of(Survival(SurvivalConfig(n_intervals=4), told)).statics
    assert statics is not None
    assert (statics.effect[1] / statics.scale[1]).item() > 1  # on the log-hazard, where 2 is true


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (SurvivalConfig(statics=False), facts(OLDER)),
        (SurvivalConfig(lasso=0.3), replace(facts(OLDER), levels=Levels(torch.full((V,), -1), torch.zeros(V)))),
        (SurvivalConfig(), replace(facts(OLDER), records=None)),
        (SurvivalConfig(), facts(np.where(np.arange(N) == 0, 9.0, -20.0))),
    ],
    ids=["not asked for", "a lasso has them", "no records", "one event"],
)
def test_a_head_without_them_begins_at_the_population(config: SurvivalConfig, told: TrainingFacts) -> None:
    objective = Survival(config, told)
    head = head_of(objective)
    assert head.statics is None
    assert torch.equal(head.baseline, objective.baseline_logits())


def test_runs_of_before_have_none_and_keep_their_identity_which_is_another_one_than_with_them() -> None:
    logged = {"study": "s", "data": {"path": "d"}, "objective": {"name": "survival", "n_intervals": 10}}
    of_before, now = parse_run_config(logged).objective, parse_config(logged).objective
    assert (of_before, now) == (SurvivalConfig(n_intervals=10, statics=False), SurvivalConfig(n_intervals=10))
    assert now.identity() == of_before.identity() | {"statics": True}
    assert "statics" not in of_before.identity()
    assert parse_run_config(parse_config(logged).to_json()).objective == now
    assert parse_run_config({**logged, "objective": {"name": "mlm"}}).objective.name == "mlm"
