"""What a baseline reads of a cohort: token histories, with recorded values where it asks for them."""

from __future__ import annotations

import numpy as np

from ehrtrack.baselines.base import AnyFeatures, Baseline, TokenHistories
from ehrtrack.config import RunConfig
from ehrtrack.data.shards import open_work
from ehrtrack.data.value_features import value_summaries
from ehrtrack.pipeline.embeddings import read_embeddings
from ehrtrack.pipeline.prepare import CohortRecords


def read_cohort(chosen: Baseline, config: RunConfig, records: CohortRecords) -> AnyFeatures:
    """The features of all subjects of a cohort, in its order."""
    values = None
    if chosen.reads_values:
        runtime = config.runtime
        with open_work(runtime.cache, engine=runtime.engine, n_workers=runtime.workers) as work:
            values = value_summaries(
                records.dataset,
                records.cohort.cutoffs,
                records.vocabulary,
                work,
                delay_hours=config.data.delay_hours,
            )
    histories = TokenHistories(
        records.store,
        records.vocabulary,
        np.arange(len(records.store)),
        config.data.max_tokens,
        config.runtime.device,
        read_embeddings(config, records),
        config.data.may_lack_age,
        values,
    )
    return chosen.read(histories)
