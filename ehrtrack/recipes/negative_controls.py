"""Negative controls: small twins of a fine-tuning run that have to come out as nothing, as the same, and as perfect."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from ehrtrack.arrays import Floats
from ehrtrack.config import RunConfig, check_objective
from ehrtrack.data.cohort import Cohort, build_cohort
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.settings import CohortConfig
from ehrtrack.data.split_rules import write_split
from ehrtrack.data.split_settings import DatasetSplit
from ehrtrack.data.twins import Change, leak_edges, planted_leak, scrambled_future, unchanged, write_twin
from ehrtrack.errors import ConfigError, DataError, NotMeasurable
from ehrtrack.evaluation.metric_table import Metric, chosen_by
from ehrtrack.files import scratch_folder
from ehrtrack.home import make_cache
from ehrtrack.models.behrt import ModelConfig
from ehrtrack.objectives.base import Predictions
from ehrtrack.pipeline.build import Adaptation, adapt, read_base
from ehrtrack.pipeline.fit import feed, with_features
from ehrtrack.pipeline.model_folder import ModelFolder
from ehrtrack.pipeline.prepare import (
    CohortRecords,
    check_base_split,
    check_same_reading,
    check_validation,
    prepare_cohort,
    seed_everything,
    settle,
)
from ehrtrack.pipeline.report import conclude
from ehrtrack.pipeline.run import RecipeResult, describe, open_run
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.strategies.settings import ScratchConfig
from ehrtrack.survival.bootstrap import c_index_interval
from ehrtrack.survival.classes import Classes, auroc_interval
from ehrtrack.survival.resampling import Interval
from ehrtrack.tracking.names import CONTROLS
from ehrtrack.training import sanity
from ehrtrack.training.loop import TrainConfig, fit
from ehrtrack.training.ranks import Ranks, join_ranks
from ehrtrack.training.ridge_head import solve_head
from ehrtrack.training.sanity import Verdict

SECTIONS = (
    "study",
    "data",
    "cohort",
    "model",
    "objective",
    "strategy",
    "init",
    "train",
    "negative_controls",
    "runtime",
)
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Twin:
    """A twin that was trained.

    Attributes
    ----------
    records : what it was trained on
    """

    config: RunConfig
    records: CohortRecords
    adapted: Adaptation
    ranks: Ranks

    def predict(self, records: CohortRecords) -> Predictions:
        """Of the test subjects of some records."""
        batches = feed(self.config, records, self.adapted.model, self.adapted.objective, self.ranks)
        return self.adapted.objective.predict(self.adapted.model, batches.split("test"), self.ranks.device)

    def score(self, *, level: float = 0.95) -> Interval:
        """C-index of the risk at the horizon, or AUROC, for its own test subjects."""
        return self._interval(self.predict(self.records).risk, level)

    def score_of_time(self) -> Interval:
        """Of the mean days lost up to the horizon, the area over S(t): it orders those who all have a risk of 1."""
        survival = self.predict(self.records).survival
        lost = np.asarray(np.trapezoid(1 - survival, self.adapted.objective.grid.edges_days, axis=1))
        return self._interval(lost, 0.95)

    def _interval(self, risk: Floats, level: float) -> Interval:
        outcomes = self.records.outcomes[self.records.rows["test"]]
        days, event, seed = outcomes.follow_up_days, outcomes.is_event, self.config.runtime.seed
        if self.records.cohort.has_classes:
            return auroc_interval(Classes(risk, event), n_resamples=N_RESAMPLES, level=level, seed=seed)
        return c_index_interval(risk, days, event, n_resamples=N_RESAMPLES, level=level, seed=seed)


def negative_controls(config: RunConfig) -> RecipeResult:
    """Train the twins of a fine-tuning run, and tag what they say of it as ``sanity.control_*``.

    The permuted and the future-masked twin are of the run's own strategy and base. The planted-leak twin is new and
    small: a pretrained base does not know the planted codes, and what is plain needs no large encoder.

    Raises
    ------
    EhrtrackError
        If the configuration, the data or the tracking server cannot be used.
    DataError
        After the run is written: if a control failed.
    """
    ranks = join_ranks(config.runtime.device)
    check_objective(config, "outcome")
    config = settle(config)
    base, config = read_base(config)
    if config.cohort is None:
        raise ConfigError("negative controls need a [cohort]: they are twins of a fine-tuning run")
    dataset = open_dataset(config.data.path)
    if base is not None:
        is_same_data = base.fingerprints["data"] == dataset.fingerprint()
        check_same_reading(config.data, base.config.data, is_same_data=is_same_data)
    cohort = build_cohort(dataset, config.cohort, config.data.split, births=config.data.births)
    if base is not None:
        check_base_split(dataset, cohort, config.data.split, base.fingerprints)
    cohort = _sample(cohort, config)
    with (
        open_run(config, kind=CONTROLS, sections=SECTIONS, name="negative controls") as run,
        _work_folder(config) as folder,
    ):
        twins = Twins(_inside(config, folder), dataset, cohort, base, ranks, folder)
        as_is, with_leak = twins.records("plain", unchanged), twins.records("planted", twins.leak, is_new=True)
        plain, permuted = twins.train(as_is), twins.train(_permuted(as_is))
        planted = twins.train(with_leak, is_new=True)
        of_plain, of_permuted, of_planted = plain.score(), permuted.score(), planted.score_of_time()
        metric = chosen_by({plain.adapted.objective.task})
        verdicts = [
            sanity.permuted_labels(of_permuted, permuted.score(level=sanity.SURE), metric.title),
            _judge_future(plain, twins.records("future", scrambled_future)),
            sanity.planted_leak(of_planted, metric.title),
        ]
        metrics = (
            of_plain.to_metrics(f"negative_controls/as_is_{metric.key}")
            | of_permuted.to_metrics(f"negative_controls/permuted_{metric.key}")
            | of_planted.to_metrics(f"negative_controls/planted_{metric.key}")
        )
        run.logger.log_metrics(metrics, step=0)
        conclude(run.logger, _summary(config, as_is, of_plain, metric), verdicts)
        finished = run.finished(metrics)
    _require_none_failed(verdicts)
    return finished


@dataclass(frozen=True)
class Twins:
    """Makes twins: of the run's strategy and base, or new, which is from scratch.

    Attributes
    ----------
    config : with a cache of its own
    cohort : the sampled subjects
    """

    config: RunConfig
    dataset: MedsDataset
    cohort: Cohort
    base: ModelFolder | None
    ranks: Ranks
    folder: Path

    @property
    def labels(self) -> pl.DataFrame:
        """The cohort's index dates and outcomes."""
        columns = {"prediction_time": "index_date", "follow_up_days": "follow_up_days", "is_event": "is_event"}
        return self.cohort.subjects.select("subject_id", **columns)

    @property
    def leak(self) -> Change:
        """Plants the outcome among the events before it."""
        return partial(planted_leak, edges_days=leak_edges(self.labels))

    def records(self, name: str, change: Change, *, is_new: bool = False) -> CohortRecords:
        """The sampled subjects with changed events, and the labels of the cohort."""
        folder, has_classes = self.folder / name, self.cohort.has_classes
        write_twin(self.dataset, self.labels, folder, change)
        written = self.labels
        if has_classes:
            written = written.select("subject_id", "prediction_time", boolean_value="is_event")
        written.write_parquet(folder / "labels.parquet")
        write_split(folder, self.cohort.subjects)
        data = self.config.data.model_copy(update={"path": folder, "split": DatasetSplit(rule="dataset")})
        cohort = CohortConfig(
            labels=folder / "labels.parquet",
            horizon_days=None if has_classes else self.cohort.horizon_days,
            min_followed_share=0,  # the whole cohort is followed to it
        )
        config = self.config.model_copy(update={"data": data, "cohort": cohort})
        return prepare_cohort(config, None if is_new or self.base is None else self.base.vocabulary)

    def train(self, records: CohortRecords, *, is_new: bool = False) -> Twin:
        """A model of these records, after as many epochs as negative controls have."""
        config, base, ranks = self.config, self.base, self.ranks
        if is_new:
            config, base = _quick_learner(config), None
        seed_everything(config.runtime)
        adapted = adapt(config, records, base, ranks)
        check_validation(records, adapted.objective.rehearse)
        _check_test(records)
        batches = feed(config, records, adapted.model, adapted.objective, ranks)
        if adapted.keeps_states:
            batches = with_features(batches, adapted.plain, ranks)
        if adapted.strategy.solves_head:
            training, validation = (batches.split(split) for split in ("train", "validation"))
            solve_head(adapted.plain, adapted.objective, training=training, validation=validation)
            return Twin(config, records, adapted, ranks)
        with tempfile.TemporaryDirectory(dir=self.folder) as checkpoints:
            fit(
                *(adapted.model, adapted.objective),
                training=batches.epoch,
                validation=batches.split("validation"),
                config=config.train,
                ranks=ranks,
                folder=Path(checkpoints),
                logger=MemoryRunLogger(),
            )
        return Twin(config, records, adapted, ranks)


