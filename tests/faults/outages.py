"""What an outage of the server costs a run: time of training, and rows on the server in the end.

``python tests/faults/outages.py --rounds 5 --report docs/reliability.md`` is a part of ``make faults``. In each round a
run is made under every kind of outage and twice under none, in an order of its own. With ``--account FILE`` and
``--minutes M`` it stops after a round, and goes on when it is started with the same words again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from multiprocessing.connection import Client, Listener
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tracking")]

import pods  # noqa: E402
from harness import Account, tracking_server  # noqa: E402
from reliability import code, command, machine, series_options, write_section  # noqa: E402
from study import Outcome, outcome_of, run_ids, write_study  # noqa: E402
from weather import proxy  # noqa: E402

CLOCKS = ("wall", "thread", "process", "tracking")
N_EPOCHS = 6
N_SUBJECTS = 1200

Place = str | int
OUTAGES: dict[str, dict[Place, str]] = {
    "none": {},
    "none, again": {},
    "stopped in the middle third": {3: "stopped", 5: "fair"},
    "stopped, its whole length": {"opening": "stopped"},
    "answers 503": {1: "503"},
    "answers 403": {1: "403"},
    "accepts and never answers": {1: "silent"},
    "black hole": {"opening": "black hole"},
}
"""What happens at the address from the opening of the run or the beginning of an epoch on."""


class Address:
    """The address that a pod knows, behind which the weather changes."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._port = 0
        self._now = ExitStack()
        self._is_proxy = False
        self.change("fair")

    @property
    def url(self) -> str:
        """For MLFLOW_TRACKING_URI."""
        return f"http://127.0.0.1:{self._port}"

    def change(self, weather: str) -> None:
        """Stop listening (stopped), leave all who call without any answer (black hole), or be a proxy's mode."""
        is_proxy = weather not in ("stopped", "black hole")
        if not (is_proxy and self._is_proxy):
            self._now.close()
            if is_proxy:
                self._proxy = self._now.enter_context(proxy(self._server, self._port))
                self._port = int(self._proxy.address.rsplit(":", 1)[1])
            elif weather == "black hole":
                self._now.enter_context(black_hole(self._port))
        self._is_proxy = is_proxy
        if is_proxy:
            self._proxy.mode = weather


@contextmanager
def black_hole(port: int) -> Iterator[None]:
    """A port whose queue of connections is full, so that the kernel drops what comes, as a firewall does."""
    with ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(4):
            caller = held.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(("127.0.0.1", port))
        yield


