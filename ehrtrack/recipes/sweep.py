"""A sweep: Optuna searches settings by scores on subjects who did not train; no trial looks at the test subjects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from ehrtrack.config import RunConfig, check_objective, to_toml
from ehrtrack.data.events import fingerprint_of
from ehrtrack.data.folds import check_folds
from ehrtrack.errors import ConfigError, TrainingError
from ehrtrack.evaluation.metric_table import METRICS, Metric, chosen_by
from ehrtrack.home import make_cache
from ehrtrack.pipeline.inputs import differences, input_fingerprints, pin_base
from ehrtrack.pipeline.prepare import has_classes, settle
from ehrtrack.pipeline.record import claim_record, is_there
from ehrtrack.pipeline.run import Place, RecipeResult, Recorder, describe, open_run
from ehrtrack.recipes._sweep_report import Refitted, log_sweep_report
from ehrtrack.recipes._sweep_screen import SweepScreen
from ehrtrack.recipes._terminal import watched
from ehrtrack.recipes._trial import TrialRunner
from ehrtrack.recipes.study import queue_errors, run_cells
from ehrtrack.reporting.sweep import effort_text, sentences
from ehrtrack.runlog import KEPT, VALIDATION, Task
from ehrtrack.search.drawing import in_order, name_scores
from ehrtrack.search.outcome import SLOT, front_of, trials_table
from ehrtrack.search.storage import shared_storage
from ehrtrack.search.stored import Searched, directions_of
from ehrtrack.search.worker import Worker
from ehrtrack.search_space import Scalar
from ehrtrack.study.cells import Study
from ehrtrack.study.queue import Queue
from ehrtrack.study.refits import refit_study
from ehrtrack.study.results import finished, finished_cells, study_results
from ehrtrack.study.search import check_space, meant, own_values
from ehrtrack.study.values import with_values
from ehrtrack.tracking.client.connection import ui_command
from ehrtrack.tracking.client.queries import get_run, metric_history, search_runs
from ehrtrack.tracking.names import STUDY_KEY, TRIAL
from ehrtrack.tracking.outbox.sender import is_offline
from ehrtrack.training.ranks import join_ranks

SECTIONS = ("study", "data", "cohort", "model", "objective", "strategy", "init", "train", "search", "runtime")
INPUTS = "inputs"
OF_THE_BUDGET = ("n_trials", "max_hours", "patience", "refits", "heartbeat_seconds", "max_retries")
"""Settings of a search that may change in a study that goes on."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as one of its workers sees it.

    Attributes
    ----------
    config : with its base pinned; what ``best.toml`` is made of, for any machine
    settled : with this machine's threads
    inputs : fingerprints by name
    metrics : that trials are scored by, on subjects who did not train
    key : of the task that this worker is
    """

    config: RunConfig
    settled: RunConfig
    inputs: Mapping[str, str]
    worker: Worker
    metrics: tuple[Metric, ...]
    key: str = ""

    @property
    def name(self) -> str:
        """By which the database and its run know it."""
        return str(self.worker.study.study_name)

    @property
    def n_trials(self) -> int:
        """The budget of all workers together."""
        return self.config.search.n_trials

    @property
    def record(self) -> str:
        """The claim of the one who keeps the sweep's run; what is noted there is the run's id."""
        search = self.config.search
        asked = {name: of for name in ("max_hours", "patience") if (of := getattr(search, name)) is not None}
        asked |= {} if search.refits == type(search).model_fields["refits"].default else {"refits": search.refits}
        more = f", {fingerprint_of(asked)}" if asked else ""
        return f"record of {self.n_trials} trials{more}"

    def run_trials(self, parent_run_id: str) -> None:
        """Run trials until none is left that is not done, failed here, or run by another worker."""
        scored_by = [metric.key for metric in self.metrics]
        screen = SweepScreen(self.config.study, self.worker, scored_by, self.settled.runtime.cache)
        with watched(screen) as log_of:
            runner = TrialRunner(self.settled, self.name, self.metrics, parent_run_id, log_of)
            self.worker.run(runner, waits=True)

    def searched(self, parent_run_id: str) -> Searched:
        """Its trials so far, with their runs."""
        runs: dict[int, list[str]] = {}
        for record in search_runs(self.config.study, kinds=["trial"], status=None, parent_run_id=parent_run_id):
            runs.setdefault(int(record.tags.get(TRIAL, 0)), []).append(record.run_id)
        keys = tuple(metric.key for metric in self.metrics)
        return Searched(self.config.search, keys, self.worker.trials(), self.worker.why_over(), runs)

    def refits(self, searched: Searched) -> Study:
        """The study of what it chose and of what it began with."""
        search = self.config.search
        return refit_study(
            self.settled, searched.best.overrides, recipe=search.recipe, paths=in_order(search.parameters)
        )


def sweep(config: RunConfig, *, key: str = "") -> RecipeResult:
    """Try settings, then fit the best over several seeds, beside the settings that the search began with.

    The same configuration over the same inputs continues the study; started several times at once, on machines that
    see its database, all take trials and fits of it, and one keeps the record: the run that these are nested under and
    that holds the report and ``best.toml``, the best configuration. A sweep that is done is told, and not done again.

    Parameters
    ----------
    key : of the task that this worker is, if a scheduler starts another in its place (`Claims`)

    Raises
    ------
    EhrtrackError
        If the configuration, the data or the tracking server cannot be used, or no trial ran to its end.
    """
    check_objective(config, "outcome")
    if join_ranks(config.runtime.device).count > 1:
        raise ConfigError("a sweep is one process; start it several times, and all take trials of the same study")
    if is_offline():
        raise ConfigError(
            "EHRTRACK_OFFLINE=1, and the workers of a sweep find on the tracking server what is done: leave it out"
        )
    make_cache(config.runtime.cache)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what becomes of a trial is told here
    config = pin_base(config)
    settled = settle(config)  # here, so that trials do not each look for free cores
    config, settled = (meant(one, settled) for one in (config, settled))
    check_space(settled)
    if config.search.folds:
        check_folds(settled.data.split)
    metrics = _metrics(settled)
    inputs = input_fingerprints(settled)
    sweep = Sweep(config, settled, inputs, _join(settled, inputs, metrics, key), metrics, key)
    with sweep.worker.claims.renewed():
        return _take_part(sweep)


def _metrics(config: RunConfig) -> tuple[Metric, ...]:
    """That trials are scored by: those that are asked for, or the one that chooses runs of these labels."""
    task: Task = "classes" if has_classes(config) else "survival"
    known = [key for key, of in METRICS.items() if task in of.tasks and {VALIDATION, KEPT} <= set(of.splits)]
    known = [key for key in known if METRICS[key].better in ("higher", "lower")]
    if strange := [key for key in config.search.metrics if key not in known]:
        raise ConfigError(f"search.metrics names {', '.join(strange)}; of these labels there are: {', '.join(known)}")
    if len(set(config.search.metrics)) < len(config.search.metrics):
        raise ConfigError("search.metrics names a metric twice")
    return tuple(METRICS[key] for key in config.search.metrics) or (chosen_by({task}),)


def _join(config: RunConfig, inputs: Mapping[str, str], metrics: tuple[Metric, ...], key: str) -> Worker:
    """Begin or join the study of these settings and inputs; where it runs, and for how many trials, does not matter."""
    storage = shared_storage(config.runtime.storage, config.runtime.cache)
    settings = config.identity(without=("runtime", "registry", "compare", "sensitivity", "negative_controls"))
    for name in OF_THE_BUDGET:
        settings["search"].pop(name, None)
    del settings["init"]["run"]  # its meaning is among the inputs
    like = f"{config.study}-{fingerprint_of(settings)}"
    name = f"{like}-{fingerprint_of(dict(inputs))}"
    before = [s for s in optuna.get_all_study_summaries(storage) if s.study_name.startswith(f"{like}-")]
    if before and name not in {summary.study_name for summary in before}:
        changed = differences(before[-1].user_attrs.get(INPUTS, {}), inputs)
        print(f"the inputs changed since the last sweep with these settings: {changed}; a new study begins", flush=True)
    worker = Worker(
        config.search,
        name=name,
        storage=storage,
        seed=config.runtime.seed,
        defaults=own_values(config),
        directions=directions_of(metrics),
        key=key,
    )
    worker.study.set_user_attr(INPUTS, dict(inputs))
    name_scores(worker.study, [metric.title for metric in metrics])
    return worker


def _take_part(sweep: Sweep) -> RecipeResult:
    """Keep the record if nobody does; else work for the one who does, and see whether that one still lives."""
    claims, has_helped = sweep.worker.claims, False
    while True:
        standing = claims.look(sweep.record)
        if standing.is_done:
            return _told(sweep, standing.note)
        if claims.take(sweep.record):
            return _keep_record(sweep, standing.note)
        if has_helped and claims.lives(sweep.record):
            print(f"no trial is left for this worker; another one keeps the record, run {standing.note}", flush=True)
            return _run_of(standing.note)
        if standing.note:
            sweep.run_trials(standing.note)
            has_best = any(trial.state == TrialState.COMPLETE for trial in sweep.worker.trials())
            if has_best and sweep.worker.is_over:
                _refit(sweep, sweep.searched(standing.note), standing.note, waits=False)
            has_helped = True
        else:  # the other one is about to open its run
            claims.wait()


def _told(sweep: Sweep, run_id: str) -> RecipeResult:
    best = sweep.searched(run_id).best
    print(
        f"this sweep of {sweep.n_trials} trials is done: run {run_id}, best validation {sweep.metrics[0].title} "
        f"{best.value:.4f} with {best.overrides}; ask for more with search.n_trials",
        flush=True,
    )
    return _run_of(run_id)


def _run_of(run_id: str) -> RecipeResult:
    record = get_run(run_id)
    return RecipeResult(run_id, "sweep", ui_command(record.experiment_id, run_id=run_id).url, record.metrics)


def _keep_record(sweep: Sweep, begun: str) -> RecipeResult:
    """Work under a run of one's own, or the one that a worker before had begun, and gather what came out."""
    claims = sweep.worker.claims
    try:
        begun = begun if begun and is_there(begun, "sweep") else ""
        resumption = claim_record(begun, sweep.settled.runtime.cache) if begun else None
        if begun and resumption is None:  # its worker died after its last record
            claims.finish(sweep.record)
            return _told(sweep, begun)
        place = Place(tags={STUDY_KEY: sweep.name})
        with open_run(
            sweep.settled, kind="sweep", sections=SECTIONS, name="sweep", place=place, resume=resumption
        ) as run:
            claims.leave_note(sweep.record, run.logger.reference)
            run.logger.set_tags({f"fingerprint.{name}": value for name, value in sweep.inputs.items()})
            result = _search_and_fit(sweep, run, resumed_run_id=resumption.run_id if resumption else None)
        claims.finish(sweep.record)
    except BaseException:
        claims.release(sweep.record)
        raise
    return result


