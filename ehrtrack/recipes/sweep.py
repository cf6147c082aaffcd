"""A sweep: Optuna searches settings by validation C-index; no trial looks at the test subjects."""

from __future__ import annotations

import optuna

from ehrtrack.config import RunConfig, override, to_toml
from ehrtrack.data.events import fingerprint_of
from ehrtrack.errors import ConfigError
from ehrtrack.recipes._prepare import settle
from ehrtrack.recipes._run import Run, describe, open_run
from ehrtrack.recipes.finetune import finetune
from ehrtrack.search import (
    best_overrides,
    n_done,
    open_study,
    run_trials,
    study_storage,
    suggest,
    trials_table,
)
from ehrtrack.training.loop import TrainingStopped
from ehrtrack.training.ranks import join_ranks

SECTIONS = ("study", "data", "cohort", "model", "objective", "strategy", "init", "train", "search", "runtime")


def sweep(config: RunConfig) -> Run:
    """Try settings, then fit the best once more as a run that is evaluated and logged like any other.

    The same configuration started again, or on another machine that sees the cache folder, continues the study.
    Each trial is a child run; ``best.toml`` holds the best configuration.

    Raises
    ------
    EhrtrackError
        If the configuration, the data or the tracking server cannot be used, or no trial ran to its end.
    """
    if join_ranks(config.runtime.device).count > 1:
        raise ConfigError("a sweep is one process; start it several times, and all take trials of the same study")
    storage = study_storage(
        config.runtime.cache / "sweeps.db",
        heartbeat_seconds=config.search.heartbeat_seconds,
        max_retries=config.search.max_retries,
    )
    study = open_study(config.search, name=_study_name(config), storage=storage, seed=config.runtime.seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settled = settle(config)  # here, so that trials do not each look for free cores
    with open_run(settled, kind="sweep", sections=SECTIONS, name="sweep") as run:
        print(f"{n_done(study)} of {config.search.n_trials} trials are done", flush=True)

        def run_trial(trial: optuna.Trial) -> float:
            overrides = suggest(trial, config.search.parameters)
            print(f"\ntrial {trial.number}: {overrides}", flush=True)

            def prune(epoch: int, metrics: dict[str, float]) -> None:
                trial.report(metrics["val/c_index"], epoch)
                if trial.should_prune():
                    raise TrainingStopped(f"pruned after epoch {epoch}: below the median of the trials before")

            try:
                child = finetune(
                    override(settled, overrides),
                    on_epoch=prune,
                    is_trial=True,
                    parent_run_id=run.logger.run_id,
                )
            except TrainingStopped as stop:
                raise optuna.TrialPruned(str(stop)) from stop
            run.logger.log_metrics({"sweep/c_index": child.metrics["kept/c_index"]}, step=trial.number)
            return child.metrics["kept/c_index"]

        run_trials(study, run_trial, n_trials=config.search.n_trials)
        best = best_overrides(study)
        run.logger.log_table(trials_table(study), "trials.csv")
        run.logger.log_text(to_toml(override(config, best)), "best.toml")  # for any machine: without this one's threads
        print(
            f"\nbest of {len(study.trials)} trials: {best}; fitting it for the record",
            flush=True,
        )
        final = finetune(override(settled, best), parent_run_id=run.logger.run_id)
        n_pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)
        run.logger.set_description(
            describe(
                "Sweep",
                {
                    "trials (pruned)": f"{len(study.trials)} ({n_pruned})",
                    "best validation C-index": f"{study.best_value:.4f}",
                    "best run": final.run_id,
                }
                | {name: str(value) for name, value in best.items()},
            )
        )
        return run.finished(run.log_kept(study.best_value))


def _study_name(config: RunConfig) -> str:
    """The same settings make the same study; where it runs, and for how many trials, does not matter."""
    settings = config.model_dump(mode="json", exclude={"runtime", "registry", "frontier"})
    del settings["search"]["n_trials"]
    return f"{config.study}-{fingerprint_of(settings)}"
