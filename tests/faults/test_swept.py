"""Sweeps of several workers, and sweeps that are interrupted or killed: the study is as if it never was."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pods
import polars as pl
import pytest
from pods import Fault
from studied import Workers
from study import write_study
from sweeps import N_TRIALS, SEARCH, SETTINGS, Swept, swept

from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.client.queries import list_artifacts, search_runs
from ehrtrack.tracking.names import TRIAL_STATE


@pytest.fixture(scope="session", autouse=True)
def imports() -> None:
    """What pods are forked from imports while the server starts."""
    pods.begin_to_import()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, mlflow_server: str) -> Swept:
    folder = tmp_path_factory.mktemp("whole")
    config = write_study(folder, "swept-whole", n_subjects=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        words = ("sweep", "--config", str(config), *SETTINGS)
        assert pods.run(*words, folder=folder / "pod", server=mlflow_server, draws=False) == 0, pods.log_of(
            folder / "pod"
        )
        return swept("swept-whole")


def check_one_of_each(found: Swept) -> None:
    """One parent, as many trials as were asked for, one fit, and the best value beside its own settings."""
    assert [run.status for run in found.parents] == ["FINISHED"]
    finished = [run for run in found.trials if run.status == "FINISHED"]
    assert len(finished) == found.table.filter(state="complete").height == len(found.values) == N_TRIALS
    assert {run.parent_run_id for run in found.trials + found.fits} == {found.parents[0].run_id}
    assert {run.status for run in found.fits} == {"FINISHED"}
    assert len(found.fits) == len({run.name for run in found.fits}) <= 2
    assert found.best_value == pytest.approx(found.table["c_index"].max())
    rates = found.table.filter(pl.col("c_index") == pl.col("c_index").max())["train.lr"].to_list()
    assert any(found.best_rate == pytest.approx(rate) for rate in rates)  # small validation splits have ties
    assert float(found.best_fit.params["train.lr"]) == pytest.approx(found.best_rate)
    assert found.best_fit.metrics["kept/c_index"] == pytest.approx(found.best_value, abs=1e-9)


def test_two_workers_of_which_one_is_killed_in_a_trial_make_as_many_as_asked_for_under_one_parent(
    whole: Swept, http_store: str, tmp_path: Path
) -> None:
    file = write_study(tmp_path, "swept-by-two", n_subjects=200, epochs=1)
    file.write_text(file.read_text() + SEARCH)
    workers = Workers(file, http_store, [tmp_path / "machine"] * 2)
    workers.start_all([Fault("step", 2, signal.SIGKILL), None])
    workers.join()
    assert workers.n_killed == 1
    found = swept("swept-by-two")
    check_one_of_each(found)
    assert len(found.trials) == N_TRIALS
    assert [run.attempt for run in found.trials if run.attempt] == [1]  # it went on from its snapshot
    assert sorted(found.table["state"]) == ["complete"] * N_TRIALS + ["cut off"]
    assert {run.tags[TRIAL_STATE] for run in found.trials} == {"complete"}
    assert re.search(r"trial \d · lr \S+: continues run \w+", workers.log)
    assert "report/index.html" in list_artifacts(found.parents[0].run_id)
    check_one_of_each(whole)


def test_a_sweep_ended_by_ctrl_c_queues_its_trial_again_and_ends_as_if_it_never_was(
    whole: Swept, http_store: str, tmp_path: Path
) -> None:
    study = "swept-ctrl-c"
    config, folder = write_study(tmp_path, study, n_subjects=200), tmp_path / "pod"
    words = ("sweep", "--config", str(config), *SETTINGS)
    fault = Fault("step", 1 + int(whole.trials[0].metrics["train/batches"]), signal.SIGINT)  # the second trial's first
    assert pods.run(*words, folder=folder, server=http_store, fault=fault, draws=False) == 130
    log = pods.log_of(folder)
    assert "Traceback" not in log
    assert "to continue: start the same sweep again; what is finished is not repeated" in log
    assert [run.status for run in search_runs(study, kinds=["sweep"], status=None)] == ["KILLED"]
    assert pods.run(*words, folder=folder, server=http_store, draws=False) == 0, pods.log_of(folder)
    found = swept(study)
    check_one_of_each(found)
    assert found.facts == whole.facts
    assert found.table.sort("number")["state"].to_list() == ["complete", "cut off", "complete", "complete"]
    assert len(found.trials) == N_TRIALS  # the run of the trial went on


def test_a_sweep_killed_after_a_trial_and_again_in_the_fit_goes_on_with_that_trial_and_that_fit(
    whole: Swept, http_store: str, tmp_path: Path
) -> None:
    study = "swept-killed"
    config, folder = write_study(tmp_path, study, n_subjects=200), tmp_path / "pod"
    words = ("sweep", "--config", str(config), *SETTINGS)
    for fault in (Fault("end", 1, signal.SIGKILL), Fault("validation", N_TRIALS, signal.SIGKILL)):
        assert pods.run(*words, folder=folder, server=http_store, fault=fault, draws=False) == -signal.SIGKILL
    assert re.search(r"run \w+ of this trial had ended well", pods.log_of(folder))
    assert pods.run(*words, folder=folder, server=http_store, draws=False) == 0, pods.log_of(folder)
    found = swept(study)
    check_one_of_each(found)
    assert found.facts == whole.facts
    fit = found.best_fit
    assert all(len(client().get_metric_history(fit.run_id, key)) == 1 for key in fit.metrics if "system/" not in key)
    assert pods.run(*words, folder=folder, server=http_store, draws=False) == 0
    assert f"this sweep of {N_TRIALS} trials is done: run {found.parents[0].run_id}" in pods.log_of(folder)
    assert len(search_runs(study, status=None)) == 1 + N_TRIALS + len(found.fits)
