"""A run that is made once, whoever makes it: found finished, resumed, or begun; a cell of a study is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ehrtrack.config import RunConfig
from ehrtrack.errors import CheckpointError, TrackingError
from ehrtrack.pipeline.run import RUN_CONFIG, Place, RecipeResult
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.pretrain import pretrain
from ehrtrack.recipes.resume import OnEpoch, resume
from ehrtrack.study.cells import Cell, Study
from ehrtrack.study.values import Recipe
from ehrtrack.tracking.client.queries import RunRecord, get_run, list_artifacts, search_runs
from ehrtrack.tracking.names import CELL, CONFIGURATION, SNAPSHOT_KINDS, STUDY_KEY
from ehrtrack.tracking.outbox.sync import send_left_behind
from ehrtrack.tracking.recovery.claims import Claims
from ehrtrack.tracking.recovery.orphans import close_run
from ehrtrack.tracking.run import JOURNALS


@dataclass(frozen=True)
class Once:
    """A run that is to be made once.

    Attributes
    ----------
    key : that it is found by, the tag `CELL`
    kind : of run
    label : of it in what is printed
    study : under which it is tracked
    cache, data : folders of this machine
    has_snapshots : whether one that was cut off can be resumed
    of_trial : told after each epoch, where it is a sweep's trial
    """

    key: str
    kind: str
    label: str
    study: str
    cache: Path
    data: Path
    has_snapshots: bool = True
    of_trial: OnEpoch | None = field(default=None, repr=False)

    def runs(self) -> list[RunRecord]:
        """Those there are of it on the tracking server, oldest first."""
        found = search_runs(self.study, status=None, tags={CELL: self.key})
        return [record for record in found if record.kind == self.kind]

    def sent(self) -> list[RunRecord]:
        """As `runs`, after what is left of them on this machine was sent."""
        return [record if record.status == "FINISHED" else self._sent(record) for record in self.runs()]

    def _sent(self, record: RunRecord) -> RunRecord:
        send_left_behind(self.cache / JOURNALS, record.run_id, attempt=record.attempt)
        return get_run(record.run_id)

    def go_on(self, begun: Sequence[RunRecord]) -> RecipeResult | None:
        """Resume the latest run that can be; those that cannot are ended, for another takes their place."""
        for record in reversed(begun):
            can_be = self.has_snapshots and record.kind in SNAPSHOT_KINDS
            if can_be and RUN_CONFIG in list_artifacts(record.run_id):
                here = [("runtime.cache", str(self.cache)), ("data.path", str(self.data))]
                print(f"{self.label}: continues run {record.run_id}", flush=True)
                try:
                    return resume(
                        record.run_id, here, is_forced=True, place=Place(is_quiet=True), of_trial=self.of_trial
                    )
                except CheckpointError as error:
                    print(f"{self.label}: {error}", flush=True)
            if record.status == "RUNNING":
                close_run(record.run_id, "its worker is gone, and there is nothing to go on from: it is made anew")
        return None


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
    once = Once(cell.key, cell.recipe, cell.label, study.name, study.runtime.cache, cell.config.data.path)
    begun = once.sent()
    for record in begun:
        if record.status == "FINISHED":
            print(f"{cell.label}: finished before, as run {record.run_id}", flush=True)
            return record
    result = once.go_on(begun) or _begin(cell, study, base_run_id=base_run_id, parent_run_id=parent_run_id)
    return _on_server(result, once, claims)


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


def _on_server(result: RecipeResult, once: Once, claims: Claims) -> RunRecord:
    """The run as the server has it: until it is there as a whole, the cell is not done, and this worker waits."""
    told = ""
    while True:
        try:
            ended = [record for record in once.runs() if record.status == "FINISHED"]
            if ended:
                return ended[0]
            send_left_behind(once.cache / JOURNALS, result.run_id, attempt=0)
            problem = f"run {result.run_id} is not on the tracking server yet"
        except TrackingError as error:
            problem = str(error)
        if problem != told:
            print(f"{once.label}: {problem}; waiting until it is", flush=True)
        told = problem
        claims.wait()
