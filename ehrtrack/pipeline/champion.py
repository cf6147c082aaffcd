"""Who is to be champion: of which cohort, which run, and whether it may take the place of the one there is.

`ehrtrack compare` proposes the best run by validation, `ehrtrack promote` the run that it is told; both go by `ruling`.
"""

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
from ehrtrack.errors import DataError, TrackingError
from ehrtrack.evaluation.benchmark import RunRow, best_by_validation, metric_of_choice, verdict_of
from ehrtrack.evaluation.metric_table import Metric
from ehrtrack.evaluation.paired import differences_to
from ehrtrack.pipeline.model_card import CARD, input_example, model_card
from ehrtrack.pipeline.predictions_cache import read_validation_predictions
from ehrtrack.pipeline.run import MODEL_FOLDER, RUN_CONFIG
from ehrtrack.pipeline.run_rows import run_row
from ehrtrack.runlog import KEPT
from ehrtrack.tracking.client.moves import (
    is_pinned,
    is_set_by_hand,
    pin_text,
    present_champion,
    set_champion,
)
from ehrtrack.tracking.client.queries import MissingArtifact, download, get_run
from ehrtrack.tracking.client.registry import ModelVersion, cohort_of, log_and_register_model, versions_of_run
from ehrtrack.tracking.names import BASE, COHORT, HORIZON, ROLLED_BACK


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


@dataclass(frozen=True)
class Ruling:
    """Whether a run may take the champion's place.

    Attributes
    ----------
    refusal : why it may not, and what would allow it; None where it may
    comparison : how it scores beside the champion; empty where nothing was compared

    Examples
    --------
    >>> Ruling(None, "validation C-index +0.031 [0.012, 0.050] against version 1").refusal is None
    True
    """

    refusal: str | None
    comparison: str = ""


def ruling(row: RunRow, name: str, *, is_forced: bool = False) -> Ruling:
    """Whether a run may become champion of model `name`.

    It may where nobody pinned the champion, its test subjects were enough to judge it, it was not rolled back, and
    either there is no champion or one that was not set by hand, of the same cohort (and so of the same horizon), than
    which it is not worse: the paired 95 % interval of the difference on the validation subjects does not lie below 0.

    Parameters
    ----------
    is_forced : only the pin is asked
    """
    present = present_champion(name)
    if is_pinned(name):
        return Ruling(pin_text(name))
    if is_forced:
        return Ruling(None)
    metric = metric_of_choice([row])
    force = f"`ehrtrack promote {row.run_id} --name {name} --force` makes it champion all the same"
    if not row.is_judged(metric):
        return Ruling(f"it could not be judged: too few test events for a {metric.title} with an interval; {force}")
    known = versions_of_run(name, row.run_id)
    if present is None or present.version in {version.version for version in known}:
        return Ruling(None)
    for version in known:
        if ROLLED_BACK in version.tags:
            return Ruling(f"version {version.version} was rolled back on {version.tags[ROLLED_BACK]}; {force}")
    if is_set_by_hand(name):
        return Ruling(f"its alias was set by hand, or before moves of it were noted, and nobody said why; {force}")
    of_champion = cohort_of(present)
    if of_champion != row.cohort_fingerprint:
        return Ruling(
            f"it is of another cohort ({_of(present)}) than the proposed run (cohort {row.cohort_fingerprint}"
            f"{_days(row.horizon_days)}), and their scores do not compare; {force}, or give each cohort a "
            "registry.model (--name) of its own"
        )
    return _paired(row, present, metric, force)


def _paired(row: RunRow, present: ModelVersion, metric: Metric, force: str) -> Ruling:
    """By the difference on the validation subjects of both."""
    try:
        rows = [row, run_row(get_run(present.run_id))]
        predictions = read_validation_predictions(rows)
        found = differences_to(present.run_id, rows, predictions).get(row.run_id)
    except (DataError, TrackingError) as reason:
        return Ruling(f"the two cannot be paired on their validation subjects: {reason}; {force}")
    if found is None:
        return Ruling(f"their validation subjects have too few events for an interval of the difference; {force}")
    interval = f"{found.estimate:+.4f} [{found.lower:+.4f}, {found.upper:+.4f}]"
    text = f"validation {metric.title} {interval} against version {present.version} (paired, 95 %)"
    if verdict_of(found) == "worse":
        return Ruling(f"the challenger is worse: {text}; {force}", text)
    return Ruling(None, text)


def register(row: RunRow, name: str, *, merges: bool = False) -> ModelVersion:
    """The run's version of model `name`, the last of several, made if there is none.

    Parameters
    ----------
    merges : it has to stand alone: where the run has an adapter, one that is merged into its base

    Raises
    ------
    MissingArtifact
        If the run keeps no model.
    """
    for version in versions_of_run(name, row.run_id):
        if not (merges and version.is_adapter):
            return version
    from ehrtrack.pipeline.version_form import (
        form_of,
    )  # needs torch, which a comparison that registers nothing does not

    with tempfile.TemporaryDirectory(prefix="ehrtrack-") as aside:
        form = form_of(row.run_id, download(row.run_id, MODEL_FOLDER, Path(aside)), Path(aside), merges=merges)
        card = model_card(get_run(row.run_id), name, form.text)
        version = log_and_register_model(
            row.run_id,
            form.folder,
            name,
            description=card,
            tags={
                COHORT: row.cohort_fingerprint,
                **({HORIZON: row.horizon_days} if row.horizon_days else {}),
                **({BASE: form.base.model} if form.base else {}),
            },
            texts={CARD: card},
            input_example=input_example(form.folder),
        )
    print(f"{version.uri} {form.text}", flush=True)
    return version


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
    ruled = ruling(best, name)
    if ruled.refusal is not None:
        return Decision(before, version, before, f"{lines}\nchampion stays: {ruled.refusal}")
    if before is not None and before.version == version.version:
        return Decision(before, version, before, f"{lines}\nchampion is that version already")
    why = f"best of {len(rows)} runs by validation" + (f"; {ruled.comparison}" if ruled.comparison else "")
    set_champion(version, how="compare", why=why)
    compared = f" ({ruled.comparison})" if ruled.comparison else ""
    return Decision(
        before, version, version, f"{lines}\nchampion is models:/{name}@champion, version {version.version}{compared}"
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
            return best, register(best, name)
        except MissingArtifact as reason:
            print(f"run {best.run_id} cannot be champion: {reason}", flush=True)
            without.append(best.run_id)
            left.remove(best)
    return f"no model is among the artifacts of {', '.join(without)}"


def _score(best: RunRow, metric: Metric) -> str:
    return f"validation {metric.title} {best.metrics[metric.named(KEPT)]:.4f}"


def _of(version: ModelVersion) -> str:
    """What a version is of, in words."""
    return f"run {version.run_id[:8]}, cohort {cohort_of(version)}{_days(version.tags.get(HORIZON, ''))}"


def _days(horizon: str) -> str:
    return f", horizon {horizon} days" if horizon else ""


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
