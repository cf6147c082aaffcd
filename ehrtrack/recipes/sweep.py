"""A sweep: Optuna searches settings by validation C-index, or AUROC; no trial looks at the test subjects."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import optuna

from ehrtrack.config import RunConfig, check_objective, override, to_toml
from ehrtrack.data.events import fingerprint_of
from ehrtrack.errors import ConfigError, TrackingError
from ehrtrack.evaluation.metric_table import Metric, chosen_by
from ehrtrack.home import make_cache
from ehrtrack.pipeline.inputs import differences, input_fingerprints, pin_base
from ehrtrack.pipeline.labels import value_text
from ehrtrack.pipeline.prepare import has_classes, settle
from ehrtrack.pipeline.record import claim_record, is_there
from ehrtrack.pipeline.run import Place, RecipeResult, Recorder, describe, open_run
from ehrtrack.recipes.finetune import finetune
from ehrtrack.recipes.resume import resume
from ehrtrack.runlog import KEPT, VALIDATION
from ehrtrack.search import DEATHS, SLOT, Best, Worker, best_of, shared_storage, suggest, trials_of, trials_table
from ehrtrack.search_space import Scalar
from ehrtrack.tracking.client.connection import ui_command
from ehrtrack.tracking.client.queries import RunRecord, get_run, list_artifacts, metric_history, search_runs
from ehrtrack.tracking.names import STOPPED
from ehrtrack.tracking.outbox.sender import is_offline
from ehrtrack.tracking.outbox.sync import send_left_behind
from ehrtrack.tracking.run import JOURNALS
from ehrtrack.training.ranks import join_ranks
from ehrtrack.training.stopping import TrainingStopped

SECTIONS = ("study", "data", "cohort", "model", "objective", "strategy", "init", "train", "search", "runtime")
INPUTS = "inputs"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Sweep:
    """A sweep as one of its workers sees it.

    Attributes
    ----------
    config : with its base pinned; what ``best.toml`` is made of, for any machine
    settled : with this machine's threads
    inputs : fingerprints by name
    metric : that trials are scored by, on validation subjects
    """

    config: RunConfig
    settled: RunConfig
    inputs: Mapping[str, str]
    worker: Worker
    metric: Metric

    @property
    def n_trials(self) -> int:
        """The budget of all workers together."""
        return self.config.search.n_trials

    @property
    def values(self) -> str:
        """The name under which the sweep's run logs the score of each trial."""
        return f"sweep/{self.metric.key}"

    @property
    def record(self) -> str:
        """The claim of the one who keeps the sweep's run; what is noted there is the run's id."""
        return f"record of {self.n_trials} trials"

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials of the budget so far."""
        return trials_of(self.worker.study, n_trials=self.n_trials)


def sweep(config: RunConfig) -> RecipeResult:
    """Try settings, then fit the best once more as a run that is evaluated and logged like any other.

    The same configuration over the same inputs continues the study; started several times at once, on machines that
    see the cache folder, all take trials of it, and one keeps the record: the run that the trials are nested under and
    that holds ``best.toml``, the best configuration. A sweep that is done is told, and not done again.

    Raises
    ------
    EhrtrackError
        If the configuration, the data or the tracking server cannot be used, or no trial ran to its end.
    """
    check_objective(config, "outcome")
    if join_ranks(config.runtime.device).count > 1:
        raise ConfigError("a sweep is one process; start it several times, and all take trials of the same study")
    make_cache(config.runtime.cache)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what becomes of a trial is told here
    config = pin_base(config)
    settled = settle(config)  # here, so that trials do not each look for free cores
    config, settled = (_without_unknown(one, settled) for one in (config, settled))
    inputs = input_fingerprints(settled)
    metric = chosen_by({"classes"} if has_classes(settled) else {"survival"})
    sweep = Sweep(config, settled, inputs, _join(settled, inputs), metric)
    with sweep.worker.claims.renewed():
        return _take_part(sweep)


def _without_unknown(config: RunConfig, settled: RunConfig) -> RunConfig:
    """The configuration without what is searched where nothing was asked for, if the labels' objective has it not."""
    if "parameters" in config.search.model_fields_set:
        return config
    known, section = type(settled.objective).model_fields, "objective."
    kept = {
        name: values
        for name, values in config.search.parameters.items()
        if not name.startswith(section) or name.removeprefix(section) in known
    }
    if len(kept) == len(config.search.parameters):
        return config
    return config.model_copy(update={"search": config.search.model_copy(update={"parameters": kept})})


