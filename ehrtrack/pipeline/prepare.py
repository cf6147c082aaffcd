"""Make token stores with their splits from a dataset: the steps that all recipes share."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
import torch

from ehrtrack import plugins
from ehrtrack.arrays import Ints
from ehrtrack.config import RunConfig, RuntimeConfig
from ehrtrack.data.cohort import Cohort, build_cohort
from ehrtrack.data.config import DataConfig
from ehrtrack.data.cutoffs import has_several
from ehrtrack.data.drift import Seen, events_by_token
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.fitting import count_tokens, coverage, fit_vocabulary, share_known
from ehrtrack.data.folds import in_fold
from ehrtrack.data.labels import tells_when
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.data.shards import ShardSlice, ShardWork, open_work
from ehrtrack.data.split_rules import n_read_in_pretraining, settle_split, table_fingerprint
from ehrtrack.data.split_settings import Split, TimeSplit
from ehrtrack.data.splits import SPLITS
from ehrtrack.data.store import TokenStore, build_store, tokenise_slice
from ehrtrack.data.vocabulary import Vocabulary
from ehrtrack.errors import ConfigError, DataError, NotMeasurable
from ehrtrack.models.code_embeddings import FACTS_FILE, CodeEmbeddings
from ehrtrack.pipeline.pretraining_records import INDEX_DATES, pretraining_cutoffs
from ehrtrack.training.threads import free_threads, use_threads

SUBJECTS_AT_ONCE = 10_000
"""Subjects whose tokens are counted in one go: memory stays small however large the store."""

STORES = "stores"
"""Folder of the token stores in the cache."""

OBJECTIVES_OF_TIME = ("survival", "competing-risks")
"""Objectives that need to know when the outcome comes."""

SPLIT_TABLE = "split_table"
"""Among a run's fingerprints, that of the table that says who is in which split."""

LEAST_COVERAGE = 0.5
"""Share of training events that a base model's vocabulary has to know."""


@dataclass(frozen=True)
class Records:
    """Tokenised subjects and their split.

    Attributes
    ----------
    store : a row a subject, or where subjects have several prediction times a row each
    rows : rows of the store by split
    coverage : share of events that the vocabulary knows, by split
    seen : codes and values of the training subjects, to which those of later predictions are compared
    split_table : fingerprint of the table that says who is in which split, where one beside the events does
    index_dates : fingerprint of what pretraining did not read (`pretraining_cutoffs`); empty where it read all
    """

    dataset: MedsDataset
    vocabulary: Vocabulary
    store: TokenStore
    rows: dict[str, Ints]
    coverage: pl.DataFrame
    seen: Seen
    split_table: str
    index_dates: str = field(default="", kw_only=True)

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints, by name, of everything that these tokens were made from."""
        found = {
            "data": self.dataset.fingerprint(),
            "vocabulary": self.vocabulary.fingerprint,
            "store": self.store.fingerprint,
        }
        found |= {SPLIT_TABLE: self.split_table} if self.split_table else {}
        return found | ({INDEX_DATES: self.index_dates} if self.index_dates else {})

    def token_counts(self) -> Ints:
        """(V,) counts of each token among the training subjects."""
        is_training = np.zeros(len(self.store), dtype=bool)
        is_training[self.rows["train"]] = True
        counts = np.zeros(len(self.vocabulary), dtype=np.int64)
        for start in range(0, len(self.store), SUBJECTS_AT_ONCE):
            offsets = self.store.offsets[start : start + SUBJECTS_AT_ONCE + 1]
            counted = np.repeat(is_training[start : start + SUBJECTS_AT_ONCE], np.diff(offsets))
            counts += np.bincount(self.store.token[offsets[0] : offsets[-1]][counted], minlength=len(counts))
        return counts


@dataclass(frozen=True)
class CohortRecords(Records):
    """Tokenised subjects of a cohort, with their labels row for row."""

    cohort: Cohort
    outcomes: Outcomes

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints, by name, of everything that these tokens and labels were made from."""
        return super().fingerprints() | {"cohort": self.cohort.fingerprint}


def prepare_records(config: RunConfig) -> Records:
    """Records for pretraining: whole, or up to the index dates of a cohort; the vocabulary is fitted on the training
    subjects."""
    dataset = open_dataset(config.data.path)
    with _open_work(config.runtime) as work:
        cutoffs, index_dates = pretraining_cutoffs(config, dataset, work)
        records = _tokenise(_in_retrospect(config), dataset, cutoffs, None, work)
    return replace(records, index_dates=index_dates)


