"""One cell of a study: found finished, resumed, or begun."""

from __future__ import annotations

from collections.abc import Callable

from ehrtrack.config import RunConfig
from ehrtrack.errors import CheckpointError, TrackingError
from ehrtrack.pipeline.run import RUN_CONFIG, Place, RecipeResult
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.recipes.resume import resume
from ehrtrack.study.cells import Cell, Study
from ehrtrack.study.values import Recipe
from ehrtrack.tracking.client.queries import RunRecord, get_run, list_artifacts, search_runs
from ehrtrack.tracking.names import CELL, CONFIGURATION, RESUMABLE_KINDS, STUDY_KEY
from ehrtrack.tracking.outbox.sync import send_left_behind
from ehrtrack.tracking.recovery.claims import Claims
from ehrtrack.tracking.recovery.orphans import close_run
from ehrtrack.tracking.run import JOURNALS


def run_cell(cell: Cell, study: Study, *, base_run_id: str, parent_run_id: str, claims: Claims) -> RunRecord:
    """Have the run of a cell that this worker holds; returns it once the tracking server has all of it.

    A run that a worker before began is resumed, from its snapshot where it has one.

    Parameters
    ----------
    base_run_id : of the pretraining that it starts from; empty if it starts from none of the study's
    parent_run_id : the study's own run

    Raises
    ------
    EhrtrackError
        If it cannot be made.
    """
    begun = []
    for record in _runs_of(cell, study):
        now = _sent(record, study)
        if now.status == "FINISHED":
            print(f"{cell.label}: finished before, as run {now.run_id}", flush=True)
            return now
        begun.append(now)
    result = _go_on(begun, cell, study) or _begin(cell, study, base_run_id=base_run_id, parent_run_id=parent_run_id)
    return _on_server(result, cell, study, claims)


def _runs_of(cell: Cell, study: Study) -> list[RunRecord]:
    found = search_runs(study.name, status=None, tags={CELL: cell.key})
    return [record for record in found if record.kind == cell.recipe]


def _sent(record: RunRecord, study: Study) -> RunRecord:
    """A run, after what is left of it on this machine was sent."""
    if record.status == "FINISHED":
        return record
    send_left_behind(study.runtime.cache / JOURNALS, record.run_id, attempt=record.attempt)
    return get_run(record.run_id)


def _go_on(begun: list[RunRecord], cell: Cell, study: Study) -> RecipeResult | None:
    """Resume the latest run that can be; those that cannot are ended, for another takes their place."""
    for record in reversed(begun):
        if record.kind in RESUMABLE_KINDS and RUN_CONFIG in list_artifacts(record.run_id):
            here = [("runtime.cache", str(study.runtime.cache)), ("data.path", str(cell.config.data.path))]
            print(f"{cell.label}: continues run {record.run_id}", flush=True)
            try:
                return resume(record.run_id, here, is_forced=True, place=Place(is_quiet=True))
            except CheckpointError as error:
                print(f"{cell.label}: {error}", flush=True)
        if record.status == "RUNNING":
            close_run(record.run_id, "its worker is gone, and there is nothing to resume from: the cell is run anew")
    return None


def _begin(cell: Cell, study: Study, *, base_run_id: str, parent_run_id: str) -> RecipeResult:
    tags = {STUDY_KEY: study.queue, CELL: cell.key, CONFIGURATION: cell.configuration}
    place = Place(parent_run_id, name=cell.label, tags=tags, is_quiet=True)
    config = cell.config
    if base_run_id:
        config = config.model_copy(update={"init": config.init.model_copy(update={"run": base_run_id})})
    recipes: dict[Recipe, Callable[[RunConfig, Place], RecipeResult]] = {
        "pretrain": lambda config, place: pretrain(config, place=place),
        "finetune": lambda config, place: finetune(config, place=place),
        "baseline": lambda config, place: baseline(config, place=place),
    }
    return recipes[cell.recipe](config, place)


def _on_server(result: RecipeResult, cell: Cell, study: Study, claims: Claims) -> RunRecord:
    """The run as the server has it: until it is there as a whole, the cell is not done, and this worker waits."""
    told = ""
    while True:
        try:
            ended = [record for record in _runs_of(cell, study) if record.status == "FINISHED"]
            if ended:
                return ended[0]
            send_left_behind(study.runtime.cache / JOURNALS, result.run_id, attempt=0)
            problem = f"run {result.run_id} is not on the tracking server yet"
        except TrackingError as error:
            problem = str(error)
        if problem != told:
            print(f"{cell.label}: {problem}; waiting until it is", flush=True)
        told = problem
        claims.wait()