def _search_and_fit(sweep: Sweep, run: Recorder, *, resumed_run_id: str | None) -> RecipeResult:
    parent, claims = run.logger.reference, sweep.worker.claims
    print(f"{sweep.worker.n_done} of {sweep.n_trials} trials are done", flush=True)
    sweep.run_trials(parent)
    searched = sweep.searched(parent)
    best = searched.best
    claims.hold(sweep.record)
    _log_trials(run, searched, resumed_run_id=resumed_run_id)
    run.logger.log_text(to_toml(with_values(sweep.config, best.overrides)[0]), "best.toml")
    told = " ".join(effort_text(searched))
    n_refits = sweep.config.search.refits
    print(
        f"\n{told}\nbest of {len(searched.trials)} trials: {best.overrides}; {n_refits} seeds of it follow", flush=True
    )
    queue = _refit(sweep, searched, parent, waits=True)
    claims.hold(sweep.record)
    refitted = Refitted(searched, queue.study, study_results(queue.study, queue.standing(), run_id=parent))
    _conclude(refitted, run)
    return run.finished(run.log_kept(dict(zip(searched.metrics, best.values, strict=True))))


def _refit(sweep: Sweep, searched: Searched, parent_run_id: str, *, waits: bool) -> Queue:
    """Fit what the search chose, and what it began with, over seeds: cells of a study, which all workers take."""
    made = sweep.refits(searched)
    with queue_errors(made):
        queue = Queue(made, shared_storage(made.runtime.storage, made.runtime.cache), key=sweep.key)
        with queue.claims.renewed():
            queue.fill({cell: finished(record) for cell, record in finished_cells(made).items()}, tries_again=waits)
            run_cells(queue, parent_run_id, waits=waits)
    return queue


