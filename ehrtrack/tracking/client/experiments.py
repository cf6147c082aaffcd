"""Experiments, one for each study, and the settings of their pages."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ehrtrack.errors import TrackingError
from ehrtrack.evaluation.metric_table import chosen_by
from ehrtrack.runlog import KEPT, TEST, Task
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client, redacted, tracking_errors, tracking_uri
from ehrtrack.tracking.client.views import runs_view

_HEAD = "Runs of "
_DESCRIPTION = """\
{head}{whose}. The table shows those that were judged on test subjects, the best on validation subjects first; empty
its filter to see all. Filter runs by the tag `ehrtrack.kind`: pretrain, finetune, baseline, sweep (its trials are
nested), compare (the benchmark table); group repeats by the param `{group}`. Each run's page begins with a summary;
`cfg.*` params are its resolved configuration. Compare models by `{chosen_by}`; read `{at_the_end}` once, at the end.
"""
_NOTE = "mlflow.note.content"
_KIND, _MODELS = "mlflow.experimentKind", "custom_model_development"  # the UI's pages for models, not for GenAI
_NO_KINDS = ("no_inferred_type", "custom_model_development_inferred", "genai_development_inferred")  # nobody's choice
_PRIMARY_TAG = "mlflow.experiment.primaryMetric.name"
_GREATER_TAG = "mlflow.experiment.primaryMetric.greaterIsBetter"
_NAME, _ID = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"
_NOBODYS_CHOICE = "0"  # mlflow's Default, where `mlflow run` puts runs of which nobody said where they belong
_VIEW_TAG = f"mlflow.sharedViewState.{names.VIEW}"


ROWS_PER_PAGE = 1000


def pages(search: Any, **arguments: Any) -> Iterator[Any]:
    """All results of a search by mlflow's client, of which one call returns only a page."""
    token: str | None = None
    while True:
        page = search(max_results=ROWS_PER_PAGE, page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def every_experiment_id() -> list[str]:
    """The ids of all experiments."""
    return [experiment.experiment_id for experiment in pages(client().search_experiments)]


@dataclass(frozen=True)
class ChosenExperiment:
    """The experiment that the user chose for runs, by id or by name; both are empty if none was chosen."""

    id: str = ""
    name: str = ""


def chosen_experiment() -> ChosenExperiment:
    """The experiment of MLFLOW_EXPERIMENT_ID, which ``mlflow run`` also sets, or else MLFLOW_EXPERIMENT_NAME."""
    chosen = os.environ.get(_ID, "").strip()
    if chosen and chosen != _NOBODYS_CHOICE:
        return ChosenExperiment(id=chosen)
    return ChosenExperiment(name=os.environ.get(_NAME, "").strip())


def active_experiment(experiment_id: str) -> str:
    """The id of an experiment that exists and is not deleted.

    Raises
    ------
    TrackingError
        If there is no such experiment, or it was deleted.
    """
    try:
        found = client().get_experiment(experiment_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise TrackingError(
            f"{_ID} is {experiment_id!r}, and there is no such experiment on {redacted(tracking_uri())}; set it to one "
            f"that is there, or set {_NAME} instead, and it is made"
        ) from error
    return _active(found)


def is_of_a_study(experiment_id: str) -> bool:
    """Whether an experiment was made for a study, or has a run of one; others on the server are not EHRTrack's."""
    with tracking_errors(f"look at experiment {experiment_id}"):
        tags = client().get_experiment(experiment_id).tags
        if names.STUDY in tags or _VIEW_TAG in tags:
            return True
        return bool(client().search_runs([experiment_id], f"tags.`{names.KIND}` != ''", max_results=1))


def experiment_named(name: str, *, study: str = "") -> str:
    """The id of the experiment of this name, which is created for the study if it does not exist.

    Raises
    ------
    TrackingError
        If an experiment of this name was deleted, or the server refuses.
    """
    mlflow_client = client()
    with tracking_errors(f"find or make experiment {name!r}"):
        found = mlflow_client.get_experiment_by_name(name)
        if found is None:
            return _create(mlflow_client, name, study or name)
    return _active(found)


def _active(found: Any) -> str:
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {found.name!r} was deleted; bring it back with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`, or use another name"
        )
    return str(found.experiment_id)


def set_up(experiment_id: str, *, study: str, task: Task | None = None) -> None:
    """Set up the page of an experiment where it lacks something, whoever made the experiment.

    A description, a kind and a study are written where there is none. The view of its runs and the primary metric are
    those of the task; they follow it as long as they are as they were last written here. What a user changed stays.
    If there is nothing to write, this takes one call.

    Parameters
    ----------
    study : to which the run belongs that is about to begin
    task : of its model; None where it has none that is judged, and the experiment's stays what it was
    """
    with tracking_errors(f"set up experiment {experiment_id}"):
        experiment = client().get_experiment(experiment_id)
        for key, value in _lacking(experiment.name, experiment.tags, study=study, task=task).items():
            client().set_experiment_tag(experiment_id, key, value)


def describe_experiment(experiment_id: str, markdown: str) -> bool:
    """Set the description of an experiment's page, unless a user has written another.

    Returns
    -------
    Whether it is there now.
    """
    with tracking_errors(f"describe experiment {experiment_id}"):
        tags = client().get_experiment(experiment_id).tags
        before, setup = tags.get(_NOTE, ""), _setup(tags)
        is_ours = not before or _digest(before) == setup["written"].get(_NOTE) or before.startswith(_HEAD)
        if is_ours and before != markdown:
            client().set_experiment_tag(experiment_id, _NOTE, markdown)
            setup["written"][_NOTE] = _digest(markdown)
            client().set_experiment_tag(experiment_id, names.SETUP, json.dumps(setup))
    return is_ours


def _lacking(name: str, tags: Mapping[str, str], *, study: str, task: Task | None) -> dict[str, str]:
    """The tags to write, and last the note of what was written, by which later changes of a user are recognised."""
    setup = _setup(tags)
    metric = chosen_by({task or setup["task"]})
    whose = f"the EHRTrack study **{study}**" if study == name else "EHRTrack; their tag `ehrtrack.study` tells whose"
    once = {
        names.STUDY: study,
        _NOTE: _DESCRIPTION.format(
            head=_HEAD,
            whose=whose,
            group=names.GROUP,
            chosen_by=metric.named(KEPT),
            at_the_end=metric.named(TEST),
        ),
        _KIND: _MODELS,
    }
    of_task = {
        _PRIMARY_TAG: metric.named(KEPT),
        _GREATER_TAG: str(metric.better == "higher"),
        _VIEW_TAG: runs_view(metric),
    }
    new = {key: value for key, value in once.items() if key not in tags or (key == _KIND and tags[key] in _NO_KINDS)}
    ours = {key: value for key, value in of_task.items() if _is_as_written(key, tags, setup["written"])}
    new |= {key: value for key, value in ours.items() if tags.get(key) != value}
    written = setup["written"] | {key: _digest(value) for key, value in ours.items()}
    note = json.dumps({"task": task or setup["task"], "written": written}, sort_keys=True)
    return new | ({} if tags.get(names.SETUP) == note else {names.SETUP: note})


def _is_as_written(key: str, tags: Mapping[str, str], written: Mapping[str, str]) -> bool:
    """Whether a tag may be written: it is missing, or has the value that was last written here.

    Before there was a note of it, the view was written anew by every run, and the primary metric had another name.
    """
    if key not in tags or key in written:
        return key not in tags or _digest(tags[key]) == written[key]
    return key == _VIEW_TAG or names.present_name(tags[key]) != tags[key]


def _setup(tags: Mapping[str, str]) -> dict[str, Any]:
    note: dict[str, Any] = json.loads(tags.get(names.SETUP, "{}"))
    return {"task": "survival", "written": {}} | note


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _create(mlflow_client: MlflowClient, name: str, study: str) -> str:
    try:
        return str(mlflow_client.create_experiment(name, tags=_lacking(name, {}, study=study, task=None)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another pod may have made it meanwhile
            raise
        return experiment_named(name, study=study)
