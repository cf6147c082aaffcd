"""`ehrtrack evaluate` against lifelines and scikit-survival, from the predictions that it logs: simulated subjects of
another population than the model was trained on, by a model that was trained elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index
from simulated import HORIZON_DAYS, Population, study, write_dataset
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
    integrated_brier_score,
)
from sksurv.util import Surv

from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.compare import compare
from ehrtrack.recipes.evaluate import evaluate
from ehrtrack.survival.censoring import FollowUp
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.metrics import evaluation_times
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.tracking.client.queries import download, get_run

pytestmark = [
    pytest.mark.usefixtures("undrawn_figures"),
    pytest.mark.filterwarnings("ignore:.*[Tt]ype hint:UserWarning"),  # of mlflow's own classes
]


def labels_of(folder: Path) -> Path:
    """The labels of a simulated population, with some who have no follow-up, and one who is in no dataset."""
    events = pl.read_parquet(folder / "data" / "0.parquet")

    def times(code: str) -> pl.DataFrame:
        return events.filter(pl.col("code") == code).select("subject_id", pl.col("time").alias(code))

    rows = times("INDEX").join(times("CONTACT"), on="subject_id").join(times("OUTCOME"), on="subject_id", how="left")
    end = pl.min_horizontal("OUTCOME", "CONTACT")
    days = (end - pl.col("INDEX")).dt.total_microseconds() / 86_400_000_000
    labels = rows.select(
        "subject_id", prediction_time="INDEX", follow_up_days=days, is_event=pl.col("OUTCOME").is_not_null()
    )
    stranger = labels.head(1).with_columns(subject_id=pl.lit(10**6, dtype=pl.Int64))
    empty = pl.when(pl.col("subject_id") % 50 == 0).then(0.0).otherwise("follow_up_days")
    pl.concat([labels.with_columns(follow_up_days=empty), stranger]).write_parquet(folder / "labels.parquet")
    return folder / "labels.parquet"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    write_dataset(folder / "trained", Population(n_subjects=300))
    write_dataset(folder / "other", Population(n_subjects=400, seed=9, hazard_ratio=3, first_subject=5001))
    labels_of(folder / "other")
    return folder


def test_an_evaluation_equals_lifelines_and_scikit_survival(
    elsewhere: Path, local_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = study(elsewhere / "trained", local_store / "cache", baseline={"name": "cox"}, runtime={
        "cache": str(local_store / "cache"), "device": "cpu", "log_raw_subjects": True
    })  # fmt: skip
    model, other = (baseline(config.model_copy(update={"baseline": chosen})) for chosen in _two(config))
    data, labels = elsewhere / "other", elsewhere / "other" / "labels.parquet"
    run = evaluate(model.run_id, data, labels, against=[other.run_id])
    record = get_run(run.run_id)
    assert (record.kind, record.status, record.tags["model_run"]) == ("evaluation", "FINISHED", model.run_id)
    said = capsys.readouterr().out
    assert "not scored: no follow-up after the prediction time: 8" in said
    assert "not scored: not in the dataset: 1" in said

    rows = pl.read_parquet(download(run.run_id, "predictions/test.parquet", local_store / "rows"))
    assert rows.height == 392
    days, event, risk = (rows[name].to_numpy() for name in ("follow_up_days", "is_event", "risk"))
    assert days.max() == HORIZON_DAYS  # and who is followed for longer is censored there
    found = {name.removeprefix("test/"): value for name, value in record.metrics.items()}
    surv = Surv.from_arrays(event, days)
    assert found["c_index"] == pytest.approx(concordance_index(days, -risk, event), abs=1e-9)
    # scikit-survival takes risks for tied that differ by less than tied_tol; subjects with equal codes do, by 1e-17.
    of_sksurv = concordance_index_censored(event, days, risk, tied_tol=0)[0]
    assert found["c_index"] == pytest.approx(of_sksurv, abs=1e-9)

    # At the horizon events meet no censoring but that at its end, which comes after it: scikit-survival is told so.
    moved = FollowUp.of(days, event, days, event).surv
    uno = concordance_index_ipcw(moved, moved, risk, tau=np.nextafter(HORIZON_DAYS, np.inf))[0]
    assert found["uno_c"] == pytest.approx(uno, abs=1e-9)
    assert found["brier"] == pytest.approx(brier_score(moved, moved, 1 - risk, HORIZON_DAYS)[1][0], abs=1e-9)
    auc = cumulative_dynamic_auc(moved, moved, risk, [HORIZON_DAYS])[1]
    assert found["auc_horizon"] == pytest.approx(auc, abs=1e-9)
    edges = TimeGrid(tuple(_edges(model.run_id, local_store)))
    times = evaluation_times(days, event, days)
    curves = interpolate_survival(np.array(rows["survival"].to_list()), edges, times)
    assert found["ibs"] == pytest.approx(integrated_brier_score(surv, surv, curves, times), abs=1e-9)
    observed = 1 - KaplanMeierFitter().fit(days, event).predict(HORIZON_DAYS)
    assert found["observed_to_expected"] == pytest.approx(observed / risk.mean(), abs=1e-9)
    shifted = 1 - (1 - risk) ** np.exp(found["in_the_large"])
    assert shifted.mean() == pytest.approx(observed, abs=1e-9)
    after = brier_score(moved, moved, 1 - shifted, HORIZON_DAYS)[1][0]
    assert found["in_the_large_brier"] == pytest.approx(after, abs=1e-9)
    for name in ("c_index", "uno_c", "auc_horizon", "ibs", "brier", "observed_to_expected", "ici", "calibration_slope"):
        assert found[f"{name}_lower"] <= found[name] <= found[f"{name}_upper"], name

    pairs = pl.read_csv(download(run.run_id, "evaluation/paired.csv", local_store / "pairs"))
    assert pairs["measure"].to_list() == ["c_index", "ibs", "brier"]
    again = evaluate(other.run_id, data, labels)
    of_other = get_run(again.run_id).metrics
    for row in pairs.iter_rows(named=True):
        difference = found[row["measure"]] - of_other[f"test/{row['measure']}"]
        assert row["difference"] == pytest.approx(difference, abs=1e-9)
        assert row["lower"] <= row["difference"] <= row["upper"]

    # Both are of one cohort: a comparison of the study shows them side by side, and proposes neither.
    assert get_run(again.run_id).tags["fingerprint.cohort"] == record.tags["fingerprint.cohort"]
    capsys.readouterr()
    compare(config)
    said = capsys.readouterr().out
    assert "external validation on other, labels labels.parquet" in said
    assert said.count(run.run_id[:8]) == said.count(again.run_id[:8]) == 1


def _two(config: object) -> list[object]:
    from ehrtrack.config import RunConfig, override

    assert isinstance(config, RunConfig)
    return [override(config, {"baseline.name": name}).baseline for name in ("cox", "lasso")]


def _edges(run_id: str, folder: Path) -> list[float]:
    import json

    edges: list[float] = json.loads(download(run_id, "model/time_grid.json", folder / "grid").read_text())["edges_days"]
    return edges
