"""A small sweep whose every value is known, to be disturbed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehrtrack.config import load_config
from ehrtrack.tracking.client.queries import RunRecord, download, metric_history, search_runs

N_TRIALS = 3
SETTINGS = (
    *("--search.n_trials", str(N_TRIALS), "--search.pruner", "none", "--search.n_startup_trials", "2"),
    *("--search.parameters", '{"train.lr" = {low = 1e-4, high = 3e-2, log = true}}', "--train.epochs", "1"),
    *("--search.refits", "1"),
)


SEARCH = f"""
[search]
n_trials = {N_TRIALS}
pruner = "none"
n_startup_trials = 2
refits = 1
[search.parameters]
"train.lr" = {{ low = 1e-4, high = 3e-2, log = true }}
"""
"""The same in a file, but for the epochs."""


@dataclass(frozen=True)
class Swept:
    """What sweeps left on the server."""

    parents: list[RunRecord]
    trials: list[RunRecord]
    fits: list[RunRecord]
    table: pl.DataFrame
    values: dict[int, float]
    best_rate: float
    best_value: float

    @property
    def best_fit(self) -> RunRecord:
        """The fit of what the search chose; the only one where that is what it began with."""
        return next((run for run in self.fits if run.name.startswith("best")), self.fits[0])

    @property
    def facts(self) -> dict[str, object]:
        """All that has to be the same however often the sweep was disturbed, by name."""
        done = self.table.filter(state="complete").sort("train.lr")
        table = {f"trial with {rate}": value for value, rate in done.select("c_index", "train.lr").rows()}
        values = {f"value {slot}": value for slot, value in self.values.items()}
        test = {key: value for key, value in self.best_fit.metrics.items() if key.startswith("test/")}
        return table | values | test | {"best": (self.best_rate, self.best_value)}

    @property
    def n_too_many(self) -> int:
        """Runs that should not be there: a second parent or fit, and trials that ended well beyond the budget."""
        finished = [run for run in self.trials if run.status == "FINISHED"]
        n_fits = len({run.name for run in self.fits})
        return len(self.parents) - 1 + len(self.fits) - n_fits + max(0, len(finished) - N_TRIALS)


def swept(study: str) -> Swept:
    runs = search_runs(study, status=None)
    parents = [run for run in runs if run.kind == "sweep"]
    (parent,) = [run for run in parents if run.status == "FINISHED"]
    with tempfile.TemporaryDirectory() as folder:
        table = pl.read_csv(download(parent.run_id, "trials.csv", Path(folder)))
        best = load_config(download(parent.run_id, "best.toml", Path(folder)))
    return Swept(
        parents,
        [run for run in runs if run.kind == "trial"],
        [run for run in runs if run.kind == "finetune"],
        table,
        metric_history(parent.run_id, "sweep/c_index"),
        best.train.lr,
        parent.metrics["kept/c_index"],
    )
