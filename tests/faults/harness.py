"""Kills a run at random points until its last process ends well, and compares it with one that nobody disturbed.

``python tests/faults/harness.py --seed 1 --kills 60 --report docs/reliability.md`` is what ``make faults`` does. With
``--account FILE`` and ``--minutes M`` it stops after a run, and goes on when it is started with the same words again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import pods  # noqa: E402
from pods import AFTERWARDS, POINTS, Fault  # noqa: E402
from reliability import code, command, machine, series_options, write_section  # noqa: E402
from study import Outcome, can_go_on_elsewhere, is_finished, outcome_of, run_ids, write_study  # noqa: E402
from sweeps import SETTINGS, Swept, swept  # noqa: E402

MOST_CALLS = {"step": 6, "checkpoint": 8, "validation": 3, "upload": 16, "drain": 5, "end": 1}
"""How often a pod comes to each point, at most, before its run is done."""

CLOCKS_MINUTES = (0.0, 0.0, -20.0, 20.0)
"""By how much the clock of a pod is wrong: every second one has the right time."""

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
"""As a machine that is lost, one that is told so before, and Ctrl-C."""

EVERY_SWEEP = 4
"""Of so many runs of a series one is a sweep."""

MOMENTS_MS = (0.5, 30.0)
"""From when to when a call under way is cut off; most calls last longer."""


@dataclass
class Account:
    """What became of the runs that were disturbed."""

    n_faults: int = 0
    n_new_machines: int = 0
    n_wrong_clocks: int = 0
    n_runs: int = 0
    n_sweeps: int = 0
    n_finished: int = 0
    n_resumed: int = 0
    n_resumptions: int = 0
    rows_compared: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    rows_different: int = 0
    params_different: int = 0
    artifacts_compared: int = 0
    artifacts_different: int = 0
    points: Counter[str] = field(default_factory=Counter)
    codes: list[str] = field(default_factory=list)

    def judge(self, whole: Outcome, run: Outcome) -> None:
        """Compare a run with the undisturbed one."""
        self.n_finished += run.status == "FINISHED"
        self.rows_compared += len(whole.rows)
        self.rows_lost += sum(row not in run.rows for row in whole.rows)
        self.rows_doubled += sum(len(values) > 1 for values in run.rows.values())
        self.rows_doubled += sum(row not in whole.rows for row in run.rows)
        self.rows_different += sum(values != run.values.get(row) for row, values in whole.values.items())
        self.params_different += len(set(whole.params.items()) ^ set(run.params.items()))
        self.artifacts_compared += len(whole.artifacts)
        self.artifacts_different += sum(
            whole.artifacts.get(path) != run.artifacts.get(path) for path in whole.artifacts | run.artifacts
        )

    def judge_sweep(self, whole: Swept, sweep: Swept) -> None:
        """Compare a sweep with the undisturbed one: its trials, its best, and how that does on the test subjects."""
        self.n_finished += 1
        self.rows_compared += len(whole.facts)
        self.rows_lost += sum(name not in sweep.facts for name in whole.facts)
        self.rows_doubled += sum(name not in whole.facts for name in sweep.facts) + sweep.n_too_many
        self.rows_different += sum(value != sweep.facts.get(name, value) for name, value in whole.facts.items())

    def note(self, code: str) -> None:
        """Note the code that the runs from here on are made with."""
        self.codes += [] if code in self.codes else [code]

    @property
    def n_wrong(self) -> int:
        """All that is not as it should be."""
        rows = self.rows_lost + self.rows_doubled + self.rows_different
        return rows + self.params_different + self.artifacts_different + self.n_runs - self.n_finished

    @classmethod
    def read(cls, file: Path | None) -> Account:
        """What was written so far, if anything."""
        if file is None or not file.exists():
            return cls()
        values = json.loads(file.read_text())
        return cls(**(values | {"points": Counter(values["points"])}))


def random_fault(rng: random.Random) -> Fault:
    """A kind of kill, a point and a moment."""
    point = rng.choice(list(POINTS))
    call = rng.randint(1, MOST_CALLS[point])
    seconds = rng.choice([0.0, rng.uniform(*MOMENTS_MS) / 1000, AFTERWARDS])
    return Fault(point, call, rng.choice(SIGNALS), seconds, rng.choice(CLOCKS_MINUTES))


def undisturbed(folder: Path, server: str, config: Path, study: str) -> Outcome:
    """The run as it is when nothing happens."""
    assert pods.run("finetune", "--config", str(config), folder=folder / "whole", server=server) == 0
    (run_id,) = run_ids(study)
    return outcome_of(run_id)


def disturb(
    folder: Path, server: str, config: Path, study: str, faults: list[Fault], account: Account, *, moves: list[bool]
) -> Outcome:
    """Start a run, kill its processes one after the other by `faults`, and resume it each time until it ends.

    Parameters
    ----------
    moves : whether the machine is lost with each kill, so that the next process has the server alone; it is kept if
        the server does not even have the configuration yet
    """
    account.n_runs += 1
    pod, known, run_id = folder / "pod-0", set(run_ids(study)), ""
    words: tuple[str, ...] = ("finetune", "--config", str(config))
    for number, (fault, is_lost) in enumerate(zip(faults, moves, strict=True), 1):
        account.n_resumptions += words[0] == "resume"
        code = pods.run(*words, folder=pod, server=server, fault=fault)
        new = [found for found in run_ids(study) if found not in known]
        assert len(new) <= 1, f"{len(new)} runs were made for one"
        run_id = new[0] if new else ""
        assert code in (0, -fault.number, 128 + fault.number), pods.log_of(pod)
        if code == 0:
            break
        account.n_faults += 1
        account.n_wrong_clocks += fault.clock_minutes != 0
        account.points[f"{fault.point} {signal.Signals(fault.number).name}"] += 1
        if run_id and is_finished(run_id):  # it was killed after its last word had arrived
            break
        if not run_id:
            pod = folder / f"pod-{number}"
        elif is_lost and can_go_on_elsewhere(run_id):
            account.n_new_machines += 1
            pod = folder / f"pod-{number}"
        if run_id:
            words = ("resume", run_id, "--force")
    else:
        account.n_resumptions += words[0] == "resume"
        code = pods.run(*words, folder=pod, server=server)
        assert code == 0, pods.log_of(pod)
        (run_id,) = [found for found in run_ids(study) if found not in known]
    account.n_resumed += words[0] == "resume"
    return outcome_of(run_id)


def disturb_sweep(folder: Path, server: str, config: Path, study: str, faults: list[Fault], account: Account) -> Swept:
    """Start a sweep, kill its processes one after the other, and start it again each time until it ends."""
    account.n_runs += 1
    account.n_sweeps += 1
    words = ("sweep", "--config", str(config), *SETTINGS, "--study", study)
    for fault in faults:
        code = pods.run(*words, folder=folder, server=server, fault=fault)
        assert code in (0, -fault.number, 128 + fault.number), pods.log_of(folder)
        if code == 0:
            return swept(study)
        account.n_faults += 1
        account.n_wrong_clocks += fault.clock_minutes != 0
        account.points[f"{fault.point} {signal.Signals(fault.number).name}"] += 1
    code = pods.run(*words, folder=folder, server=server)
    assert code == 0, pods.log_of(folder)
    return swept(study)


def report(account: Account, seed: int, n_kills: int) -> str:
    """The account as a section for people."""
    names = [number.name for number in SIGNALS]
    counts = {point: [account.points[f"{point} {name}"] for name in names] for point in POINTS}
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    points = "".join(f"| {point} | {' | '.join(map(str, row))} |\n" for point, row in counts.items())
    return f"""## Kills

