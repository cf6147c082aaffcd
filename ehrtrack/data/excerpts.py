"""Excerpts of a batch: parts of the records in it, each shown to the encoder as if it were a record of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ehrtrack.data.batch import MAX_POSITION, Batch


@dataclass(frozen=True)
class Visits:
    """The visits of a batch, static facts aside, in the order of its tokens; those of a subject are together.

    Attributes
    ----------
    subject : (N,) int64, to which of the B subjects a visit belongs
    start, stop : (N,) int64, its tokens in the packed row
    count : (B,) int64, visits of each subject
    first : (B,) int64, number of each subject's first visit among the N
    """

    subject: Tensor
    start: Tensor
    stop: Tensor
    count: Tensor
    first: Tensor


def visits_of(batch: Batch) -> Visits:
    """Where the visits of the batch begin and end: segments take turns by visit."""
    segment = batch.segment
    begins = segment > 0
    begins[1:] &= segment[1:] != segment[:-1]
    start = begins.nonzero().squeeze(1)
    subject = batch.subject[start]
    count = torch.bincount(subject, minlength=len(batch.lengths))
    following = torch.cat([start[1:], start.new_tensor([len(segment)])])
    stop = torch.minimum(following, batch.cls_positions[subject])
    return Visits(subject, start, stop, count, count.cumsum(0) - count)


def excerpts(batch: Batch, subject: Tensor, start: Tensor, stop: Tensor) -> Batch:
    """P excerpts, each a run of one subject's tokens with a [CLS] that stands at its end.

    All inputs that depend on the rest of the record are computed anew as of the end of the excerpt: positions, segments
    and days count back from its last visit, and [CLS] has the age at that visit.

    Parameters
    ----------
    subject : (P,) to which of the B subjects each belongs
    start, stop : (P,) its tokens in the packed row; `stop` is the end of a visit, or of the static facts
    """
    n_tokens = stop - start
    place, number = ranges(start, stop + 1)  # one place more, for [CLS]
    end = (n_tokens + 1).cumsum(0) - 1  # where each [CLS] is
    place[end] = batch.cls_positions[subject]
    last = torch.where(n_tokens > 0, stop - 1, batch.cls_positions[subject])

    position, segment = batch.position[place], batch.segment[place]
    is_visit = segment > 0
    is_last_even = (batch.segment[last] == 2)[number]
    segment = torch.where(is_visit & is_last_even, 3 - segment, segment)
    position = torch.where(is_visit, position - (batch.position[last] - 1)[number], position).clamp(0, MAX_POSITION)
    age, gap, days_to_end = batch.age[place], batch.gap[place], batch.days_to_end[place]
    age[end] = batch.age[last]
    gap[end] = 1
    days_after = torch.where(batch.segment[last] > 0, batch.days_to_end[last], 0.0)  # (P,) where it ends with a visit
    days_to_end -= days_after[number]
    days_to_end[end] = 0
    return replace(
        batch,
        rows=batch.rows[subject],
        lengths=tuple((n_tokens + 1).tolist()),
        token=batch.token[place],
        age=age,
        segment=segment,
        position=position,
        gap=gap,
        days_to_end=days_to_end,
        outcomes=None,
        target_positions=None,
        targets=None,
        is_first=None,
    )


def ranges(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """All places of the runs `start:stop`, one run after the other, and the number of the run of each."""
    length = stop - start
    number = torch.repeat_interleave(torch.arange(len(length), device=length.device), length)
    before = length.cumsum(0) - length
    return (start - before)[number] + torch.arange(len(number), device=length.device), number
