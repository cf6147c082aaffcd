"""A run that another process claims while its last records are on their way keeps nothing of its course."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import study

from ehrtrack.config import RunConfig
from ehrtrack.pipeline.run import open_run
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.recovery.lease import RunClaimLost


def overtaken(told: RunConfig) -> Path:
    """Where a run had its snapshots that another process claims as it ends."""
    folder = Path()
    try:
        with open_run(told, kind="finetune", sections=("study",), name="a") as run:
            folder = run.folder
            folder.mkdir(parents=True)
            (folder / "snapshot").touch()
            client().log_param(run.logger.reference, f"{names.CLAIM_PARAM}1", "another")
    except RunClaimLost:
        return folder
    pytest.fail("nobody noticed")


def test_its_snapshots_are_removed_where_the_sending_of_its_end_tells_it(local_store: Path) -> None:
    told = study(local_store / "no data", local_store / "cache", strategy={"name": "lora", "rank": 8})
    assert not overtaken(told).exists()
