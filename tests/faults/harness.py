"""Kills a run at random points until its last process ends well, and compares it with one that nobody disturbed.

``python tests/faults/harness.py --seed 1 --kills 40 --report docs/reliability.md`` is what ``make faults`` does.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import pods  # noqa: E402
from pods import POINTS, Fault  # noqa: E402
from study import Outcome, outcome_of, run_ids, write_study  # noqa: E402

MOST_CALLS = {"step": 6, "checkpoint": 6, "validation": 3, "upload": 14, "drain": 4}
"""How often a pod comes to each point, at most, before its run is done."""


@dataclass
class Account:
    """What became of the runs that were disturbed."""

    n_faults: int = 0
    n_new_machines: int = 0
    n_runs: int = 0
    n_resumed: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    rows_different: int = 0
    artifacts_different: int = 0
    points: Counter[str] = field(default_factory=Counter)

    def judge(self, whole: Outcome, run: Outcome) -> None:
        """Compare a run with the undisturbed one."""
        self.rows_lost += sum(row not in run.rows for row in whole.rows)
        self.rows_doubled += sum(len(values) > 1 for values in run.rows.values())
        self.rows_doubled += sum(row not in whole.rows for row in run.rows)
        self.rows_different += sum(values != run.values.get(row) for row, values in whole.values.items())
        self.artifacts_different += sum(
            whole.artifacts.get(path) != run.artifacts.get(path) for path in whole.artifacts | run.artifacts
        )


def random_fault(rng: random.Random) -> Fault:
    """A kind of kill, a point and a moment."""
    point = rng.choice(list(POINTS))
    call = rng.randint(1, MOST_CALLS[point])
    return Fault(point, call, rng.choice([signal.SIGKILL, signal.SIGTERM]), is_after=rng.random() < 0.5)


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
    moves : whether the machine is lost with each kill, so that the next process has the server alone
    """
    account.n_runs += 1
    pod, known, run_id = folder / "pod-0", set(run_ids(study)), ""
    words: tuple[str, ...] = ("finetune", "--config", str(config))
    for number, (fault, is_lost) in enumerate(zip(faults, moves, strict=True), 1):
        code = pods.run(*words, folder=pod, server=server, fault=fault)
        new = [found for found in run_ids(study) if found not in known]
        assert len(new) <= 1, f"{len(new)} runs were made for one"
        run_id = new[0] if new else ""
        assert code in (0, -fault.number, 128 + fault.number), pods.log_of(pod)
        if code == 0:
            break
        account.n_faults += 1
        account.points[f"{fault.point} {signal.Signals(fault.number).name}"] += 1
        if is_lost or not run_id:
            account.n_new_machines += bool(run_id)
            pod = folder / f"pod-{number}"
        if run_id:
            words = ("resume", run_id, "--force")
    else:
        code = pods.run(*words, folder=pod, server=server)
        assert code == 0, pods.log_of(pod)
        (run_id,) = [found for found in run_ids(study) if found not in known]
    account.n_resumed += words[0] == "resume"
    return outcome_of(run_id)


def report(account: Account, seed: int) -> str:
    """The account as a page for people."""
    points = "".join(f"| {point} | {count} |\n" for point, count in sorted(account.points.items()))
    return f"""# Reliability

`make faults SEED={seed}` kills the processes of a small fine-tuning at random points, resumes the run after each kill,
and compares what is on the tracking server (over HTTP) in the end with a run that nobody disturbed. With some kills
the machine's folder is lost as well, and the run goes on from the server alone.

| | |
|---|---|
| seed | {seed} |
| faults tried | {account.n_faults} |
| of them with the machine lost | {account.n_new_machines} |
| runs | {account.n_runs} |
| runs resumed to their end | {account.n_resumed} |
| metric rows lost | {account.rows_lost} |
| metric rows doubled | {account.rows_doubled} |
| metric rows with another value | {account.rows_different} |
| artifacts with another hash | {account.artifacts_different} |

Metrics that measure the machine (seconds, tokens per second, memory) have other values in every run, and are compared
by name and step alone; artifacts that hold paths, versions or such times are not compared by hash.

| killed in | times |
|---|---|
{points}"""


@contextmanager
def _server() -> Iterator[str]:
    import pytest
    from conftest import mlflow_server

    class Folders:
        def mktemp(self, name: str) -> Path:
            return Path(tempfile.mkdtemp(prefix=name))

    factory: Any = Folders()
    make: Any = mlflow_server
    start = getattr(make, "__wrapped__", None) or make.__pytest_wrapped__.obj
    steps = start(factory)
    try:
        yield next(steps)
    except pytest.fail.Exception as failure:
        raise SystemExit(str(failure)) from failure
    finally:
        next(steps, None)


def main(seed: int, n_kills: int, page: Path | None) -> None:
    """Disturb runs, up to four kills each, until there were so many kills."""
    rng, account = random.Random(seed), Account()
    folder = Path(tempfile.mkdtemp(prefix="faults"))
    with _server() as server:
        os.environ["MLFLOW_TRACKING_URI"] = server
        config = write_study(folder, "faults")
        whole = undisturbed(folder, server, config, "faults")
        while account.n_faults < n_kills:
            n_faults = min(rng.randint(1, 4), n_kills - account.n_faults)
            faults = [random_fault(rng) for _ in range(n_faults)]
            moves = [rng.random() < 0.4 for _ in faults]
            work = folder / f"run-{account.n_runs}"
            account.judge(whole, disturb(work, server, config, "faults", faults, account, moves=moves))
            shutil.rmtree(work)
            print(f"{account.n_faults} kills, {account}", flush=True)
    shutil.rmtree(folder)
    text = report(account, seed)
    print(re.sub(r"^# .*\n", "", text))
    if page is not None:
        page.write_text(text)
    wrong = account.rows_lost + account.rows_doubled + account.rows_different + account.artifacts_different
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    main(given.seed, given.kills, given.report)
