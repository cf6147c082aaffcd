"""What objectives that cut records (`data.cuts`) share: batches without a cut, and records to count rates in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from ehrtrack.data.batch import Batch, Batches
from ehrtrack.errors import DataError
from ehrtrack.objectives.base import BatchLoss

N_SAMPLED = 20_000
"""Training subjects whose records rates are counted in, at most."""


def loss_without_targets(model: nn.Module, batch: Batch) -> BatchLoss:
    """Of a batch in which there is nothing to predict: 0, with gradients of 0, and the weight of one target.

    The model runs all the same, as the ranks that train together wait for each other's gradients.
    """
    return BatchLoss(model(batch).sum() * 0, 1, 0.0)


def sampled(records: Batches | None, name: str, at_most: int = N_SAMPLED) -> Iterator[Batch]:
    """Training records for counting rates: of so many subjects at most, drawn at random."""
    if records is None:
        raise DataError(f"objective {name} counts rates in the records of the training subjects, and was given none")
    rows = np.random.default_rng(0).permutation(records.rows)[:at_most]
    return iter(replace(records, rows=rows))