def _sample(cohort: Cohort, config: RunConfig) -> Cohort:
    """Some subjects of the cohort, as many as the controls are to have, each at its last index date.

    What a twin hides after one index date, or plants before it, would be the past of a later one.
    """
    if cohort.has_several_times:
        last = cohort.subjects.unique("subject_id", keep="last", maintain_order=True)
        print(
            f"negative controls: {last.height:,} of {cohort.subjects.height:,} rows, the last of each subject",
            flush=True,
        )
        cohort = replace(cohort, subjects=last)
    n = config.negative_controls.n_subjects
    if not 0 < n < cohort.subjects.height:
        return cohort
    return replace(cohort, subjects=cohort.subjects.sample(n, seed=config.runtime.seed).sort("subject_id"))


@contextmanager
def _work_folder(config: RunConfig) -> Iterator[Path]:
    """A folder in the cache, where records may lie, that is gone afterwards."""
    make_cache(config.runtime.cache)
    with scratch_folder(config.runtime.cache, "controls-") as folder:
        yield folder


def _inside(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration of twins: few epochs, and everything they keep in a folder that goes away."""
    epochs = config.negative_controls.epochs
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"epochs": epochs, "patience": epochs}),
            "runtime": config.runtime.model_copy(update={"cache": folder / "cache"}),
        }
    )


def _quick_learner(config: RunConfig) -> RunConfig:
    """A small encoder, new, on short records: what is plain is learned in seconds, whatever the run's own size."""
    steps = {"epochs": config.negative_controls.leak_epochs, "patience": config.negative_controls.leak_epochs}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"max_tokens": 24}),
            "model": ModelConfig(size="tiny", dropout=0),
            "strategy": ScratchConfig(),
            "train": TrainConfig(**steps, lr=1e-2, batch_tokens=256),
        }
    )