def prepare_cohort(config: RunConfig, vocabulary: Vocabulary | None = None) -> CohortRecords:
    """Histories up to the index date with their outcomes, for fine-tuning and baselines.

    Parameters
    ----------
    vocabulary : that of the pretrained model; None fits one on the training subjects' histories
    """
    dataset, cohort = _cohort(config)
    with _open_work(config.runtime) as work:
        records = _tokenise(config, dataset, cohort.cutoffs, vocabulary, work)
    outcomes = outcomes_of(cohort.subjects)
    if config.data.fold:
        cohort = in_fold(cohort, config.data.fold, config.data.split)
        split = cohort.subjects["split"].to_numpy()
        records = replace(records, rows={name: np.flatnonzero(split == name) for name in SPLITS})
    return CohortRecords(**vars(records), cohort=cohort, outcomes=outcomes)


def _in_retrospect(config: RunConfig) -> RunConfig:
    """The configuration for whole records, in which every event is known at its time."""
    return config.model_copy(update={"data": config.data.model_copy(update={"delay_hours": {}})})


def outcomes_of(subjects: pl.DataFrame) -> Outcomes:
    """The outcomes of a cohort, one for each row of its table."""
    cause = subjects["cause"].to_numpy().copy() if "cause" in subjects.columns else None
    subject = subjects["subject_id"].to_numpy().copy() if has_several(subjects) else None
    days, is_event = (subjects[name].to_numpy().copy() for name in ("follow_up_days", "is_event"))
    return Outcomes(days, is_event, cause, subject)


def _open_work(runtime: RuntimeConfig, part: ShardSlice = (1, 1)) -> AbstractContextManager[ShardWork]:
    return open_work(runtime.cache, engine=runtime.engine, n_workers=runtime.workers, part=part)


def tokenise_records(config: RunConfig, part: ShardSlice) -> TokenStore | None:
    """Tokenise the i-th of n slices of the shards for `prepare_records`; returns the store once no shard is missing."""
    config = _with_rule(config)
    dataset = open_dataset(config.data.path)
    with _open_work(config.runtime, part) as work:
        cutoffs, _ = pretraining_cutoffs(config, dataset, work)
        return _tokenise_slice(_in_retrospect(config), dataset, cutoffs, work)


def tokenise_cohort(config: RunConfig, part: ShardSlice) -> TokenStore | None:
    """Tokenise a slice as `tokenise_records` does, for `prepare_cohort` with a vocabulary of its own."""
    config = _with_rule(config)
    dataset, cohort = _cohort(config)
    with _open_work(config.runtime, part) as work:
        return _tokenise_slice(config, dataset, cohort.cutoffs, work)


def _tokenise_slice(
    config: RunConfig, dataset: MedsDataset, cutoffs: pl.DataFrame, work: ShardWork
) -> TokenStore | None:
    data, stores = config.data, config.runtime.cache / STORES
    vocabulary = _fit_vocabulary(data, dataset, cutoffs, work)
    _check_coverage(coverage(dataset, cutoffs, vocabulary, work, delay_hours=data.delay_hours))
    return tokenise_slice(
        dataset, cutoffs, vocabulary, data.visits, stores, work, delay_hours=data.delay_hours, births=data.births
    )


def _cohort(config: RunConfig) -> tuple[MedsDataset, Cohort]:
    if config.cohort is None:
        raise ConfigError("this recipe needs a [cohort] table: an index date and an outcome, or a file of labels")
    dataset = open_dataset(config.data.path)
    cohort = build_cohort(dataset, config.cohort, config.data.split, births=config.data.births)
    _print_left_out(cohort.attrition, "n_subjects", "n_dropped", "")
    if "n_times" in cohort.attrition.columns:
        _print_left_out(cohort.attrition, "n_times", "n_times_dropped", "prediction times of ")
    return dataset, cohort


def _print_left_out(attrition: pl.DataFrame, left: str, dropped: str, of_what: str) -> None:
    """Print how many subjects were left out in total, and at which steps."""
    losses = attrition.filter(pl.col(dropped) > 0)
    if losses.height:
        steps = ", ".join(f"{n:,} not: {step}" for step, n in losses.select("step", dropped).iter_rows())
        print(f"of {attrition[left][0]:,} {of_what}{attrition['step'][0]} are left out {steps}", flush=True)