The processes of a small fine-tuning are killed, each at a point, a call and a moment (before it, within its first
{MOMENTS_MS[1]:.0f} ms, after it) that the seed chooses; after each kill the run is resumed. With some kills the
machine's folder is lost as well, and the run goes on from the server alone. Every second process has a clock that
is {max(CLOCKS_MINUTES):.0f} minutes ahead or behind. Every fourth run is a sweep, which is started again instead: its
trials, its best and the test metrics of that are compared, and runs beyond its budget count as doubled.

| | |
|---|---|
| seed | {seed} |
| faults tried, of how many the series is to have | {account.n_faults} of {n_kills} |
| of them with the machine lost | {account.n_new_machines} |
| of them in a process whose clock was wrong | {account.n_wrong_clocks} |
| runs disturbed, of them sweeps | {account.n_runs}, {account.n_sweeps} |
| of them resumed, some several times | {account.n_resumed} ({account.n_resumptions} times) |
| runs that ended as FINISHED | {account.n_finished} |
| metric rows compared | {account.rows_compared:,} |
| metric rows lost | {account.rows_lost} |
| metric rows doubled | {account.rows_doubled} |
| metric rows with another value | {account.rows_different} |
| params that differ | {account.params_different} |
| artifacts compared, by SHA-256 of what the server gives | {account.artifacts_compared:,} |
| artifacts that differ | {account.artifacts_different} |