def _permuted(records: CohortRecords) -> CohortRecords:
    """The outcomes dealt out among the subjects of each split."""
    order = np.arange(len(records.store))
    for rows in records.rows.values():
        order[rows] = np.random.default_rng(0).permutation(rows)
    return replace(records, outcomes=records.outcomes[order])


def _judge_future(twin: Twin, other: CohortRecords) -> Verdict:
    cutoffs = twin.records.cohort.cutoffs.lazy()
    events = twin.records.dataset.scan().join(cutoffs, on="subject_id")
    n_changed = events.filter(pl.col("time") > pl.col("cutoff")).select(pl.len()).collect().item()
    is_same = other.vocabulary == twin.records.vocabulary
    risk = twin.predict(twin.records).risk
    return sanity.scrambled_future(risk, twin.predict(other).risk if is_same else None, n_changed=n_changed)


def _check_test(records: CohortRecords) -> None:
    """Make sure before training that the verdicts of the controls, which are intervals, will have one."""
    outcomes = records.outcomes[records.rows["test"]]
    try:
        c_index_interval(np.zeros(len(outcomes.is_event)), outcomes.follow_up_days, outcomes.is_event)
    except NotMeasurable as reason:
        raise DataError(
            f"negative controls are judged on the {len(outcomes.is_event)} test subjects, who have "
            f"{outcomes.is_event.sum()} events: {reason}; raise negative_controls.n_subjects, or change data.split"
        ) from reason


def _summary(config: RunConfig, records: CohortRecords, score: Interval, metric: Metric) -> str:
    return describe(
        f"Negative controls of {config.strategy.name} fine-tuning of a {config.model.title} encoder",
        {
            "subjects (train, validation, test)": ", ".join(f"{len(rows):,}" for rows in records.rows.values()),
            "epochs": str(config.negative_controls.epochs),
            f"test {metric.title} of the twin with nothing changed": str(score),
            "pretrained by run": config.init.run or "none",
        },
    )


def _require_none_failed(verdicts: list[Verdict]) -> None:
    failed = [f"{v.check}: {v.reason}" for v in verdicts if v.state == "fail"]
    if failed:
        raise DataError(
            f"{len(failed)} of {len(verdicts)} negative controls failed; do not trust runs of this configuration until "
            f"it is known why. {'; '.join(failed)}"
        )
