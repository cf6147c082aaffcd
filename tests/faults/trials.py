"""Disturbs sweeps of forty trials, and counts what is there in the end.

``python tests/faults/trials.py --seed 1 --kills 3 --report docs/reliability.md`` runs one sweep of two workers on one
machine with sqlite, which are killed by SIGKILL at random moments and started again; and one of three workers on three
machines with PostgreSQL, of which one is lost in the middle of a trial and never comes back.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import pods  # noqa: E402
from harness import tracking_server  # noqa: E402
from reliability import code, command, machine, series_options, write_section  # noqa: E402
from studied import Workers  # noqa: E402
from study import write_study  # noqa: E402

from ehrtrack.server import postgres  # noqa: E402
from ehrtrack.tracking.client.queries import RunRecord, search_runs  # noqa: E402
from ehrtrack.tracking.names import TRIAL, TRIAL_STATE  # noqa: E402

N_TRIALS = 40
MOST_SECONDS = 3600.0
"""That a sweep may take on a busy machine."""
PAUSE_SECONDS = (0.5, 8.0)
"""From when to when a kill comes after a trial has begun, or goes on, since the kill before."""
SEARCH = """
[search]
n_trials = 40
pruner = "{pruner}"
heartbeat_seconds = 3
n_startup_trials = 6
refits = 3

[search.parameters]
"train.lr" = {{ low = 1e-5, high = 3e-2, log = true }}
"model.dropout" = {{ low = 0.0, high = 0.5 }}
"objective.lambda_rank" = {{ low = 0.0, high = 0.5 }}
"""


@dataclass(frozen=True)
class Swept:
    """What a sweep left on the server."""

    parents: list[RunRecord]
    trials: list[RunRecord]
    fits: list[RunRecord]

    @property
    def per_trial(self) -> Counter[str]:
        """Runs that ended well, by the trial's number."""
        return Counter(run.tags[TRIAL] for run in self.trials if run.status == "FINISHED")

    @property
    def n_lost(self) -> int:
        """Trials of the budget without a run that ended well."""
        return N_TRIALS - len(self.per_trial)

    @property
    def n_twice(self) -> int:
        """Runs that ended well beyond one a trial, one a fit, and one of the sweep."""
        fits = Counter(run.name for run in self.fits if run.status == "FINISHED")
        return sum(n - 1 for n in (*self.per_trial.values(), *fits.values())) + len(self.parents) - 1

    @property
    def n_open(self) -> int:
        """Runs that say that they run, now that no process is left."""
        return sum(run.status == "RUNNING" for run in (*self.parents, *self.trials, *self.fits))


def swept(study: str) -> Swept:
    """What there is on the server."""
    runs = search_runs(study, status=None)
    return Swept(*([run for run in runs if run.kind == kind] for kind in ("sweep", "trial", "finetune")))


@dataclass
class Series:
    """What became of the sweeps, by what was done to them."""

    rows: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    n_wrong: int = 0

    def judge(self, what: str, found: Swept, *, n_killed: int, seconds: float) -> None:
        """Count what is there."""
        self.n_wrong += found.n_lost + found.n_twice + found.n_open
        metrics = found.parents[0].metrics
        states = Counter(run.tags.get(TRIAL_STATE, "") for run in found.trials)
        row = [what, n_killed, len(found.per_trial), found.n_lost, found.n_twice, found.n_open, len(found.parents)]
        row += [sum(run.attempt > 0 for run in found.trials), states["pruned"], f"{metrics['sweep/n_epochs']:.0f}"]
        row += [f"{metrics['sweep/epochs_saved']:.0%}", f"{metrics.get('sweep/optimism', 0):+.3f}", f"{seconds:.0f}"]
        self.rows.append(f"| {' | '.join(map(str, row))} |")
        said = found.parents[0].tags.get("mlflow.note.content", "").split("\n\n", 2)[-1]
        self.findings.append(f"- {what}: {' '.join(said.split())}")
        print(self.rows[-1], self.findings[-1], sep="\n", flush=True)

    def report(self, seed: int) -> str:
        """The series as a section for people."""
        rows, findings = "\n".join(self.rows), "\n".join(self.findings)
        heads = ["", "kills", "trials done", "lost", "twice", "runs left open", "parents", "trials taken up", "pruned"]
        heads += ["epochs", "saved by pruning", "optimism", "seconds"]
        return f"""## Sweeps of several workers

Sweeps of {N_TRIALS} trials over the learning rate, dropout and the ranking weight, of six epochs, with three seeds of
the best and of the defaults afterwards, are run by workers (`ehrtrack work`) that are killed by SIGKILL at random
moments. On sqlite they are of one machine, and started again at once. On PostgreSQL each is a machine of its own, and
one is lost in the middle of a trial: another worker goes on with it from the server alone. A trial's run that was taken
up goes on from its snapshot. What a trial draws depends on which ended before it, so that no values are compared.

| {" | ".join(heads)} |
|{"---|" * len(heads)}
{rows}

{findings}

- seed of the moments: {seed}
- machine: {machine()}
- code: commit {code()}
- command: `{command()}`
"""


