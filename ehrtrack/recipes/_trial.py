"""One trial of a sweep: its settings fitted once, or once a fold, and scored on subjects who did not train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import optuna

from ehrtrack.config import RunConfig
from ehrtrack.data.events import fingerprint_of
from ehrtrack.evaluation.metric_table import Metric
from ehrtrack.pipeline.run import Place, RecipeResult
from ehrtrack.recipes._cell import Once
from ehrtrack.recipes._terminal import LogOf
from ehrtrack.recipes.baseline import baseline
from ehrtrack.recipes.finetune import finetune
from ehrtrack.reporting.sweep import settings_text
from ehrtrack.runlog import KEPT, VALIDATION
from ehrtrack.search.drawing import suggest
from ehrtrack.search.outcome import DEATHS, DRAW, SLOT
from ehrtrack.search.worker import report
from ehrtrack.search_space import Range, Scalar, SearchConfig
from ehrtrack.study.values import applies, scalar_at, with_values
from ehrtrack.tracking.client.queries import RunRecord, get_run, metric_history
from ehrtrack.tracking.names import CELL, STOPPED, TRIAL, TRIAL_STATE
from ehrtrack.training.stopping import TrainingStopped

FOLD = "data.fold"


@dataclass
class TrialRunner:
    """What runs trials under a sweep's run.

    Attributes
    ----------
    config : with its base pinned, and this machine's threads
    sweep : the name of the sweep in the database
    metrics : that trials are scored by
    parent_run_id : the sweep's own run
    log_of : within which a trial is run
    """

    config: RunConfig
    sweep: str
    metrics: tuple[Metric, ...]
    parent_run_id: str
    log_of: LogOf
    _finished: list[dict[str, float]] = field(default_factory=list)

    @property
    def search(self) -> SearchConfig:
        """What is searched."""
        return self.config.search

    @property
    def folds(self) -> list[str]:
        """As `data.fold` has them; one without a name where trials are scored on the validation subjects."""
        return [f"{n}/{self.search.folds}" for n in range(1, self.search.folds + 1)] or [""]

    def __call__(self, trial: optuna.Trial) -> float | list[float]:
        """Fit a trial's settings as child runs; gives its scores.

        Raises
        ------
        TrialPruned
            If it lags behind the others.
        """
        values = self.draw(trial)
        number, text = trial.user_attrs[SLOT] + 1, settings_text(values) or "defaults"
        label = f"trial {number} · {text}"
        with self.log_of(label, fingerprint_of("trial", self.sweep, trial.user_attrs[SLOT], trial.user_attrs[DRAW])):
            print(f"\ntrial {number} of {self.search.n_trials}: {text}", flush=True)
            return self._scores(trial, values, label)

    def _scores(self, trial: optuna.Trial, values: Mapping[str, Scalar], label: str) -> float | list[float]:
        config, _ = with_values(self.config, values)
        self._finished = []
        for place, fold in enumerate(self.folds):
            of_fold = with_values(config, {FOLD: fold})[0] if fold else config
            self._finished.append(self._fit(trial, of_fold, place, label))
            is_last = place + 1 == len(self.folds)
            if self.search.recipe == "baseline" and self._report(trial, place, 0, {}, is_finished=True) and not is_last:
                raise optuna.TrialPruned(f"pruned after fold {fold}: it lags behind the trials before")
        means = [sum(of[metric.key] for of in self._finished) / len(self._finished) for metric in self.metrics]
        return means if len(means) > 1 else means[0]

    def draw(self, trial: optuna.Trial) -> dict[str, Scalar]:
        """The settings of a trial by dotted path."""
        space = self.search.parameters
        named = {path for parameter in space.values() for path in parameter.when}
        known = {path: value for path in named if (value := scalar_at(self.config, path)) is not None}
        return suggest(trial, space, known, applies=partial(applies, self.config))

    def _fit(self, trial: optuna.Trial, config: RunConfig, place: int, name: str) -> dict[str, float]:
        """The scores of one fit by metric: of a run that was finished before, resumed, or begun."""
        fold = self.folds[place]
        facts = (trial.user_attrs[SLOT], trial.user_attrs[DRAW], fold)

        def on_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
            now = {metric.key: metrics[metric.named(VALIDATION)] for metric in self.metrics}
            if self._report(trial, place, epoch, now):
                raise TrainingStopped(f"pruned after epoch {epoch}: it lags behind the trials before")

        once = Once(
            key=fingerprint_of("trial", self.sweep, *facts),
            kind="trial",
            label=name,
            study=config.study,
            cache=config.runtime.cache,
            data=config.data.path,
            has_snapshots=self.search.recipe == "finetune",
            of_trial=on_epoch,
        )
        try:
            result = self._before(trial, once, place) or self._begin(config, once, trial, fold)
        except TrainingStopped as stop:
            raise optuna.TrialPruned(str(stop)) from stop
        if any(metric.named(KEPT) not in result.metrics for metric in self.metrics):  # its journal had the end
            return self._told_by(get_run(result.run_id), trial, place)
        return {metric.key: result.metrics[metric.named(KEPT)] for metric in self.metrics}

    def _begin(self, config: RunConfig, once: Once, trial: optuna.Trial, fold: str) -> RecipeResult:
        tags = {CELL: once.key, TRIAL: str(trial.user_attrs[SLOT] + 1), TRIAL_STATE: "running"}
        name = once.label.replace(" · ", f" · fold {fold} · ", 1) if fold else once.label
        place = Place(self.parent_run_id, name=name, tags=tags, is_quiet=True)
        if self.search.recipe == "baseline":
            return baseline(config, is_trial=True, place=place)
        return finetune(config, on_epoch=once.of_trial, is_trial=True, place=place)

    def _before(self, trial: optuna.Trial, once: Once, place: int) -> RecipeResult | None:
        """What a worker before, which was cut off with this trial, had begun."""
        if DEATHS not in trial.user_attrs:
            return None
        begun = once.sent()
        for record in begun:
            if record.status == "FINISHED":
                print(f"run {record.run_id} of this trial had ended well", flush=True)
                scores = self._told_by(record, trial, place)
                named = {metric.named(KEPT): scores[metric.key] for metric in self.metrics}
                return RecipeResult(record.run_id, record.kind, "", named)
        return once.go_on(begun)

    def _told_by(self, ended: RunRecord, trial: optuna.Trial, place: int) -> dict[str, float]:
        """What a trial's run tells of it: the score of each epoch, and its best, or that it was pruned."""
        if self.search.recipe == "finetune":
            for epoch, value in sorted(metric_history(ended.run_id, self.metrics[0].named(VALIDATION)).items()):
                self._report(trial, place, epoch, {self.metrics[0].key: value})
        if STOPPED in ended.tags:
            raise optuna.TrialPruned(ended.tags[STOPPED])
        return {metric.key: ended.metrics[metric.named(KEPT)] for metric in self.metrics}

    def _report(
        self, trial: optuna.Trial, place: int, epoch: int, now: Mapping[str, float], *, is_finished: bool = False
    ) -> bool:
        """Tell the first score, the mean over the folds so far; returns whether the trial is to be stopped."""
        if len(self.metrics) > 1:
            return False
        key = self.metrics[0].key
        of_folds = [of[key] for of in self._finished] + ([] if is_finished else [now[key]])
        is_new = report(trial, sum(of_folds) / len(of_folds), place * self._stride + epoch)
        return is_new and trial.should_prune()

    @property
    def _stride(self) -> int:
        """The most epochs of a fit, so that each epoch of each fold is a step of its own."""
        return 1 + max(self._epochs())

    def _epochs(self) -> Iterator[int]:
        yield 0 if self.search.recipe == "baseline" else self.config.train.epochs
        searched = self.search.parameters.get("train.epochs")
        if searched is not None:
            yield from [int(searched.high)] if isinstance(searched, Range) else [int(of) for of in searched.choices]