def _tokenise(
    config: RunConfig,
    dataset: MedsDataset,
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary | None,
    work: ShardWork,
) -> Records:
    if vocabulary is None:
        vocabulary = _fit_vocabulary(config.data, dataset, cutoffs, work)
    data, stores = config.data, config.runtime.cache / STORES
    counts = count_tokens(dataset, cutoffs, vocabulary, work, delay_hours=data.delay_hours)
    covered = share_known(counts, vocabulary)
    _check_coverage(covered)
    store = build_store(
        dataset, cutoffs, vocabulary, data.visits, stores, work, delay_hours=data.delay_hours, births=data.births
    )
    split = cutoffs["split"].to_numpy()
    rows = {name: np.flatnonzero(split == name) for name in SPLITS}
    n_subjects = cutoffs["subject_id"].n_unique()
    times = f" at {len(store):,} prediction times" if len(store) > n_subjects else ""
    print(
        f"{config.data.path}: {n_subjects:,} subjects{times} "
        f"({', '.join(f'{len(rows[name]):,} {name}' for name in SPLITS)}), {len(store.token):,} tokens, "
        f"vocabulary of {len(vocabulary):,}",
        flush=True,
    )
    of_training = events_by_token(counts.filter(pl.col("split") == "train"), vocabulary)
    seen = Seen.of(of_training, vocabulary, store.end_gap_days)
    return Records(dataset, vocabulary, store, rows, covered, seen, table_fingerprint(dataset, config.data.split))


def _fit_vocabulary(config: DataConfig, dataset: MedsDataset, cutoffs: pl.DataFrame, work: ShardWork) -> Vocabulary:
    groups = config.vocabulary.groups
    if groups and (groups.parent / FACTS_FILE).is_file():  # found in records, by `ehrtrack embed`
        check_unseen(CodeEmbeddings.read(groups.parent).facts, f"the groups of codes in {groups}", config, dataset)
    return fit_vocabulary(dataset, cutoffs, config.vocabulary, work, delay_hours=config.delay_hours)


def _check_coverage(covered: pl.DataFrame) -> None:
    share = covered.filter(pl.col("split") == "train")["share_known"].sum()
    if share < LEAST_COVERAGE:
        raise DataError(
            f"the vocabulary knows {share:.0%} of the training events, at least {LEAST_COVERAGE:.0%} are needed: "
            "the base model was pretrained on other codes. Pretrain on this data, or lower "
            "data.vocabulary.min_subjects if the vocabulary is fitted here"
        )


def check_same_reading(config: DataConfig, base: DataConfig, *, is_same_data: bool) -> None:
    """Refuse a base that read records in another way, or that was trained on this run's test subjects."""
    if config.visits != base.visits:
        raise ConfigError(
            f"the base model was pretrained with data.visits.unit={base.visits.unit}, this run says "
            f"{config.visits.unit}: its tokens would mean something else; use the same"
        )
    if (config.births == "unknown") != (base.births == "unknown"):
        raise ConfigError(
            f"the base model was pretrained with data.births={base.births}, this run says {config.births}: "
            + (
                'it reads subjects without a birth; say data.births = "unknown" here too'
                if base.births == "unknown"
                else 'it never saw an age that is unknown. Pretrain with data.births = "unknown", or leave these '
                'subjects out here (data.births = "left_out")'
            )
        )
    if is_same_data and config.split.identity() != base.split.identity():
        raise ConfigError(
            f"the base model was pretrained on this dataset with data.split {base.split!r}, this run says "
            f"{config.split!r}: test subjects would have been seen in pretraining; use the same split"
        )


def check_base_split(dataset: MedsDataset, cohort: Cohort, split: Split, base_fingerprints: Mapping[str, str]) -> None:
    """Check a base that was pretrained on this dataset with the same split rule; earlier records are reported.

    Raises
    ------
    ConfigError
        If the table of the rule is another one than it was then.
    """
    if base_fingerprints["data"] != dataset.fingerprint():
        return
    now, then = table_fingerprint(dataset, split), base_fingerprints.get(SPLIT_TABLE, "")
    if now != then:
        raise ConfigError(
            f"the base model was pretrained on this dataset with data.split {split!r}, whose table has changed since "
            f"(then {then or 'none'}, now {now or 'none'}): test subjects may have been seen in pretraining; bring the "
            "table back, or pretrain again"
        )
    if isinstance(split, TimeSplit) and (n_read := n_read_in_pretraining(dataset, cohort.subjects, split)):
        n_test = cohort.subjects.filter(pl.col("split") == "test")["subject_id"].n_unique()
        print(
            f"of {n_test:,} test subjects {n_read:,} have a record before split.train_before = {split.train_before}, "
            "from which the base model learnt; of what came later it knows nothing",
            flush=True,
        )


