"""A run that is killed, on a machine that is lost or not, ends as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from harness import Account, Outcome, disturb, undisturbed
from pods import AFTERWARDS, Fault
from study import write_study


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def config(place: Path) -> Path:
    return write_study(place, "disturbed")


@pytest.fixture(scope="module")
def whole(place: Path, config: Path, mlflow_server: str) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        return undisturbed(place, mlflow_server, config, "disturbed")


def test_a_run_killed_in_a_step_an_upload_and_a_validation_is_on_the_server_as_if_it_never_was(
    whole: Outcome, config: Path, http_store: str, tmp_path: Path
) -> None:
    faults = [
        Fault("step", 3, signal.SIGTERM),
        Fault("upload", 5, signal.SIGKILL, AFTERWARDS),
        Fault("validation", 1, signal.SIGKILL),
    ]
    account = Account()
    run = disturb(tmp_path, http_store, config, "disturbed", faults, account, moves=[True, False, False])
    account.judge(whole, run)
    assert account.n_faults == 3
    assert (account.n_new_machines, account.n_resumed) == (1, 1)
    assert run.values == whole.values
    assert (account.rows_lost, account.rows_doubled, account.rows_different) == (0, 0, 0)
    assert run.artifacts == whole.artifacts
    assert run.status == "FINISHED"