@dataclass(frozen=True)
class Clocks:
    """Seconds that passed, that the training thread computed, that the process computed, and in calls of tracking."""

    wall: float
    thread: float
    process: float
    tracking: float

    @classmethod
    def now(cls) -> Clocks:
        """As they are in the training thread."""
        return cls(time.perf_counter(), time.thread_time(), time.process_time(), _in_tracking)

    def __sub__(self, other: Clocks) -> Clocks:
        return Clocks(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


_in_tracking = 0.0  # seconds on the wall that this process's training thread has spent in tracking calls


@dataclass(frozen=True)
class Stopwatch:
    """Has a pod tell when it opens its run, begins an epoch and has trained, and waits each time for an answer."""

    address: str

    def plant(self) -> None:
        """Have this process tell; what passes while it waits is not counted."""
        from ehrtrack.tracking.logger import TrackedRun
        from ehrtrack.training.loop import Training

        last = Clocks.now()

        def telling(kind: Any, name: str, place: str) -> None:
            method = getattr(kind, name)

            def told(*words: Any, **more: Any) -> Any:
                nonlocal last
                passed = Clocks.now() - last
                with Client(self.address) as line:
                    line.send((place, passed))
                    line.recv()
                last = Clocks.now()
                return method(*words, **more)

            setattr(kind, name, told)

        log_metrics = TrackedRun.log_metrics

        def timed(*words: Any, **more: Any) -> None:
            global _in_tracking
            started = time.perf_counter()
            log_metrics(*words, **more)
            _in_tracking += time.perf_counter() - started

        TrackedRun.log_metrics = timed  # type: ignore[method-assign]
        telling(TrackedRun, "__init__", "opening")
        telling(Training, "train_epoch", "epoch")
        telling(Training, "restore_kept", "trained")


def timed_epochs(listener: Listener, address: Address, outage: dict[Place, str]) -> list[Clocks]:
    """Change the weather where the outage says so, and note what each epoch takes, until a pod has trained."""
    epochs: list[Clocks] = []
    n_begun = 0
    while True:
        with listener.accept() as line:
            place, passed = line.recv()
            if place == "epoch" or place == "trained":
                epochs += [passed] if n_begun else []
                n_begun += 1
            here: Place = n_begun if place == "epoch" else place
            if here in outage:
                address.change(outage[here])
            line.send("go on")
            if place == "trained":
                return epochs


def run_in(folder: Path, server: str, config: Path, outage: dict[Place, str]) -> tuple[Outcome, list[Clocks], int]:
    """A run under an outage, sent in the end; what is on the server, its epochs, and records that sync had to send."""
    from ehrtrack.tracking.outbox.sync import sync

    known, address = set(run_ids("outages")), Address(server)
    with Listener(str(folder / "line")) as listener:
        epochs: list[Clocks] = []
        thread = threading.Thread(target=lambda: epochs.extend(timed_epochs(listener, address, outage)), daemon=True)
        thread.start()
        words = ("pretrain", "--config", str(config))
        watch, seconds = Stopwatch(str(folder / "line")), "60" if address_recovers(outage) else "0"
        exit_code = pods.run(
            *words, folder=folder / "pod", server=address.url, fault=watch, EHRTRACK_DRAIN_SECONDS=seconds
        )
        assert exit_code == 0, pods.log_of(folder / "pod")
        thread.join()
    address.change("fair")
    os.environ["MLFLOW_TRACKING_URI"] = address.url
    n_sent = 0
    for _ in range(3):  # any number of times
        runs = sync(folder / "pod" / ".ehrtrack")
        assert not [run.problem for run in runs if run.problem], runs
        n_sent += sum(run.account.sent for run in runs)
    address.change("stopped")
    os.environ["MLFLOW_TRACKING_URI"] = server
    (run_id,) = [found for found in run_ids("outages") if found not in known]
    return outcome_of(run_id), epochs, n_sent


def address_recovers(outage: dict[Place, str]) -> bool:
    """Whether the server is there when the run ends."""
    return not outage or list(outage.values())[-1] == "fair"


Round = dict[str, list[float]]
"""By outage: seconds of all epochs (wall, thread, process, in tracking calls), and the records that sync sent."""


def one_round(folder: Path, server: str, config: Path, *, order: Sequence[str], whole: Outcome) -> tuple[Round, int]:
    """A run under every outage; their times, and the number of things that are not as in an undisturbed run."""
    times: Round = {}
    account = Account()
    for name in order:
        work = folder / f"run-{time.monotonic_ns()}"
        work.mkdir()
        outcome, epochs, n_sent = run_in(work, server, config, OUTAGES[name])
        assert len(epochs) == N_EPOCHS
        account.n_runs += 1
        account.judge(whole, outcome)
        times[name] = [sum(getattr(epoch, clock) for epoch in epochs) for clock in CLOCKS]
        times[name].append(n_sent)
        print(name, [round(value, 3) for value in times[name]], f"{account.n_wrong} wrong", flush=True)
        shutil.rmtree(work)
    return times, account.n_wrong


def report(series: dict[str, Any], seed: int) -> str:
    """The rounds as a section for people."""
    rounds: list[Round] = series["rounds"]

    def change(name: str, clock: int, base: str | None = None) -> list[float]:
        plain = ("none", "none, again") if base is None else (base,)
        return [100 * (r[name][clock] / (sum(r[b][clock] for b in plain) / len(plain)) - 1) for r in rounds]

    def shown(values: list[float]) -> str:
        return f"{median(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})"

    lines = "".join(
        f"| {name} | {median(r[name][1] / N_EPOCHS for r in rounds):.3f} | {shown(change(name, 1))} | "
        f"{shown(change(name, 2))} | {shown(change(name, 0))} | "
        f"{1000 * median(r[name][3] / N_EPOCHS for r in rounds):.1f} | {median(r[name][4] for r in rounds):.0f} |\n"
        for name in OUTAGES
    )
    noise = [shown(change("none, again", clock, "none")) for clock in (1, 2, 0)]
    return f"""## Outages

The server of a small pretraining ({N_EPOCHS} epochs) goes away while it runs, in {len(rounds)} rounds of one run under
each outage and two under none, each round in an order of its own. The time is that of all epochs, with validation,
logging and snapshots, as the training thread computed it, as the whole process computed it (with the threads that
send), and by the clock on the wall; it is compared with the mean of the round's two undisturbed runs: median, and
least to most. All of it shares one core, also the server and the proxy before it: what they have to do in an
undisturbed run, and not in an outage, is in the time on the wall. "Tracking" is what the training thread waits in the
calls that log an epoch: the journal's sync to the disk. A run of which something is left at its end is sent
by `ehrtrack sync`, three times.

| outage | thread, s an epoch | change, % | process, change, % | wall, change, % | tracking, ms | sent by sync |
|---|---|---|---|---|---|---|
{lines}
Between the two undisturbed runs of a round: training thread {noise[0]} %, process {noise[1]} %, wall {noise[2]} %.

| | |
|---|---|
| runs | {len(rounds) * len(OUTAGES)} |
| metric rows of a run, compared with a run before the series | {series["n_rows"]} |
| rows lost or doubled, values, params or artifacts that differ, runs that are not FINISHED | {series["n_wrong"]} |

- machine: {machine()}
- code: commit {"; then ".join(series["codes"])}
- command: `{command()}`
"""


def main(seed: int, n_rounds: int, *, file: Path | None, minutes: float) -> dict[str, Any]:
    """Make rounds until there are so many, or the time is over."""
    series: dict[str, Any] = {"rounds": [], "n_wrong": 0, "n_rows": 0, "codes": []}
    if file is not None and file.exists():
        series = json.loads(file.read_text())
    if len(series["rounds"]) >= n_rounds:
        return series
    if code() not in series["codes"]:
        series["codes"].append(code())
    deadline = time.monotonic() + 60 * minutes
    folder = Path(tempfile.mkdtemp(prefix="outages"))
    with tracking_server() as server:
        os.environ["MLFLOW_TRACKING_URI"] = server
        config = write_study(folder, "outages", epochs=N_EPOCHS, n_subjects=N_SUBJECTS, snapshot_minutes=10)
        (folder / "first").mkdir()
        whole, _, _ = run_in(folder / "first", server, config, {})
        series["n_rows"] = len(whole.rows)
        while len(series["rounds"]) < n_rounds and time.monotonic() < deadline:
            order = list(OUTAGES)
            random.Random(f"{seed}, round {len(series['rounds'])}").shuffle(order)
            times, n_wrong = one_round(folder, server, config, order=order, whole=whole)
            series["rounds"].append(times)
            series["n_wrong"] += n_wrong
            if file is not None:
                file.write_text(json.dumps(series))
    shutil.rmtree(folder)
    return series


if __name__ == "__main__":
    given = series_options("rounds", n_default=5).parse_args()
    done = main(given.seed, given.rounds, file=given.account, minutes=given.minutes)
    if done["rounds"]:
        section = report(done, given.seed)
        print(section)
        if given.report is not None and len(done["rounds"]) >= given.rounds:
            write_section(given.report, "outages", section)
    raise SystemExit(1 if done["n_wrong"] else 0)