def check_unseen(facts: Mapping[str, object], what: str, config: DataConfig, dataset: MedsDataset) -> None:
    """Refuse anything that was fitted on this dataset with another split, and so on test subjects of this run.

    Parameters
    ----------
    facts : the fingerprint of the ``data`` that it was fitted on, and their ``split``
    what : its name in the message
    """
    split = config.split.identity()
    if facts.get("split") != split and facts.get("data") == dataset.fingerprint():  # which reads all shards
        raise ConfigError(
            f"{what} were fitted on this dataset with data.split {facts.get('split')}, this run says {split}: they "
            "have seen test subjects; use the same split"
        )


def seed_everything(runtime: RuntimeConfig) -> None:
    """Set all seeds."""
    random.seed(runtime.seed)
    np.random.seed(runtime.seed)  # for libraries that draw from numpy's global generator
    torch.manual_seed(runtime.seed)


def check_validation(records: CohortRecords, score: Callable[[Outcomes], object]) -> None:
    """Check before training that the metric of choice has a value on the validation subjects.

    Parameters
    ----------
    score : of the outcomes of the validation subjects, whatever the predictions are

    Raises
    ------
    DataError
        If these subjects are too few for it.
    """
    outcomes = records.outcomes[records.rows["validation"]]
    try:
        score(outcomes)
    except NotMeasurable as reason:
        raise DataError(
            f"the validation split is too small to choose a model by ({outcomes.n_subjects} subjects, "
            f"{int(outcomes.is_event.sum())} events), so nothing was trained. {reason}; change data.split.seed or "
            "data.split.validation, or widen the cohort"
        ) from reason


def settle(config: RunConfig) -> RunConfig:
    """Set all seeds and the threads; returns the configuration with everything that was decided written out.

    These are the number of threads, so that the run is resumed with as many (another number adds up in another order,
    which shows in the last digits), the objective that fits the labels, and the rule of the split (`settle_split`).

    Raises
    ------
    ConfigError
        If the dataset has a split, and another one is asked for without a rule; if an objective was asked for that
        needs to know when the outcome comes, and the labels do not tell.
    """
    seed_everything(config.runtime)
    config = with_objective_of_labels(config)
    n_threads = config.runtime.threads or free_threads()
    use_threads(n_threads)
    config = _with_rule(config)
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"threads": n_threads})})


def has_classes(config: RunConfig) -> bool:
    """Whether the labels of a configuration are classes: they say whether the outcome comes, and not when."""
    labels = None if config.cohort is None else config.cohort.labels
    return labels is not None and not tells_when(labels)


def with_objective_of_labels(config: RunConfig) -> RunConfig:
    """The configuration with the objective classification if labels are classes and no objective was chosen.

    Raises
    ------
    ConfigError
        If an objective was asked for that needs to know when the outcome comes.
    """
    labels, objective = None if config.cohort is None else config.cohort.labels, config.objective
    if labels is None or objective.name not in OBJECTIVES_OF_TIME or tells_when(labels):
        return config
    if objective.model_fields_set:
        asked = ", ".join(f"objective.{name}" for name in sorted(objective.model_fields_set))
        raise ConfigError(
            f"objective {objective.name} ({asked} is set) needs to know when the outcome comes, and {labels} tells "
            "whether it does and not when: set objective.name=classification and leave out what is not of it, or give "
            "labels with follow_up_days (or censor_time) and is_event"
        )
    print(f"{labels} tells whether the outcome comes and not when: the objective is classification", flush=True)
    settled = plugins.settings("objectives", "classification").model_validate({"name": "classification"})
    return config.model_copy(update={"objective": settled})


def _with_rule(config: RunConfig) -> RunConfig:
    """The configuration with the rule of its split written out (`settle_split`)."""
    split = settle_split(config.data.split, config.data.path)
    return config.model_copy(update={"data": config.data.model_copy(update={"split": split})})
