"""From a dataset to token stores with their splits: the part of the way that all recipes share."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ehrtrack.config import DataConfig, RunConfig, RuntimeConfig
from ehrtrack.data.batch import Outcomes
from ehrtrack.data.cohort import Cohort, build_cohort
from ehrtrack.data.drift import Seen, events_by_token
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.fitting import count_tokens, coverage, fit_vocabulary, share_known
from ehrtrack.data.shards import ShardSlice, ShardWork, open_work
from ehrtrack.data.splits import SPLITS
from ehrtrack.data.store import TokenStore, build_store, record_cutoffs, tokenise_slice
from ehrtrack.data.vocabulary import Vocabulary
from ehrtrack.errors import ConfigError, DataError, NotMeasurable
from ehrtrack.models.code_embeddings import FACTS_FILE, CodeEmbeddings
from ehrtrack.training.threads import free_threads, use_threads

Rows = npt.NDArray[np.int64]

SUBJECTS_AT_ONCE = 10_000
"""Subjects whose tokens are counted in one go: memory stays small however large the store."""

STORES = "stores"
"""Folder of the token stores in the cache."""

LEAST_COVERAGE = 0.5
"""Share of training events that a base model's vocabulary has to know."""


@dataclass(frozen=True)
class Records:
    """Tokenised subjects and their split.

    Attributes
    ----------
    rows : rows of the store by split
    coverage : share of events that the vocabulary knows, by split
    seen : codes and values of the training subjects, to which those of later predictions are compared
    """

    dataset: MedsDataset
    vocabulary: Vocabulary
    store: TokenStore
    rows: dict[str, Rows]
    coverage: pl.DataFrame
    seen: Seen

    def fingerprints(self) -> dict[str, str]:
        """Of everything that these tokens were made from, by name."""
        return {
            "data": self.dataset.fingerprint(),
            "vocabulary": self.vocabulary.fingerprint,
            "store": self.store.fingerprint,
        }

    def token_counts(self) -> npt.NDArray[np.int64]:
        """(V,) tokens of the training subjects."""
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
        """Of everything that these tokens and labels were made from, by name."""
        return super().fingerprints() | {"cohort": self.cohort.fingerprint}


def prepare_records(config: RunConfig) -> Records:
    """Whole records, for pretraining: the vocabulary is fitted on the training subjects."""
    dataset = open_dataset(config.data.path)
    with _open_work(config.runtime) as work:
        cutoffs = record_cutoffs(dataset, config.data.split, work)
        return _tokenise(config, dataset, cutoffs, None, work)


def prepare_cohort(config: RunConfig, vocabulary: Vocabulary | None = None) -> CohortRecords:
    """Histories up to the index date with what came after it, for fine-tuning and baselines.

    Parameters
    ----------
    vocabulary : that of the pretrained model; None fits one on the training subjects' histories
    """
    dataset, cohort = _cohort(config)
    with _open_work(config.runtime) as work:
        records = _tokenise(config, dataset, cohort.cutoffs, vocabulary, work)
    return CohortRecords(**vars(records), cohort=cohort, outcomes=outcomes_of(cohort.subjects))


def outcomes_of(subjects: pl.DataFrame) -> Outcomes:
    """The labels of subjects of a cohort, row for row."""
    cause = subjects["cause"].to_numpy().copy() if "cause" in subjects.columns else None
    return Outcomes(subjects["follow_up_days"].to_numpy().copy(), subjects["is_event"].to_numpy().copy(), cause)


def _open_work(runtime: RuntimeConfig, part: ShardSlice = (1, 1)) -> AbstractContextManager[ShardWork]:
    return open_work(runtime.cache, engine=runtime.engine, n_workers=runtime.workers, part=part)


def tokenise_records(config: RunConfig, part: ShardSlice) -> TokenStore | None:
    """Do the i-th of n slices of the shards of `prepare_records`; the store, if nothing is missing any more."""
    dataset = open_dataset(config.data.path)
    with _open_work(config.runtime, part) as work:
        cutoffs = record_cutoffs(dataset, config.data.split, work)
        return _tokenise_slice(config, dataset, cutoffs, work)


def tokenise_cohort(config: RunConfig, part: ShardSlice) -> TokenStore | None:
    """As `tokenise_records`, for `prepare_cohort` with a vocabulary of its own."""
    dataset, cohort = _cohort(config)
    with _open_work(config.runtime, part) as work:
        return _tokenise_slice(config, dataset, cohort.cutoffs, work)


def _tokenise_slice(
    config: RunConfig, dataset: MedsDataset, cutoffs: pl.DataFrame, work: ShardWork
) -> TokenStore | None:
    vocabulary = _fit_vocabulary(config.data, dataset, cutoffs, work)
    _check_coverage(coverage(dataset, cutoffs, vocabulary, work))
    return tokenise_slice(dataset, cutoffs, vocabulary, config.data.visits, config.runtime.cache / STORES, work)