def write(folder: Path, name: str, pruner: str) -> Path:
    """The configuration of a sweep of this name, over a cache in the working folder of its workers."""
    file = write_study(folder, name, epochs=6, n_subjects=300)
    file.write_text(file.read_text().replace("lr = 0.003", "lr = 0.0003") + SEARCH.format(pruner=pruner))
    return file


def on_one_machine(folder: Path, server: str, series: Series, *, n_kills: int, pruner: str, rng: random.Random) -> None:
    """Two workers on sqlite, killed so often."""
    name, started = f"trials-sqlite-{pruner}", time.monotonic()
    workers = Workers(write(folder / name, name, pruner), server, [folder / name / "machine"] * 2)
    workers.start_all([None, None])
    n_begun = 0
    for number in range(n_kills):
        n_begun = _until_begun(name, workers, max(n_begun, number * N_TRIALS // (n_kills + 1)))
        time.sleep(rng.uniform(*PAUSE_SECONDS))
        at_it = [number for number in range(2) if workers.look(number)]
        if not at_it:
            break
        workers.kill(rng.choice(at_it))
        [workers.look(number) for number in range(2)]
    workers.join(MOST_SECONDS)
    series.judge(
        f"two workers, sqlite, {pruner}", swept(name), n_killed=workers.n_killed, seconds=time.monotonic() - started
    )


def on_three_machines(folder: Path, server: str, series: Series, *, rng: random.Random) -> None:
    """Three workers on PostgreSQL, of which one is lost."""
    name, started = "trials-postgres", time.monotonic()
    cluster = postgres.PostgresCluster(folder / "postgres", "a-password", "another")
    cluster.start()
    try:
        folders = [folder / name / machine for machine in "abc"]
        workers = Workers(
            write(folder / name, name, "median"), server, folders, {"EHRTRACK_STORAGE": cluster.studies_uri}
        )
        workers.start_all([None] * 3)
        _until_begun(name, workers, N_TRIALS // 4)
        time.sleep(rng.uniform(*PAUSE_SECONDS))
        lost = rng.randrange(3)
        workers.kill(lost)
        shutil.rmtree(folders[lost])
        del workers.processes[lost], workers.folders[lost]
        workers.join(MOST_SECONDS)
    finally:
        cluster.stop()
    what = "three workers, PostgreSQL, median, one machine lost"
    series.judge(what, swept(name), n_killed=1, seconds=time.monotonic() - started)


def _until_begun(study: str, workers: Workers, n_before: int) -> int:
    """Until more trials have begun, or been gone on with, than before: else there is nothing new to disturb."""

    def n_begun() -> int:
        return sum(1 + run.attempt for run in search_runs(study, kinds=["trial"], status=None))

    deadline = time.monotonic() + 3 * pods.START_SECONDS
    while n_begun() <= n_before and any(process.is_alive() for process in workers.processes):
        assert time.monotonic() < deadline, workers.log
        time.sleep(0.5)
    return n_begun()


def main(seed: int, n_kills: int, pruners: Sequence[str], *, has_postgres: bool) -> Series:
    """Run a sweep for each pruner on sqlite, and one on PostgreSQL."""
    folder = Path(tempfile.mkdtemp(prefix="trials"))
    folder.chmod(0o711)  # the account of PostgreSQL passes through
    series = Series()
    with tracking_server() as server:
        os.environ["MLFLOW_TRACKING_URI"] = server
        for pruner in pruners:
            rng = random.Random(f"{seed}, sqlite, {pruner}")
            on_one_machine(folder, server, series, n_kills=n_kills, pruner=pruner, rng=rng)
        if has_postgres and not postgres.why_not():
            on_three_machines(folder, server, series, rng=random.Random(f"{seed}, postgres"))
    shutil.rmtree(folder)
    return series


if __name__ == "__main__":
    options = series_options("kills", n_default=3)
    options.add_argument("--pruners", nargs="*", default=["median", "hyperband"])
    options.add_argument("--without-postgres", action="store_true")
    given = options.parse_args()
    done = main(given.seed, given.kills, given.pruners, has_postgres=not given.without_postgres)
    section = done.report(given.seed)
    print(section)
    if given.report is not None:
        write_section(given.report, "trials", section)
    raise SystemExit(1 if done.n_wrong else 0)
