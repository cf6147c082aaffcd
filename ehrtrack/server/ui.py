"""`ehrtrack ui`: open the page of a study, a run or a model, on the server in use or on one that is started for it."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from subprocess import Popen

from ehrtrack.errors import TrackingError
from ehrtrack.server import processes
from ehrtrack.tracking.client.connection import (
    LOOPBACK,
    UI_PORT,
    check_reachable,
    http_get,
    is_remote,
    tracking_uri,
    ui_command,
)
from ehrtrack.tracking.client.queries import experiment_of_study, get_run

START_SECONDS = 120


def show_ui(
    *,
    study: str = "",
    run_id: str = "",
    model: str = "",
    port: int = 0,
    opens: bool = True,
    tell: Callable[[str], object],
) -> None:
    """Open a page of the tracking UI; if a server had to be started for it, wait until Ctrl-C ends it.

    Parameters
    ----------
    study, run_id, model : which page to open; if all are empty, that of the latest study
    port : of the server that is started; if 0, mlflow's usual one, or a free one where that is taken
    opens : whether a browser is opened; the address is always printed
    tell : called with each message

    Raises
    ------
    TrackingError
        If there is no such study or run, or the server does not start.
    """
    check_reachable()
    experiment_id = get_run(run_id).experiment_id if run_id else None if model else experiment_of_study(study)
    page = partial(ui_command, experiment_id, run_id=run_id or None, model=model or None)
    if is_remote():
        _open(page().url, opens=opens, tell=tell)
        return
    port = port or (UI_PORT if processes.is_free(LOOPBACK, UI_PORT) else processes.free_port())
    if not processes.is_free(LOOPBACK, port):
        raise TrackingError(f"port {port} of {LOOPBACK} is taken; name another with --port, or leave it out")
    tell(f"starting mlflow's UI on port {port}")
    with _started(port) as server:
        _open(page(port=port).url, opens=opens, tell=tell)
        tell("Ctrl-C ends it")
        server.wait()
        raise TrackingError("mlflow's server has ended by itself; start it again")


def _open(url: str, *, opens: bool, tell: Callable[[str], object]) -> None:
    tell(url)
    if opens and not webbrowser.open(url):
        tell("no browser could be opened here; open the address in yours")


@contextmanager
def _started(port: int) -> Iterator[Popen[bytes]]:
    """A lean mlflow server on the store in use, for this machine alone, until the block ends."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | {
        # by environment: a command line is for everybody on the machine to read
        "MLFLOW_BACKEND_STORE_URI": tracking_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with tempfile.TemporaryDirectory(prefix="ehrtrack-ui-") as name:
        folder = Path(name)
        log = folder / "server.log"
        server = processes.start(command, folder=folder, log=log, environment=environment)
        try:
            processes.wait_until(partial(_is_healthy, port), server, seconds=START_SECONDS, log=log)
            yield server
        finally:
            processes.end(server)


def _is_healthy(port: int) -> bool:
    with suppress(TrackingError):
        return http_get(f"http://{LOOPBACK}:{port}", "/health").status_code == 200
    return False