def _cohort(config: RunConfig) -> tuple[MedsDataset, Cohort]:
    if config.cohort is None:
        raise ConfigError("this recipe needs a [cohort] table: an index date and an outcome, or a file of labels")
    dataset = open_dataset(config.data.path)
    cohort = build_cohort(dataset, config.cohort, config.data.split)
    dropped = cohort.attrition.filter(pl.col("n_dropped") > 0)
    if dropped.height:
        steps = ", ".join(f"{n:,} not: {step}" for step, n in dropped.select("step", "n_dropped").iter_rows())
        print(
            f"of {cohort.attrition['n_subjects'][0]:,} {cohort.attrition['step'][0]} are left out {steps}", flush=True
        )
    return dataset, cohort


def _tokenise(
    config: RunConfig,
    dataset: MedsDataset,
    cutoffs: pl.DataFrame,
    vocabulary: Vocabulary | None,
    work: ShardWork,
) -> Records:
    if vocabulary is None:
        vocabulary = _fit_vocabulary(config.data, dataset, cutoffs, work)
    counts = count_tokens(dataset, cutoffs, vocabulary, work)
    covered = share_known(counts, vocabulary)
    _check_coverage(covered)
    store = build_store(dataset, cutoffs, vocabulary, config.data.visits, config.runtime.cache / STORES, work)
    split = cutoffs["split"].to_numpy()
    rows = {name: np.flatnonzero(split == name) for name in SPLITS}
    print(
        f"{config.data.path}: {len(store):,} subjects "
        f"({', '.join(f'{len(rows[name]):,} {name}' for name in SPLITS)}), {len(store.token):,} tokens, "
        f"vocabulary of {len(vocabulary):,}",
        flush=True,
    )
    of_training = events_by_token(counts.filter(pl.col("split") == "train"), vocabulary)
    seen = Seen.of(of_training, vocabulary, store.end_gap_days)
    return Records(dataset, vocabulary, store, rows, covered, seen)


def _fit_vocabulary(config: DataConfig, dataset: MedsDataset, cutoffs: pl.DataFrame, work: ShardWork) -> Vocabulary:
    groups = config.vocabulary.groups
    if groups and (groups.parent / FACTS_FILE).is_file():  # found in records, by `ehrtrack embed`
        check_unseen(CodeEmbeddings.read(groups.parent).facts, f"the groups of codes in {groups}", config, dataset)
    return fit_vocabulary(dataset, cutoffs, config.vocabulary, work)


def _check_coverage(covered: pl.DataFrame) -> None:
    share = covered.filter(pl.col("split") == "train")["share_known"].sum()
    if share < LEAST_COVERAGE:
        raise DataError(
            f"the vocabulary knows {share:.0%} of the training events, at least {LEAST_COVERAGE:.0%} are needed: "
            "the base model was pretrained on other codes. Pretrain on this data, or lower "
            "data.vocabulary.min_subjects if the vocabulary is fitted here"
        )


def check_same_reading(config: DataConfig, base: DataConfig, *, is_same_data: bool) -> None:
    """Refuse to fine-tune a base that read visits otherwise, or that was trained on this run's test subjects."""
    if config.visits != base.visits:
        raise ConfigError(
            f"the base model was pretrained with data.visits.unit={base.visits.unit}, this run says "
            f"{config.visits.unit}: its tokens would mean something else; use the same"
        )
    if is_same_data and config.split != base.split:
        raise ConfigError(
            f"the base model was pretrained on this dataset with data.split {base.split!r}, this run says "
            f"{config.split!r}: test subjects would have been seen in pretraining; use the same split"
        )


def check_unseen(facts: Mapping[str, object], what: str, config: DataConfig, dataset: MedsDataset) -> None:
    """Refuse what was fitted on this dataset with another split, and so on this run's test subjects.

    Parameters
    ----------
    facts : what it was fitted on: the fingerprint of the ``data``, and their ``split``
    what : in the words of the message
    """
    split = config.split.model_dump(mode="json")
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
    """Make sure before training that there is something to choose by: what has no value now has none after an epoch.

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
            f"the validation split is too small to choose a model by ({len(outcomes.is_event)} subjects, "
            f"{int(outcomes.is_event.sum())} events), so nothing was trained. {reason}; change data.split.seed or "
            "data.split.validation, or widen the cohort"
        ) from reason


def settle(config: RunConfig) -> RunConfig:
    """Set all seeds and the threads; returns the configuration to go on with, which says how many threads.

    That number is logged with the run, so that it is resumed with the same one: another number adds up in another
    order, which shows in the last digits.
    """
    seed_everything(config.runtime)
    n_threads = config.runtime.threads or free_threads()
    use_threads(n_threads)
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"threads": n_threads})})
