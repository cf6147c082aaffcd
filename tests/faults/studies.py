"""Disturbs studies of thirty cells, and compares them with one that nobody disturbed.

``python tests/faults/studies.py --seed 1 --kills 5 --report docs/reliability.md`` runs one study undisturbed; one of
two workers on one machine with sqlite, which are killed by SIGKILL at random moments and started again; and one of
three workers on three machines with PostgreSQL, of which one is lost in the middle of a cell and never comes back.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import pods  # noqa: E402
from harness import tracking_server  # noqa: E402
from reliability import code, command, machine, series_options, write_section  # noqa: E402
from studied import LARGE, TOLERANCE, Studied, Workers, studied, write  # noqa: E402

from ehrtrack.server import postgres  # noqa: E402
from ehrtrack.tracking.client.queries import search_runs  # noqa: E402
from ehrtrack.tracking.names import CELL  # noqa: E402

N_CELLS = 30
PAUSE_SECONDS = (0.5, 10.0)
"""From when to when a kill comes after a cell has begun, or goes on, since the kill before."""


@dataclass
class Series:
    """What became of the studies that were disturbed, by what was done to them."""

    whole: Studied
    rows: list[str] = field(default_factory=list)
    n_wrong: int = 0

    def judge(self, what: str, found: Studied, *, n_killed: int, seconds: float) -> None:
        """Compare a study with the undisturbed one."""
        lost = N_CELLS - len(found.finished) + found.n_twice
        different = len(found.differing(self.whole))
        resumed = sum(run.attempt > 0 for run in found.finished)
        self.n_wrong += lost + found.n_twice + found.n_open + different
        row = [what, n_killed, len(found.finished), lost, found.n_twice, found.n_open, resumed, len(self.whole.facts)]
        row += [different]
        self.rows.append(f"| {' | '.join(map(str, row))} | {seconds:.0f} |")
        print(self.rows[-1], flush=True)

    def report(self, seed: int) -> str:
        """The series as a section for people."""
        rows = "\n".join(self.rows)
        return f"""## Studies

A study of {N_CELLS} cells (a pretraining and three strategies for each of six repeats, two baselines for each of three
splits) is run by workers (`ehrtrack work`) that are killed by SIGKILL at random moments. On sqlite they are of one
machine, and started again at once. On PostgreSQL each is a machine of its own, and one is lost in the middle of a cell:
neither its processes nor its disk come back, and another worker resumes its cell from the server alone once its
claim has lapsed. Compared are the table of configurations and every metric of every cell that does not measure the
machine, to a relative {TOLERANCE:g}, with a study that two workers made undisturbed.

| | kills | cells done | lost | twice | runs left open | cells resumed | values compared | different | seconds |
|---|---|---|---|---|---|---|---|---|---|
{rows}

- seed of the moments: {seed}
- machine: {machine()}
- code: commit {code()}
- command: `{command()}`
"""


def on_one_machine(folder: Path, server: str, series: Series, *, n_kills: int, rng: random.Random) -> None:
    """Two workers on sqlite, killed so often."""
    name, started = "studies-sqlite", time.monotonic()
    workers = Workers(write(folder / name, name, LARGE), server, [folder / name / "machine"] * 2)
    workers.start_all([None, None])
    n_begun = 0
    for _ in range(n_kills):
        n_begun = _until_begun(name, workers, n_begun)
        time.sleep(rng.uniform(*PAUSE_SECONDS))
        at_it = [number for number in range(2) if workers.look(number)]
        if not at_it:
            break
        workers.kill(rng.choice(at_it))
        [workers.look(number) for number in range(2)]
    workers.join()
    series.judge("two workers, sqlite", studied(name), n_killed=workers.n_killed, seconds=time.monotonic() - started)


def on_three_machines(folder: Path, server: str, series: Series, *, rng: random.Random) -> None:
    """Three workers on PostgreSQL, of which one is lost."""
    name, started = "studies-postgres", time.monotonic()
    cluster = postgres.PostgresCluster(folder / "postgres", "a-password", "another")
    cluster.start()
    try:
        folders = [folder / name / machine for machine in "abc"]
        environment = {"EHRTRACK_STORAGE": cluster.studies_uri}
        workers = Workers(write(folder / name, name, LARGE), server, folders, environment)
        workers.start_all([None] * 3)
        _until_begun(name, workers, 2)
        time.sleep(rng.uniform(*PAUSE_SECONDS))
        lost = rng.randrange(3)
        workers.kill(lost)
        shutil.rmtree(folders[lost])
        del workers.processes[lost], workers.folders[lost]
        workers.join()
    finally:
        cluster.stop()
    what = "three workers, PostgreSQL, one machine lost"
    series.judge(what, studied(name), n_killed=1, seconds=time.monotonic() - started)


def _until_begun(study: str, workers: Workers, n_before: int) -> int:
    """Until more cells have begun, or been resumed, than before: else there is nothing new to disturb."""

    def n_begun() -> int:
        return sum(1 + run.attempt for run in search_runs(study, status=None) if CELL in run.tags)

    def is_time() -> bool:
        return n_begun() > n_before or not any(process.is_alive() for process in workers.processes)

    pods.wait_until(is_time, folder=workers.folders[0])
    return n_begun()


def main(seed: int, n_kills: int) -> Series:
    """Run the three studies."""
    folder = Path(tempfile.mkdtemp(prefix="studies"))
    folder.chmod(0o711)  # the account of PostgreSQL passes through
    with tracking_server() as server:
        os.environ["MLFLOW_TRACKING_URI"] = server
        started = time.monotonic()
        workers = Workers(write(folder / "whole", "studies-whole", LARGE), server, [folder / "whole" / "machine"] * 2)
        workers.start_all([None, None])
        workers.join()
        whole = studied("studies-whole")
        series = Series(whole)
        series.judge("two workers, undisturbed", whole, n_killed=0, seconds=time.monotonic() - started)
        on_one_machine(folder, server, series, n_kills=n_kills, rng=random.Random(f"{seed}, sqlite"))
        if not postgres.why_not():
            on_three_machines(folder, server, series, rng=random.Random(f"{seed}, postgres"))
    shutil.rmtree(folder)
    return series


if __name__ == "__main__":
    given = series_options("kills", n_default=5).parse_args()
    done = main(given.seed, given.kills)
    section = done.report(given.seed)
    print(section)
    if given.report is not None:
        write_section(given.report, "studies", section)
    raise SystemExit(1 if done.n_wrong else 0)
