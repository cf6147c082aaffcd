"""A study on simulated subjects: its configurations, its tracking store, and its commands in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest

from ehrtrack.cli import main
from ehrtrack.tracking.client.queries import RunRecord, search_runs

PRETRAIN = """
study = "simulated"
data = {{ path = "{data}", max_tokens = 64, vocabulary = {{ min_subjects = 2 }} }}
model = {{ size = "tiny" }}
objective = {{ name = "mlm" }}
train = {{ epochs = 3, batch_tokens = 256, lr = 5e-3 }}
runtime = {{ device = "cpu", cache = "{cache}" }}
"""
FINETUNE = """
extends = "pretrain.toml"
objective = { name = "survival" }
strategy = { name = "lora", rank = 4 }
init = { run = "latest" }

[cohort]
horizon_days = 365
index = { rule = "first_code", codes = ["INDEX$"] }
outcome = { codes = ["OUTCOME$"] }
"""
SWEEP = """
extends = "finetune.toml"
train = { epochs = 2 }

[search]
n_trials = 3
n_startup_trials = 2
refits = 2

[search.parameters]
"strategy.rank" = { choices = [2, 4] }
"strategy.dropout" = { low = 0.0, high = 0.3 }
"objective.lambda_rank" = { low = 0.01, high = 1.0, log = true }
"""


@dataclass(frozen=True)
class Study:
    """A working folder with configurations, and the tracking store its runs go to."""

    folder: Path
    data: Path
    store: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, the study's folder is the working folder and its store the tracking store."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.store)
            patch.delenv("MLFLOW_RUN_ID", raising=False)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            yield

    def run(self, *words: str) -> int:
        """The exit code of a command."""
        with self.at_work(), pytest.raises(SystemExit) as end:
            main(words)
        return int(end.value.code or 0)

    def runs(self, kinds: Sequence[str] = (), status: str | None = "FINISHED") -> list[RunRecord]:
        """Runs of the study, oldest first."""
        with self.at_work():
            return search_runs("simulated", kinds=kinds, status=status)


def make_study(folder: Path, data: Path, store: str, environment: Mapping[str, str] = MappingProxyType({})) -> Study:
    (folder / "pretrain.toml").write_text(PRETRAIN.format(data=data, cache=folder / "cache"))
    (folder / "finetune.toml").write_text(FINETUNE)
    (folder / "sweep.toml").write_text(SWEEP)
    return Study(folder, data, store, environment)


def run_all(study: Study) -> Study:
    assert study.run("pretrain", "--config", "pretrain.toml") == 0
    assert study.run("finetune", "--config", "finetune.toml") == 0
    assert study.run("baseline", "--config", "finetune.toml") == 0
    assert study.run("compare", "--config", "finetune.toml") == 0
    return study