| killed in | {" | ".join(names)} |
|---|---|---|---|
{points}
Metrics that measure the machine (seconds, tokens per second, memory) have other values in every run, and are compared
by name, step and number alone; `environment.json` and the list of checksums itself, which hold times, are not compared.

- machine: {machine()}
- code: commit {"; then ".join(account.codes)}
- command: `{command()}`
"""


@contextmanager
def tracking_server() -> Iterator[str]:
    """The address of a real server, until the block ends."""
    import pytest
    from conftest import running_server

    with tempfile.TemporaryDirectory(prefix="server") as folder:
        try:
            with running_server(Path(folder)) as address:
                yield address
        except pytest.fail.Exception as failure:
            raise SystemExit(str(failure)) from failure


def disturb_one(
    folder: Path, server: str, config: Path, whole: Outcome, whole_sweep: Swept, account: Account, *, seed: int
) -> None:
    """Disturb the next run of a series by three to six kills, and judge it."""
    rng = random.Random(f"{seed}, run {account.n_runs}")
    faults = [random_fault(rng) for _ in range(rng.randint(3, 6))]
    moves = [rng.random() < 0.4 for _ in faults]
    work = folder / f"run-{account.n_runs}"
    if account.n_runs % EVERY_SWEEP == EVERY_SWEEP - 1:
        study = f"faults-sweep-{account.n_runs}"
        account.judge_sweep(whole_sweep, disturb_sweep(work, server, config, study, faults, account))
    else:
        account.judge(whole, disturb(work, server, config, "faults", faults, account, moves=moves))
    shutil.rmtree(work)
    print(f"{account.n_faults} kills, {account.n_wrong} wrong; last: {faults}", flush=True)


def main(seed: int, n_kills: int, *, file: Path | None, minutes: float) -> Account:
    """Disturb runs until there were so many kills, or the time is over."""
    account, deadline = Account.read(file), time.monotonic() + 60 * minutes
    if account.n_faults >= n_kills:
        return account
    account.note(code())
    folder = Path(tempfile.mkdtemp(prefix="faults"))
    with tracking_server() as server:
        os.environ["MLFLOW_TRACKING_URI"] = server
        config = write_study(folder, "faults")
        whole = undisturbed(folder, server, config, "faults")
        whole_sweep = disturb_sweep(folder / "whole-sweep", server, config, "faults-sweep", [], Account())
        while account.n_faults < n_kills and time.monotonic() < deadline:
            disturb_one(folder, server, config, whole, whole_sweep, account, seed=seed)
            if file is not None:
                file.write_text(json.dumps(vars(account)))
    shutil.rmtree(folder)
    return account


if __name__ == "__main__":
    given = series_options("kills", n_default=60).parse_args()
    done = main(given.seed, given.kills, file=given.account, minutes=given.minutes)
    section = report(done, given.seed, given.kills)
    print(section)
    if given.report is not None:
        write_section(given.report, "kills", section)
    raise SystemExit(1 if done.n_wrong else 0)