def _log_trials(run: Recorder, searched: Searched, *, resumed_run_id: str | None) -> None:
    """All trials, whoever ran them; of a resumed run, those values that it does not have yet."""
    run.logger.log_table(trials_table(searched.trials, searched.metrics, searched.runs), "trials.csv")
    for number, key in enumerate(searched.metrics):
        name = f"sweep/{key}"
        there = metric_history(resumed_run_id, name) if resumed_run_id else {}
        for trial in searched.trials:
            if trial.state == TrialState.COMPLETE and trial.user_attrs[SLOT] not in there:
                run.logger.log_metrics({name: float(trial.values[number])}, step=trial.user_attrs[SLOT])
    if len(searched.metrics) > 1:
        front = trials_table(front_of(searched.trials, searched.directions), searched.metrics, searched.runs)
        run.logger.log_table(front, "front.csv")


def _conclude(refitted: Refitted, run: Recorder) -> None:
    """Log and print what came out.

    Raises
    ------
    TrainingError
        If fits have failed.
    """
    searched, effort = refitted.searched, refitted.searched.effort
    measured: dict[str, float] = {"sweep/n_complete": effort.n_complete, "sweep/n_pruned": effort.n_pruned}
    if effort.n_epochs:
        measured |= {"sweep/n_epochs": effort.n_epochs, "sweep/epochs_saved": effort.saved}
    text = ""
    if refitted.results.repeats:
        material = log_sweep_report(refitted, run.logger)
        said = sentences(searched, material)
        text = "\n\n".join(said)
        if (optimism := refitted.optimism(material)) is not None:
            measured["sweep/optimism"] = optimism
    run.logger.log_metrics(measured, step=0)
    facts: dict[str, str] = {"trials (pruned)": f"{effort.n_complete + effort.n_pruned} ({effort.n_pruned})"}
    for metric, value in zip(searched.scored_by, searched.best.values, strict=True):
        facts[f"best {searched.of_whom} {metric.title}"] = f"{value:.4f}"
    facts |= {name: _text(value) for name, value in searched.best.overrides.items()}
    run.logger.set_description(describe("Sweep", facts) + f"\n{text}\n\n{' '.join(effort_text(searched))}")
    print(f"\n{text}\n", flush=True)
    if missing := refitted.results.missing:
        listed = "\n".join(f"- {label}: {reason}" for label, reason in missing.items())
        raise TrainingError(
            f"{len(missing)} fits have no result; start the sweep again to try them once more:\n{listed}"
        )


def _text(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
