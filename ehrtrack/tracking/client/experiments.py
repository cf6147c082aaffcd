"""Experiments, one for each study, and what their pages show."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ehrtrack.errors import TrackingError
from ehrtrack.evaluation.metric_table import AUROC, C_INDEX, shown
from ehrtrack.runlog import KEPT, TEST
from ehrtrack.tracking import names
from ehrtrack.tracking.client.connection import client, redacted, tracking_errors, tracking_uri

_DESCRIPTION = """\
Runs of the EHRTrack study **{study}**. Group or filter them by the tag `ehrtrack.kind`: pretrain, finetune,
baseline, sweep (its trials are nested), compare (the benchmark table). Each run's page begins with a summary;
`cfg.*` params are its resolved configuration. Compare models by `{chosen_by}`; read `{at_the_end}` once,
at the end. Where labels are classes, these are `{classes_by}` and `{classes_at_the_end}`.
"""

PRIMARY_METRIC = C_INDEX.named(KEPT)
_PRIMARY_TAG = "mlflow.experiment.primaryMetric.name"
_NAME, _ID = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"
_NOBODYS_CHOICE = "0"  # mlflow's Default, where `mlflow run` puts runs of which nobody said where they belong

_VIEW_TAG = f"mlflow.sharedViewState.{names.VIEW}"
_COLUMNS = (
    "attributes.`Created`",
    "attributes.`Duration`",
    *(f"metrics.`{entry.name}`" for entry in shown("ui")),
    f"params.`{names.PARAM_PREFIX}strategy.name`",
    f"params.`{names.PARAM_PREFIX}model.size`",
    f"tags.`{names.KIND}`",
)


ROWS_PER_PAGE = 1000


def pages(search: Any, **arguments: Any) -> Iterator[Any]:
    """Everything that a search of mlflow's client finds; one call gives a page of it alone."""
    token: str | None = None
    while True:
        page = search(max_results=ROWS_PER_PAGE, page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def every_experiment_id() -> list[str]:
    """The ids of all experiments there are."""
    return [experiment.experiment_id for experiment in pages(client().search_experiments)]


@dataclass(frozen=True)
class ChosenExperiment:
    """Where a user wants runs: an experiment's id, or a name; both are empty where nothing was said."""

    id: str = ""
    name: str = ""


def chosen_experiment() -> ChosenExperiment:
    """The experiment of MLFLOW_EXPERIMENT_ID, which ``mlflow run`` also sets, or else MLFLOW_EXPERIMENT_NAME."""
    chosen = os.environ.get(_ID, "").strip()
    if chosen and chosen != _NOBODYS_CHOICE:
        return ChosenExperiment(id=chosen)
    return ChosenExperiment(name=os.environ.get(_NAME, "").strip())


def active_experiment(experiment_id: str) -> str:
    """The id, if there is such an experiment.

    Raises
    ------
    TrackingError
        If there is none, or it was deleted.
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
    """The id of the experiment of a name, which is made if there is none, for a study of the same or another name.

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


def offer_view(experiment_id: str) -> None:
    """Give an experiment the columns that links open it with; mlflow's own show no metric at all.

    A view is what the UI's "Share" button stores: the state of the page, as a tag of the experiment.
    """
    state = {
        "selectedColumns": _COLUMNS,
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
    }
    view = json.dumps(state)
    with tracking_errors(f"describe experiment {experiment_id}"):
        tags = client().get_experiment(experiment_id).tags
        if tags.get(_VIEW_TAG) != view:
            client().set_experiment_tag(experiment_id, _VIEW_TAG, view)
        metric = tags.get(_PRIMARY_TAG, PRIMARY_METRIC)
        if metric != names.present_name(metric):  # made when the metric had another name
            client().set_experiment_tag(experiment_id, _PRIMARY_TAG, names.present_name(metric))


def _create(mlflow_client: MlflowClient, name: str, study: str) -> str:
    tags = {
        names.STUDY: study,
        "mlflow.note.content": _DESCRIPTION.format(
            study=study,
            chosen_by=PRIMARY_METRIC,
            at_the_end=C_INDEX.named(TEST),
            classes_by=AUROC.named(KEPT),
            classes_at_the_end=AUROC.named(TEST),
        ),
        "mlflow.experimentKind": "custom_model_development",  # the UI's pages for models, not for GenAI
        _PRIMARY_TAG: PRIMARY_METRIC,
        "mlflow.experiment.primaryMetric.greaterIsBetter": str(C_INDEX.better == "higher"),
    }
    try:
        return str(mlflow_client.create_experiment(name, tags=tags))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another pod may have made it meanwhile
            raise
        return experiment_named(name, study=study)
