"""How long the command line takes to answer when there is nothing to compute."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks._process import python
from benchmarks._row import Measured, Row
from benchmarks._timing import Budget, rounds

ORDER = 12
STUDY = Path(__file__).parents[2] / "projects" / "gi_bleed" / "finetune.toml"
COMMANDS = {
    "start-help": (("--help",), 0),
    "start-missing-config": (("finetune", "--config", "there-is-no-such-file.toml"), 2),
    "start-misspelt-option": (("finetune", "--confg", "there-is-no-such-file.toml"), 2),
    "start-misspelt-setting": (("finetune", "--config", str(STUDY), "--train.lrr", "1"), 2),
    "start-bad-value": (("finetune", "--config", str(STUDY), "--train.lr", "fast"), 2),
}


def _told(words: tuple[str, ...]) -> str:
    return " ".join(words).replace(str(STUDY), STUDY.name)


ROWS = tuple(
    Row(name, f"wall time of `ehrtrack {_told(words)}`", "s", 0.5, 0.5, is_lower_better=True)
    for name, (words, _) in COMMANDS.items()
)


def measure(name: str, budget: Budget) -> Measured:
    words, expected = COMMANDS[name]
    found = []
    python(["-m", "ehrtrack", *words], n_threads=1)  # byte code is compiled, files are in the page cache
    for _ in rounds(budget):
        done = python(["-m", "ehrtrack", *words], n_threads=1)
        if done.exit_code != expected:
            raise RuntimeError(f"ehrtrack {' '.join(words)} ended with {done.exit_code}, not {expected}: {done.errors}")
        found.append(done.wall_seconds)
    return Measured(statistics.median(found), {"highest_seconds": max(found), "rounds": float(len(found))})
