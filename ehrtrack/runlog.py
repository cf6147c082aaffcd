"""What training tells about itself, and to whom. The loop sees this protocol and never learns who listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

TRAINING, VALIDATION, KEPT, TEST = "train", "val", "kept", "test"
"""The first part of a metric's name, which says of what it is: of the training subjects and of the validation subjects
after each epoch; of the validation subjects by the weights that were kept, by which runs are compared; of the test
subjects."""
VALIDATION_LOSS = f"{VALIDATION}/loss"
PROBE = "probe"
"""The first part of the names of what a probe of a pretraining found (`training.probe`)."""

Task = Literal["survival", "classification", "classes", "pretraining"]
"""What a model is trained and judged for: when the outcome comes (survival), whether it does by a horizon
(classification, of subjects some of whom are censored), or of which class a label is (classes, of labels without a
time)."""


def named(split: str, values: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the names by which runs log them.

    >>> named(KEPT, {"c_index": 0.7})
    {'kept/c_index': 0.7}
    """
    return {f"{split}/{name}": value for name, value in values.items()}


class RunLogger(Protocol):
    """A run that is being written. `name` is always the artifact's path inside the run, with its suffix."""

    def check_is_ours(self) -> None:
        """Raise an EhrtrackError if the run is no longer this process's to write to; asked before each step."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Record all metrics of one step (an epoch) in one call."""

    def log_params(self, params: Mapping[str, str | int | float | bool]) -> None:
        """Record values that are fixed for the whole run."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set searchable text on the run."""

    def set_description(self, markdown: str) -> None:
        """Set the run's readable summary."""

    def log_text(self, text: str, name: str) -> None:
        """Store a text artifact, such as ``"summary.md"``."""

    def log_json(self, value: Any, name: str) -> None:
        """Store a JSON artifact, such as ``"run_config.json"``."""

    def log_table(self, frame: pl.DataFrame, name: str) -> None:
        """Store a table as ``.parquet`` or ``.csv``, by the suffix of `name`."""

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a figure as ``.png`` and close it."""

    def log_folder(self, folder: Path, name: str) -> None:
        """Store all files of a folder under the artifact path `name`."""


@dataclass
class MemoryRunLogger:
    """A run kept in memory, for tests and for work without a tracking server."""

    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    params: dict[str, str | int | float | bool] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""
    artifacts: dict[str, Any] = field(default_factory=dict)

    def check_is_ours(self) -> None:
        """Nobody else writes to it."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        for key, value in metrics.items():
            self.metrics.setdefault(key, {})[step] = value

    def log_params(self, params: Mapping[str, str | int | float | bool]) -> None:
        self.params.update(params)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags.update(tags)

    def set_description(self, markdown: str) -> None:
        self.description = markdown

    def log_text(self, text: str, name: str) -> None:
        self.artifacts[name] = text

    def log_json(self, value: Any, name: str) -> None:
        self.artifacts[name] = value

    def log_table(self, frame: pl.DataFrame, name: str) -> None:
        self.artifacts[name] = frame

    def log_figure(self, figure: Figure, name: str) -> None:
        self.artifacts[name] = figure

    def log_folder(self, folder: Path, name: str) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.artifacts[f"{name}/{file.relative_to(folder)}"] = file.read_bytes()
