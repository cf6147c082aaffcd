"""A small fine-tuning whose every value is known, to be disturbed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulated import Population, study_values, write_dataset

from ehrtrack.files import sha256_of
from ehrtrack.study_file import to_toml
from ehrtrack.tracking import names, system
from ehrtrack.tracking.client import queries
from ehrtrack.tracking.client.connection import client
from ehrtrack.tracking.outbox.journal import LOG, read_progress
from ehrtrack.tracking.outbox.registration import fetch_checksums

TIMES = (
    "train/tokens_per_second",
    "train/tflops_per_second",
    "train/epoch_seconds",
    "train/memory_mb",
    "cost/train_seconds",
    "cost/peak_memory_mb",
    "cost/tokens_per_second",
    "cost/tflops_per_second",
    "cost/total_seconds",
    "probe/seconds",
)
"""Metrics that measure the machine: there once for each step, with values that differ from run to run."""

# What holds a time or a version of its own; that the best model is the same is told by its weights.
OWN_ARTIFACTS = ("environment.json", "sha256sums.txt")

Row = tuple[str, int]


@dataclass(frozen=True)
class Outcome:
    """What a run left on the server: the values of each metric and step, its params, and its artifacts' hashes."""

    rows: dict[Row, list[float]]
    params: dict[str, str]
    artifacts: dict[str, str]
    status: str

    @property
    def values(self) -> dict[Row, list[float]]:
        """Without those that measure the machine."""
        return {row: values for row, values in self.rows.items() if row[0] not in TIMES}


def write_study(
    folder: Path, name: str, *, epochs: int = 3, n_subjects: int = 200, snapshot_minutes: float = 1e-6
) -> Path:
    """Data and a configuration whose cache is in the pod's own working folder; returns the configuration."""
    data = folder / "data"
    write_dataset(data, Population(n_subjects=n_subjects))
    values = study_values(
        data,
        Path(".ehrtrack"),
        strategy={"name": "scratch"},
        train={"epochs": epochs, "batch_tokens": 1024, "lr": 3e-3, "patience": epochs},
    )
    values["study"] = name
    values["runtime"] |= {"snapshot_minutes": snapshot_minutes, "threads": 1}
    file = folder / "finetune.toml"
    file.write_text(to_toml(_flat(values)))
    return file


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def run_ids(study: str) -> list[str]:
    """The runs of a study, whatever their status."""
    return [record.run_id for record in queries.search_runs(study, status=None)]


def is_finished(run_id: str) -> bool:
    """Whether the run has ended well."""
    return str(client().get_run(run_id).info.status) == "FINISHED"


def can_go_on_elsewhere(run_id: str) -> bool:
    """Whether the server has the run's configuration: killed before, a run can go on on its own machine alone."""
    return "run_config.json" in queries.list_artifacts(run_id)


@dataclass
class Quiet:
    """Whether a pod, in whose folder this is asked, has sent all of its journal, and nothing was added for a while.

    What is paused between its look at the run and its write sends that one batch all the same: a test of the pause
    itself has to come at another moment.
    """

    n_looks: int = 10
    n_quiet: int = 0
    n_bytes: int = 0

    def __call__(self) -> bool:
        journals = [file.parent for file in Path(".ehrtrack/journal").glob(f"*/{LOG}")]
        sizes = [(journal / LOG).stat().st_size for journal in journals]
        is_sent = sizes == [read_progress(journal).position for journal in journals] and sum(sizes) == self.n_bytes
        self.n_bytes, self.n_quiet = sum(sizes), self.n_quiet + 1 if is_sent else 0
        return bool(journals) and self.n_quiet >= self.n_looks


def outcome_of(run_id: str) -> Outcome:
    """What is on the server."""
    run = client().get_run(run_id)
    rows: dict[Row, list[float]] = {}
    for key in run.data.metrics:
        if key.startswith(system.PREFIX):  # sampled every half minute: a run that was disturbed has more of them
            continue
        for row in client().get_metric_history(run_id, key):
            rows.setdefault((key, row.step), []).append(row.value)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(client().download_artifacts(run_id, "", folder))
        found = {str(file.relative_to(root)): sha256_of(file) for file in root.rglob("*") if file.is_file()}
    assert not [path for path in found if path.startswith(names.RESUME_ARTIFACTS)]
    told = fetch_checksums(run_id)
    assert {path: digest for path, digest in found.items() if path != names.CHECKSUMS} == told
    artifacts = {path: digest for path, digest in found.items() if path not in OWN_ARTIFACTS}
    # how often a run was resumed is the one thing that differs of one that was disturbed
    params = {key: value for key, value in run.data.params.items() if not key.startswith(f"{names.ATTEMPT}.")}
    return Outcome(rows, params, artifacts, run.info.status)
