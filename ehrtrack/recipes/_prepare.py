"""From a dataset to token stores with their splits: the part of the way that all recipes share."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ehrtrack.config import DataConfig, RunConfig, RuntimeConfig
from ehrtrack.data.batch import Outcomes
from ehrtrack.data.cohort import Cohort, build_cohort
from ehrtrack.data.events import MedsDataset, open_dataset
from ehrtrack.data.splits import SPLITS
from ehrtrack.data.store import TokenStore, build_store, record_cutoffs
from ehrtrack.data.visits import known_events
from ehrtrack.data.vocabulary import Vocabulary, coverage, fit_vocabulary
from ehrtrack.errors import ConfigError, DataError

Rows = npt.NDArray[np.int64]

LEAST_COVERAGE = 0.5
"""Share of training events that a base model's vocabulary has to know."""


@dataclass(frozen=True)
class Records:
    """Tokenised subjects and their split.

    Attributes
    ----------
    rows : rows of the store by split
    coverage : share of events that the vocabulary knows, by split
    """

    dataset: MedsDataset
    vocabulary: Vocabulary
    store: TokenStore
    rows: dict[str, Rows]
    coverage: pl.DataFrame

    def fingerprints(self) -> dict[str, str]:
        """Of everything that these tokens were made from, by name."""
        return {
            "data": self.dataset.fingerprint(),
            "vocabulary": self.vocabulary.fingerprint,
            "store": self.store.fingerprint,
        }

    def token_counts(self) -> npt.NDArray[np.int64]:
        """(V,) tokens of the training subjects."""
        counts = np.zeros(len(self.vocabulary), dtype=np.int64)
        for row in self.rows["train"]:
            start, stop = self.store.offsets[row], self.store.offsets[row + 1]
            counts += np.bincount(self.store.token[start:stop], minlength=len(counts))
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
    cutoffs = record_cutoffs(dataset, config.data.split)
    return _tokenise(config, dataset, cutoffs, vocabulary=None)


def prepare_cohort(config: RunConfig, vocabulary: Vocabulary | None = None) -> CohortRecords:
    """Histories up to the index date with what came after it, for fine-tuning and baselines.

    Parameters
    ----------
    vocabulary : that of the pretrained model; None fits one on the training subjects' histories
    """
    if config.cohort is None:
        raise ConfigError("this recipe needs a [cohort] table: an index date and an outcome, or a file of labels")
    dataset = open_dataset(config.data.path)
    cohort = build_cohort(dataset, config.cohort, config.data.split)
    cutoffs = cohort.cutoffs
    records = _tokenise(config, dataset, cutoffs, vocabulary)
    outcomes = Outcomes(
        cohort.subjects["follow_up_days"].to_numpy().copy(), cohort.subjects["is_event"].to_numpy().copy()
    )
    return CohortRecords(**vars(records), cohort=cohort, outcomes=outcomes)


def _tokenise(config: RunConfig, dataset: MedsDataset, cutoffs: pl.DataFrame, vocabulary: Vocabulary | None) -> Records:
    known = known_events(dataset.scan(), cutoffs)
    if vocabulary is None:
        training = known_events(dataset.scan(), cutoffs.filter(pl.col("split") == "train"))
        vocabulary = fit_vocabulary(training, config.data.vocabulary)
    covered = coverage(known, vocabulary, cutoffs)
    _check_coverage(covered)
    store = build_store(dataset, cutoffs, vocabulary, config.data.visits, config.runtime.cache / "stores")
    split = cutoffs["split"].to_numpy()
    rows = {name: np.flatnonzero(split == name) for name in SPLITS}
    print(
        f"{config.data.path}: {len(store):,} subjects "
        f"({', '.join(f'{len(rows[name]):,} {name}' for name in SPLITS)}), {len(store.token):,} tokens, "
        f"vocabulary of {len(vocabulary):,}",
        flush=True,
    )
    return Records(dataset, vocabulary, store, rows, covered)


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


def seed_everything(runtime: RuntimeConfig) -> None:
    """Set all seeds, and the threads."""
    random.seed(runtime.seed)
    np.random.seed(runtime.seed)  # for libraries that draw from numpy's global generator
    torch.manual_seed(runtime.seed)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
