"""What pretraining reads of the subjects whose outcome is foretold later: nothing after their index dates."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ehrtrack.config import RunConfig
from ehrtrack.data.cohort import build_cohort
from ehrtrack.data.events import MedsDataset, fingerprint_of
from ehrtrack.data.record_ends import end_at_index, record_cutoffs
from ehrtrack.data.shards import ShardWork

INDEX_DATES = "index_dates"
"""Among a pretraining's fingerprints, that of the index dates at which it stopped reading."""

SAID = {
    "cut": "up to the index dates of the cohort's subjects",
    "leave_out": "without the cohort's subjects",
    "whole": "whole, also after index dates: outcomes of training and validation subjects are in them",
}
"""What pretraining read, in words."""


def pretraining_cutoffs(config: RunConfig, dataset: MedsDataset, work: ShardWork) -> tuple[pl.DataFrame, str]:
    """Where the records end that pretraining reads, and a fingerprint of the index dates that it observed.

    Where the configuration has a cohort, the records of its subjects end at their index dates or are left out
    (``data.pretraining_records``), of training and validation subjects alike, and of those too whose labels are not
    drawn: with an outcome that is itself a code, few labels would else mean nothing.

    Returns
    -------
    As `record_cutoffs`; the fingerprint is empty where whole records are read
    """
    cutoffs = record_cutoffs(dataset, config.data.split, work, births=config.data.births)
    mode = config.pretraining_records
    if mode == "whole":
        return cutoffs, ""
    index_dates = first_index_dates(config, dataset)
    return end_at_index(cutoffs, index_dates, mode), fingerprint_of("index dates", mode, index_dates)


def first_index_dates(config: RunConfig, dataset: MedsDataset) -> pl.DataFrame:
    """The first index date of everybody in the cohort, few labels or not: subject_id, cutoff; sorted by subject_id."""
    assert config.cohort is not None
    cohort = build_cohort(dataset, config.cohort.with_all_labels(), config.data.split, births=config.data.births)
    return cohort.cutoffs.group_by("subject_id").agg(pl.col("cutoff").min()).sort("subject_id")


def said_of_base(base: RunConfig, fingerprints: Mapping[str, str], config: RunConfig, dataset: MedsDataset) -> str:
    """What the pretraining of a base read of this run's subjects, in words.

    Parameters
    ----------
    base, fingerprints : configuration and fingerprints of the base
    config : of the fine-tuning
    """
    if fingerprints["data"] != dataset.fingerprint():
        return "of another dataset"
    mode = base.pretraining_records
    if mode != "whole":
        expected = fingerprint_of("index dates", mode, first_index_dates(config, dataset))
        if fingerprints.get(INDEX_DATES) != expected:
            return f"{SAID[mode]}, which is another cohort than this run's"
    return SAID[mode]