def _join(config: RunConfig, inputs: Mapping[str, str]) -> Worker:
    """Begin or join the study of these settings and inputs; where it runs, and for how many trials, does not matter."""
    storage = shared_storage(config.runtime.storage, config.runtime.cache)
    settings = config.identity(without=("runtime", "registry", "compare", "sensitivity", "negative_controls"))
    for name in ("n_trials", "heartbeat_seconds", "max_retries"):
        del settings["search"][name]
    del settings["init"]["run"]  # its meaning is among the inputs
    like = f"{config.study}-{fingerprint_of(settings)}"
    name = f"{like}-{fingerprint_of(dict(inputs))}"
    before = [s for s in optuna.get_all_study_summaries(storage) if s.study_name.startswith(f"{like}-")]
    if before and name not in {summary.study_name for summary in before}:
        changed = differences(before[-1].user_attrs.get(INPUTS, {}), inputs)
        print(f"the inputs changed since the last sweep with these settings: {changed}; a new study begins", flush=True)
    worker = Worker(config.search, name=name, storage=storage, seed=config.runtime.seed)
    worker.study.set_user_attr(INPUTS, dict(inputs))
    return worker


def _take_part(sweep: Sweep) -> RecipeResult:
    """Keep the record if nobody does; else run trials for the one who does, and see whether that one still lives."""
    claims, has_helped = sweep.worker.claims, False
    while True:
        standing = claims.look(sweep.record)
        if standing.is_done:
            return _told(sweep, standing.note)
        if claims.take(sweep.record):
            return _keep_record(sweep, standing.note)
        if has_helped and standing.is_held:
            print(f"no trial is left for this worker; another one keeps the record, run {standing.note}", flush=True)
            return _run_of(standing.note)
        if standing.note:
            sweep.worker.run(_objective(sweep, standing.note))
            has_helped = True
        else:  # the other one is about to open its run
            time.sleep(_POLL_SECONDS)


def _told(sweep: Sweep, run_id: str) -> RecipeResult:
    best = best_of(sweep.trials())
    print(
        f"this sweep of {sweep.n_trials} trials is done: run {run_id}, best validation {sweep.metric.title} "
        f"{best.value:.4f} with {best.overrides}; ask for more with search.n_trials",
        flush=True,
    )
    return _run_of(run_id)


def _run_of(run_id: str) -> RecipeResult:
    if is_offline():
        return RecipeResult(run_id, "sweep", ui_command(None).url, {})
    record = get_run(run_id)
    return RecipeResult(run_id, "sweep", ui_command(record.experiment_id, run_id=run_id).url, record.metrics)


def _keep_record(sweep: Sweep, begun: str) -> RecipeResult:
    """Run trials under a run of one's own, or the one that a worker before had begun, and fit the best in the end."""
    claims = sweep.worker.claims
    try:
        begun = begun if begun and is_there(begun, "sweep") else ""
        resumption = claim_record(begun, sweep.settled.runtime.cache) if begun else None
        if begun and resumption is None:  # its worker died after its last record
            claims.finish(sweep.record)
            return _told(sweep, begun)
        with open_run(sweep.settled, kind="sweep", sections=SECTIONS, name="sweep", resume=resumption) as run:
            claims.leave_note(sweep.record, run.logger.reference)
            run.logger.set_tags({f"fingerprint.{name}": value for name, value in sweep.inputs.items()})
            result = _search_and_fit(sweep, run, resumed_run_id=resumption.run_id if resumption else None)
        claims.finish(sweep.record)
    except BaseException:
        claims.release(sweep.record)
        raise
    return result


def _search_and_fit(sweep: Sweep, run: Recorder, *, resumed_run_id: str | None) -> RecipeResult:
    parent = run.logger.reference
    print(f"{sweep.worker.n_done} of {sweep.n_trials} trials are done", flush=True)
    sweep.worker.run(_objective(sweep, parent), waits=True)
    trials = sweep.trials()
    best = best_of(trials)
    sweep.worker.claims.hold(sweep.record)
    _log_trials(run, trials, sweep.values, resumed_run_id=resumed_run_id)
    run.logger.log_text(to_toml(override(sweep.config, best.overrides)), "best.toml")
    print(f"\nbest of {len(trials)} trials: {best.overrides}; fitting it for the record", flush=True)
    final = _fit_best(sweep, best, parent)
    sweep.worker.claims.hold(sweep.record)
    n_pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in trials)
    facts = {
        "trials (pruned)": f"{len(trials)} ({n_pruned})",
        f"best validation {sweep.metric.title}": f"{best.value:.4f}",
        "best run": final.run_id,
    }
    run.logger.set_description(describe("Sweep", facts | {name: value_text(v) for name, v in best.overrides.items()}))
    return run.finished(run.log_kept(sweep.metric, best.value))


