"""A small study whose every value is known, to be disturbed; and its workers, on one machine or on several."""

from __future__ import annotations

import math
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pods
import polars as pl
from pods import Fault
from study import TIMES, write_study

from ehrtrack.study import queue
from ehrtrack.study_file import read_toml, to_toml
from ehrtrack.tracking.client.queries import RunRecord, download, search_runs
from ehrtrack.tracking.names import CELL

SMALL = """
question = "Does pretraining pay?"
finetune = "finetune.toml"
baseline = "finetune.toml"
pretrain = "pretrain.toml"
reference = { baseline = "cox" }
[matrix]
strategy = ["full"]
[repeats]
"runtime.seed" = [0, 1]
"""
"""Five cells: two pretrainings, what starts from each, and Cox, which is the same for both seeds."""
LARGE = """
question = "Does pretraining pay?"
finetune = "finetune.toml"
baseline = "finetune.toml"
pretrain = "pretrain.toml"
reference = { baseline = "cox" }
[matrix]
strategy = ["full", "scratch", "lora"]
baseline = ["cox", "lasso"]
[repeats]
"data.split.seed" = [0, 1, 2]
"runtime.seed" = [0, 1]
"""
"""Thirty cells: a pretraining and three strategies for each of six repeats, and two baselines for each split."""


OF_THE_MACHINE = (
    *("peak_memory_mb", "tokens_per_second", "tflops_per_second", "seconds", "total_seconds", "hours", "cost"),
    "run_ids",
)
"""Columns of a study's table that differ from one time to another."""
TOLERANCE = 1e-12
"""Relative, of a value: sums over arrays that lie elsewhere in memory differ in the last digit."""
BEAT_SECONDS = 3.0
"""From one sign of life of a worker to the next, here."""


@dataclass(frozen=True)
class Studied:
    """What a study left on the server: its own runs, the runs of its cells, and the table of configurations."""

    parents: list[RunRecord]
    cells: list[RunRecord]
    table: pl.DataFrame

    @property
    def finished(self) -> list[RunRecord]:
        """Runs of cells that have ended well."""
        return [run for run in self.cells if run.status == "FINISHED"]

    @property
    def facts(self) -> dict[str, object]:
        """All that has to be the same however often the study was disturbed, by name."""
        scores = {
            f"{run.name} {name}": value
            for run in self.finished
            for name, value in run.metrics.items()
            if name not in TIMES and not name.startswith("system/")
        }
        table = {row[0]: row for row in self.table.drop(OF_THE_MACHINE).rows()}
        return scores | table

    def differing(self, other: Studied) -> list[str]:
        """Names of the facts that are not the same of both, to `TOLERANCE`."""
        one, two = self.facts, other.facts
        return sorted(name for name in one.keys() | two.keys() if not _is_same(one.get(name), two.get(name)))

    @property
    def n_twice(self) -> int:
        """Cells that ended well more than once, and runs of the study itself beyond the one."""
        keys = Counter(run.tags[CELL] for run in self.finished)
        return sum(n - 1 for n in keys.values()) + len(self.parents) - 1

    @property
    def n_open(self) -> int:
        """Runs that say that they run, now that no process is left."""
        return sum(run.status == "RUNNING" for run in (*self.cells, *self.parents))


def _is_same(one: object, other: object) -> bool:
    """Whether two values, or rows of a table, are equal to `TOLERANCE`."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE) or (math.isnan(one) and math.isnan(other))
    return one == other


def write(folder: Path, name: str, text: str) -> Path:
    """The files of a study of this name, over a cache in the working folder of its workers; returns its file."""
    base = write_study(folder, name, epochs=2)
    table = read_toml(base)
    (folder / "pretrain.toml").write_text(
        to_toml({key: table[key] for key in ("study", "data", "model", "runtime", "train")})
    )
    finetune = {key: table[key] for key in ("cohort",)} | {"extends": "pretrain.toml"}
    base.write_text(to_toml(finetune))
    (folder / "study.toml").write_text(text)
    return folder / "study.toml"


def studied(study: str) -> Studied:
    """What there is on the server."""
    runs = search_runs(study, status=None)
    parents = [run for run in runs if run.kind == "study"]
    (parent,) = [run for run in parents if run.status == "FINISHED"]
    with tempfile.TemporaryDirectory() as folder:
        table = pl.read_csv(download(parent.run_id, "study/results.csv", Path(folder)))
    return Studied(parents, [run for run in runs if CELL in run.tags], table)


@dataclass(frozen=True)
class Machine:
    """A machine of its own name, so that nobody else can see whether one of its processes lives, and with haste."""

    name: str
    fault: Fault | None = None

    def plant(self) -> None:
        """Have this process take itself for one of that machine."""
        socket.gethostname = lambda: self.name
        queue.BEAT_SECONDS = BEAT_SECONDS
        if self.fault is not None:
            self.fault.plant()


@dataclass
class Workers:
    """Workers of a study that are started again when they were killed, as a scheduler does.

    Attributes
    ----------
    folders : of each worker, its machine's; workers of one machine share it
    n_killed : so far
    """

    file: Path
    server: str
    folders: list[Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    n_killed: int = 0
    processes: list[BaseProcess] = field(default_factory=list)

    def start(self, number: int, fault: Fault | None = None, *, key: str = "") -> BaseProcess:
        """One worker, in the folder of its machine."""
        folder = self.folders[number]
        words = ("work", str(self.file), *(("--key", key) if key else ()))
        planted = Machine(folder.name, fault)
        return pods.start(*words, folder=folder, server=self.server, fault=planted, draws=False, **self.environment)

    def start_all(self, faults: Sequence[Fault | None]) -> None:
        """Each worker, with the fault that it meets."""
        self.processes = [self.start(number, fault) for number, fault in enumerate(faults)]

    def kill(self, number: int) -> None:
        """As when a machine loses its power."""
        self.processes[number].kill()
        self.processes[number].join()

    def join(self, seconds: float = 3 * pods.START_SECONDS) -> None:
        """Wait until all have ended well, so long at most; those that were killed are started again."""
        deadline = time.monotonic() + seconds
        while any(self.look(number) for number in range(len(self.processes))):
            assert time.monotonic() < deadline, self.log
            time.sleep(0.2)

    def look(self, number: int) -> bool:
        """Whether a worker is still at it; one that was killed is started again."""
        process = self.processes[number]
        if process.is_alive():
            return True
        process.join()
        if process.exitcode == 0:
            return False
        assert process.exitcode == -9, f"exit code {process.exitcode}:\n{self.log}"
        self.n_killed += 1
        self.processes[number] = self.start(number)
        return True

    @property
    def log(self) -> str:
        """What all of them said."""
        return "\n".join(pods.log_of(folder) for folder in dict.fromkeys(self.folders))
