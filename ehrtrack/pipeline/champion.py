"""Choose the champion: the cohort, the run, and whether the alias may be moved to it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ehrtrack.config import RunConfig
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.split_settings import Split
from ehrtrack.errors import DataError
from ehrtrack.evaluation.benchmark import RunRow, best_by_validation, metric_of_choice
from ehrtrack.evaluation.metric_table import Metric
from ehrtrack.pipeline.run import MODEL_FOLDER, RUN_CONFIG
from ehrtrack.runlog import KEPT, TEST
from ehrtrack.tracking.client.queries import MissingArtifact, download
from ehrtrack.tracking.client.registry import (
    ModelVersion,
    cohort_of,
    log_and_register_model,
    move_champion,
    present_champion,
    why_champion_stays,
)
from ehrtrack.tracking.names import COHORT, HORIZON


@dataclass(frozen=True)
class Decision:
    """The champion before and after a comparison, and the version that it proposed.

    Attributes
    ----------
    before : the champion that it found
    proposed : the version that is best by validation, or None where no run can be proposed
    champion : the champion that it left
    text : the same in words, with the reason
    """

    before: ModelVersion | None
    proposed: ModelVersion | None
    champion: ModelVersion | None
    text: str

    def to_tags(self) -> dict[str, str]:
        """The tags of the comparison's run."""
        versions = {"champion_before": self.before, "proposed": self.proposed, "champion": self.champion}
        return {f"ehrtrack.{name}": version.uri for name, version in versions.items() if version is not None}


def own_cohort(config: RunConfig, latest: Mapping[str, str]) -> str | None:
    """The fingerprint of the cohort that a configuration describes, found by the settings of runs; no data are read.

    If there are several such cohorts, as after another import of the data, it is that of the latest run. A
    configuration without a [cohort] describes the cohort of the latest run.

    Parameters
    ----------
    latest : fingerprint -> the id of the latest run, latest first
    """
    if config.cohort is None:
        return next(iter(latest))
    for cohort, run_id in latest.items():
        if _was_told(config, run_id):
            return cohort
    return None


def propose(
    name: str, rows: Sequence[RunRow], choose: Callable[[Sequence[RunRow]], RunRow] = best_by_validation
) -> Decision:
    """Register the best row by validation as a version of model `name`, and make it the champion if the rules allow it.

    Parameters
    ----------
    rows : runs of the cohort that the configuration describes; empty where none is of it
    choose : which of some runs is proposed; raises DataError where none can be
    """
    before = present_champion(name)
    was = f"champion of {name} was " + ("none" if before is None else f"{before.uri} ({_of(before)})")
    found = _registered_best(name, rows, choose)
    if isinstance(found, str):
        return Decision(before, None, before, f"{was}\nproposed none: {found}\nchampion stays as it was")
    best, version = found
    lines = f"{was}\nproposed {version.uri} ({best.label}, {_score(best, metric_of_choice(rows))}, {_of(version)})"
    stays = why_champion_stays(version, before)
    if stays is not None:
        return Decision(before, version, before, f"{lines}\nchampion stays: {stays}")
    if before is not None and before.version == version.version:
        return Decision(before, version, before, f"{lines}\nchampion is that version already")
    move_champion(version)
    return Decision(
        before, version, version, f"{lines}\nchampion is models:/{name}@champion, version {version.version}"
    )


def _registered_best(
    name: str, rows: Sequence[RunRow], choose: Callable[[Sequence[RunRow]], RunRow]
) -> tuple[RunRow, ModelVersion] | str:
    """The best run that has a model, with its version; otherwise the reason why there is none."""
    left, without = list(rows), []
    if not left:
        return "no run that can be compared has the cohort that this configuration describes"
    while left:
        try:
            best = choose(left)
        except DataError as reason:
            return str(reason)
        try:
            return best, _register(best, name, metric_of_choice(rows))
        except MissingArtifact as reason:
            print(f"run {best.run_id} cannot be champion: {reason}", flush=True)
            without.append(best.run_id)
            left.remove(best)
    return f"no model is among the artifacts of {', '.join(without)}"


def _register(best: RunRow, name: str, metric: Metric) -> ModelVersion:
    with tempfile.TemporaryDirectory() as folder:
        return log_and_register_model(
            best.run_id,
            download(best.run_id, MODEL_FOLDER, Path(folder)),
            name,
            description=f"{best.label}: {_score(best, metric)}, test {best.metrics[metric.named(TEST)]:.4f}",
            tags={COHORT: best.cohort_fingerprint} | ({HORIZON: best.horizon_days} if best.horizon_days else {}),
        )


def _score(best: RunRow, metric: Metric) -> str:
    return f"validation {metric.title} {best.metrics[metric.named(KEPT)]:.4f}"


def _of(version: ModelVersion) -> str:
    """The run, cohort and horizon of a version, in words."""
    horizon = version.tags.get(HORIZON)
    days = "" if horizon is None else f", horizon {horizon} days"
    return f"run {version.run_id[:8]}, cohort {cohort_of(version)}{days}"


def _was_told(config: RunConfig, run_id: str) -> bool:
    """Whether a run has the cohort and split of the configuration; the path of the labels may differ."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            told = json.loads(download(run_id, RUN_CONFIG, Path(folder)).read_text())
        except MissingArtifact as reason:
            print(f"the cohort of run {run_id} is not known: {reason}", flush=True)
            return False
    own = config.to_json()
    split = told["data"]["split"]
    if not config.data.split.model_fields_set and split.get("rule") == "dataset":  # where no rule is said, runs take it
        own["data"]["split"] = split
    return told.get("cohort") is not None and _settings(told["cohort"], split) == _settings(
        own["cohort"], own["data"]["split"]
    )


def _settings(cohort: Mapping[str, Any], split: Mapping[str, Any]) -> tuple[object, ...]:
    """Both with defaults filled in, since runs from before a setting was introduced have no value for it."""
    read = CohortConfig.model_validate(cohort)
    labels = read.labels and read.labels.name
    return read.model_copy(update={"labels": None}), labels, _SPLIT.validate_python(split).identity()


_SPLIT: TypeAdapter[Split] = TypeAdapter(Split)