def _log_trials(
    run: Recorder, trials: list[optuna.trial.FrozenTrial], values: str, *, resumed_run_id: str | None
) -> None:
    """All trials, whoever ran them; of a resumed run, those values that it does not have yet."""
    run.logger.log_table(trials_table(trials), "trials.csv")
    there = metric_history(resumed_run_id, values) if resumed_run_id else {}
    for trial in trials:
        if trial.state == optuna.trial.TrialState.COMPLETE and trial.user_attrs[SLOT] not in there:
            run.logger.log_metrics({values: float(trial.value or 0.0)}, step=trial.user_attrs[SLOT])


def _objective(sweep: Sweep, parent_run_id: str) -> Callable[[optuna.Trial], float]:
    """Fits a trial's settings as a child run, and gives its validation score."""

    def run_trial(trial: optuna.Trial) -> float:
        overrides = suggest(trial, sweep.config.search.parameters)
        print(f"\ntrial {trial.user_attrs[SLOT] + 1} of {sweep.n_trials}: {overrides}", flush=True)
        ended = _ended_before(sweep, trial, overrides, parent_run_id)
        if ended is not None:
            return _told_by(ended, trial, sweep.metric)

        def prune(epoch: int, metrics: dict[str, float]) -> None:
            trial.report(metrics[sweep.metric.named(VALIDATION)], epoch)
            if trial.should_prune():
                raise TrainingStopped(f"pruned after epoch {epoch}: below the median of the trials before")

        try:
            child = finetune(
                override(sweep.settled, overrides),
                on_epoch=prune,
                is_trial=True,
                place=Place(parent_run_id, name=f"sweep · trial {trial.user_attrs[SLOT] + 1}", is_quiet=True),
            )
        except TrainingStopped as stop:
            raise optuna.TrialPruned(str(stop)) from stop
        return child.metrics[sweep.metric.named(KEPT)]

    return run_trial


def _ended_before(
    sweep: Sweep, trial: optuna.Trial, overrides: Mapping[str, Scalar], parent_run_id: str
) -> RunRecord | None:
    """The run of a trial that was cut off between the run's last record and its own, so that it is not made twice."""
    if DEATHS not in trial.user_attrs or is_offline():
        return None
    wanted = {name: str(value) for name, value in overrides.items()}
    study, journals = sweep.config.study, sweep.settled.runtime.cache / JOURNALS
    for record in search_runs(study, kinds=["trial"], status=None, params=wanted, parent_run_id=parent_run_id):
        try:
            send_left_behind(journals, record.run_id, attempt=0)
        except TrackingError as error:
            print(f"run {record.run_id} of this trial cannot be looked at: {error}", flush=True)
            continue
        now = get_run(record.run_id)
        if now.status == "FINISHED":
            print(f"run {now.run_id} of this trial had ended well", flush=True)
            return now
    return None


def _told_by(ended: RunRecord, trial: optuna.Trial, metric: Metric) -> float:
    """What a trial's run tells of it: the score of each epoch, and its best, or that it was pruned."""
    for epoch, value in metric_history(ended.run_id, metric.named(VALIDATION)).items():
        trial.report(value, epoch)
    if STOPPED in ended.tags:
        raise optuna.TrialPruned(ended.tags[STOPPED])
    return ended.metrics[metric.named(KEPT)]


def _fit_best(sweep: Sweep, best: Best, parent_run_id: str) -> RecipeResult:
    """The best settings as a run of their own: once, also if a worker before began with it."""
    config = override(sweep.settled, best.overrides)
    begun = (
        [] if is_offline() else search_runs(config.study, kinds=["finetune"], status=None, parent_run_id=parent_run_id)
    )
    for cut_off in reversed(begun):
        # what it is to be resumed from may still be here
        send_left_behind(config.runtime.cache / JOURNALS, cut_off.run_id, attempt=cut_off.attempt)
        record = get_run(cut_off.run_id)
        if record.status == "FINISHED":
            return RecipeResult(record.run_id, record.kind, ui_command(None).url, record.metrics)
        if "run_config.json" in list_artifacts(record.run_id):
            return resume(record.run_id, is_forced=True)
        print(
            f"run {record.run_id} was cut off before there was anything to resume from; the best is fitted anew",
            flush=True,
        )
    return finetune(config, place=Place(parent_run_id))
