"""Competing risks from labels to the report of each cause, on subjects whose two causes have codes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from simulated import History, Visit, random_store, store_of

from ehrtrack.data.batch import Batches
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.events import MedsDataset
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.errors import DataError
from ehrtrack.evaluation.causes import score_causes
from ehrtrack.models.behrt import Behrt, EhrModel, ModelConfig
from ehrtrack.objectives import competing_risks
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.objectives.competing_risks import Score
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.survival.cause_measures import aalen_johansen, cause_c_index
from ehrtrack.training.loop import TrainConfig, fit
from ehrtrack.training.ranks import join_ranks

HORIZON = 365.0
N = 400
RISK_OF_1, RISK_OF_2, V = 5, 6, 12


def subjects() -> tuple[list[History], Outcomes]:
    """A code each multiplies the hazard of a cause of its own by eight."""
    rng = np.random.default_rng(0)
    has = rng.random((N, 2)) < 0.5
    first = rng.exponential(1 / (8.0**has / 2500))  # (N, 2) days to either cause
    censored = rng.uniform(50, 700, N)
    days = np.minimum(np.minimum(first.min(axis=1), censored), HORIZON)
    cause = np.where(days < np.minimum(censored, HORIZON), 1 + first.argmin(axis=1), 0)
    codes = [[4 + 3 + int(rng.integers(4)), *np.array([RISK_OF_1, RISK_OF_2])[row].tolist()] for row in has]
    return [History([Visit(code, 60.0)]) for code in codes], Outcomes(days, cause > 0, cause.astype(np.int64))


def objective_of(outcomes: Outcomes) -> competing_risks.CompetingRisks:
    facts = TrainingFacts(np.ones(V, dtype=np.int64), outcomes, HORIZON)
    return competing_risks.CompetingRisks(competing_risks.CompetingRisksConfig(n_intervals=5), facts)


def test_each_cause_is_learned_from_its_own_code(tmp_path: Path) -> None:
    histories, outcomes = subjects()
    store, train, test = store_of(histories), np.arange(280), np.arange(280, N)
    objective = objective_of(outcomes[train])
    torch.manual_seed(0)
    encoder = Behrt(ModelConfig(size="tiny", dropout=0), V)
    model = EhrModel(encoder, objective.make_head(encoder.width))
    result = fit(
        *(model, objective),
        training=lambda epoch: Batches(store, train, 128, 16, outcomes=outcomes, shuffle_seed=epoch),
        validation=Batches(store, test, 512, 16, outcomes=outcomes),
        config=TrainConfig(epochs=6, lr=5e-3, patience=6),
        ranks=join_ranks("cpu"),
        folder=tmp_path,
        logger=MemoryRunLogger(),
    )
    assert result.kept["val/c_index_cause_1"] > 0.6
    assert result.kept["val/c_index_cause_2"] > 0.6
    found = objective.predict(model, Batches(store, test, 512, 16), torch.device("cpu"))
    assert found.incidence is not None
    np.testing.assert_allclose(found.survival + found.incidence.sum(axis=1), 1, atol=1e-6)
    days, cause = outcomes.follow_up_days[test], outcomes.cause[test]
    report = score_causes(found.incidence, Outcomes(days, cause > 0, cause), horizon_days=HORIZON, seed=0)
    table = report.tables["causes"]
    assert report.metrics["c_index_cause_1"] == pytest.approx(result.kept["val/c_index_cause_1"])
    np.testing.assert_allclose(table["predicted"], table["observed"], atol=0.12)
    swapped = np.array([0, 2, 1])[cause]
    wrong = score_causes(found.incidence, Outcomes(days, swapped > 0, swapped), horizon_days=HORIZON, seed=0).tables[
        "causes"
    ]
    assert (wrong["c_index"] < 0.5).all()  # the code of one cause says nothing good of the other


def test_an_untrained_model_has_the_populations_incidence() -> None:
    outcomes = subjects()[1]
    objective = objective_of(outcomes)
    encoder = Behrt(ModelConfig(size="tiny"), V)
    model = EhrModel(encoder, objective.make_head(encoder.width))
    model.head.out.weight.data.zero_()
    found = objective.predict(model, Batches(random_store(3, V), np.arange(3), 64, 16), torch.device("cpu"))
    assert found.incidence is not None
    for of in (1, 2):
        observed = aalen_johansen(outcomes.follow_up_days, outcomes.cause, of=of, by_day=HORIZON)
        assert found.incidence[0, of - 1, -1] == pytest.approx(observed, abs=0.04)  # intervals are not days


def test_labels_without_causes_are_refused() -> None:
    outcomes = subjects()[1]
    with pytest.raises(DataError, match="give the labels a column cause"):
        objective_of(Outcomes(outcomes.follow_up_days, outcomes.is_event))


def test_a_cause_that_nobody_has_is_refused() -> None:
    outcomes = subjects()[1]
    assert outcomes.cause is not None
    with pytest.raises(DataError, match="no training subject has cause 2"):
        objective_of(
            Outcomes(outcomes.follow_up_days, outcomes.is_event, np.where(outcomes.cause == 2, 3, outcomes.cause))
        )


def cohort_of(folder: Path, **changes: list[object]) -> pl.DataFrame:
    """The cohort of four subjects with labels that have a cause."""
    (folder / "data").mkdir(exist_ok=True)
    n = 40
    times = pl.Series([f"2019-01-{1 + k % 28:02d}" for k in range(n)]).str.to_datetime(time_unit="us")
    shard = folder / "data" / "0.parquet"
    pl.DataFrame({"subject_id": range(n), "time": times, "code": ["A"] * n}).write_parquet(shard)
    columns = {
        "subject_id": list(range(n)),
        "prediction_time": ["2020-01-01"] * n,
        "follow_up_days": [10.0, 400.0, 30.0, 50.0] * 10,
        "is_event": [True, True, False, True] * 10,
        "cause": [1, 2, 0, 2] * 10,
    } | changes
    pl.DataFrame({k: v for k, v in columns.items() if v}).write_csv(folder / "labels.csv")
    config = CohortConfig(labels=folder / "labels.csv", horizon_days=HORIZON)
    return build_cohort(MedsDataset(folder, (shard,)), config, SplitConfig()).subjects


def test_labels_bring_their_causes_and_the_horizon_ends_them(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path)
    assert cohort["cause"].to_list()[:4] == [1, 0, 0, 2]  # the second event is past the horizon
    assert cohort["is_event"].to_list()[:4] == [True, False, False, True]
    assert "cause" not in cohort_of(tmp_path, cause=[]).columns


@pytest.mark.parametrize(
    ("causes", "told"),
    [([1, 2, 1, 2] * 10, r"10 rows have a cause without an event .* row 3"), ([1, -2, 0, 2] * 10, "a whole number")],
)
def test_causes_that_contradict_the_events_are_refused(causes: list[object], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        cohort_of(tmp_path, cause=causes)


def test_the_standard_error_is_of_the_causes_mean_in_resampled_subjects() -> None:
    rng = np.random.default_rng(3)
    cause, days = rng.integers(0, 3, 120), rng.uniform(1, HORIZON, 120)
    outcomes = Outcomes(days, cause > 0, cause)
    objective = objective_of(outcomes)
    incidence = rng.uniform(0, 0.4, (120, 2, objective.grid.n_intervals + 1)).cumsum(axis=2)
    incidence /= 2 * incidence[:, :, -1:].max()
    metrics = objective.metrics([Score(0.0, 1 - incidence.sum(axis=1), incidence, outcomes)])
    means = []
    for rows in np.random.default_rng(0).integers(120, size=(200, 120)):
        risks = incidence[rows, :, -1]
        means.append(np.mean([cause_c_index(risks[:, r - 1], days[rows], cause[rows], of=r) for r in (1, 2)]))
    assert metrics["val/c_index_causes_se"] == pytest.approx(np.std(means, ddof=1), rel=1e-6)
