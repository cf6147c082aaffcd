"""Records cut after a random visit: what came before is shown to the encoder, what came after is to be predicted.

The encoder reads a record in both directions, so nothing at or after what is to be predicted may be in the row. Each
cut is therefore an excerpt of its own, which ends with the last visit before it. Encounters that overlap in time are
ordered by their beginning: with ``data.visits.unit=encounter`` a visit before the cut may have been written on after
the visit behind it began.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ehrtrack.data.batch import Batch
from ehrtrack.data.excerpts import excerpts, visits_of


@dataclass(frozen=True)
class Cuts:
    """P cuts of the records of a batch, a subject's among several of its own.

    Attributes
    ----------
    history : the P excerpts up to the cuts
    subject : (P,) int64, which of the B subjects
    start, stop : (P,) int64, tokens of the packed row that are shown
    next_stop : (P,) int64, end of the visit after the cut, which begins at `stop`
    """

    history: Batch
    subject: Tensor
    start: Tensor
    stop: Tensor
    next_stop: Tensor

    def __len__(self) -> int:
        return len(self.subject)


def draw_cuts(batch: Batch, n_cuts: int, generator: torch.Generator, *, least_days: float = 0.0) -> Cuts | None:
    """`n_cuts` random cuts a subject, each after some visit that another follows; None where nobody has such a visit.

    Parameters
    ----------
    least_days : how much of the record, within its window, has to follow a cut
    """
    visits = visits_of(batch)
    count = visits.count - 1  # of each subject's visits, those that a cut may follow: some of its first
    if least_days > 0:
        is_early = batch.days_to_end[visits.stop - 1] >= least_days
        count = torch.minimum(count, torch.zeros_like(count).index_add(0, visits.subject, is_early.long()))
    subject = (count > 0).nonzero().squeeze(1).repeat_interleave(n_cuts)
    if not len(subject):
        return None
    share = torch.rand(len(subject), generator=generator).to(subject.device)
    last = visits.first[subject] + (share * count[subject]).long()
    start, stop = batch.offsets[subject], visits.stop[last]
    return Cuts(excerpts(batch, subject, start, stop), subject, start, stop, visits.stop[last + 1])
