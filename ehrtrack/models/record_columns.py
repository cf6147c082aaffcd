"""What a record holds, as the columns of a table: how often and how recently each code, and levels of values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch
from ehrtrack.data.visits import UNKNOWN_AGE
from ehrtrack.data.vocabulary import CLS, Vocabulary


class Levels(NamedTuple):
    """How high each token's values are, where a code's values are cut into bins.

    Attributes
    ----------
    code : (V,) int64, which of C codes with bins a token is of, -1 for none
    level : (V,) float32, from -1 in its lowest bin to 1 in its highest
    """

    code: Tensor
    level: Tensor

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Levels:
        """The levels of a vocabulary's bins."""
        return cls(torch.from_numpy(vocabulary.bins.code), torch.from_numpy(vocabulary.bins.level))


class Groups(NamedTuple):
    """Places of a batch by their subject and a number each, such as that of the code: U groups, subject after subject.

    Attributes
    ----------
    place : (N,) int64, those that have a number
    group : (N,) int64, which group each is of
    last : (U,) int64, the last place of each group
    n_places : (U,) int64
    """

    place: Tensor
    group: Tensor
    last: Tensor
    n_places: Tensor

    @classmethod
    def of(cls, batch: Batch, number: Tensor) -> Groups:
        """By numbers (T,), -1 for none."""
        place = torch.nonzero(number >= 0).squeeze(1)
        key = batch.subject[place] << 32 | number[place]
        _, group, n_places = torch.unique(key, return_inverse=True, return_counts=True)
        return cls(place, group, torch.zeros_like(n_places).scatter_reduce(0, group, place, "amax"), n_places)


class Entries(NamedTuple):
    """The columns of B subjects that are not 0: E triples.

    Attributes
    ----------
    subject : (E,) int64
    column : (E,) int64
    value : (E,) float32
    """

    subject: Tensor
    column: Tensor
    value: Tensor


class RecordColumns(nn.Module):
    """The columns of a batch's subjects, of which most are 0.

        age, log of visits, of days with visits and of days since[, whether the age is unknown]
        of each token c that a subject has    1, log n_c, exp(-days_c / s_1), ..., exp(-days_c / s_S)
        of each code v whose values are cut   first, last, lowest, highest, mean and spread of the levels,
                                              and their means with weights exp(-days / s_1), ...

    with n_c how often the record holds c, and days_c how long before its end it does last.

    Parameters
    ----------
    scales_days : (S,) of times, as those of `behrt.Readout`
    mean_age : () of the training subjects in years, which stands for an age that is unknown, and is told apart from it
        by a column of its own; None where every age is known, and there is no such column
    is_kept : whether levels, scales and mean age are among the module's tensors; else they come from the vocabulary and
        the settings beside it
    """

    N_OF_RECORD = 4  # and one more where ages may be unknown
    N_OF_TOKEN = 2  # and the scales, as below
    N_OF_LEVEL = 6

    def __init__(
        self, levels: Levels, scales_days: Tensor, mean_age: Tensor | None = None, *, is_kept: bool = True
    ) -> None:
        super().__init__()
        self.scales_days: Tensor
        self.code: Tensor
        self.level: Tensor
        self.mean_age: Tensor | None
        self.register_buffer("scales_days", scales_days, persistent=is_kept)
        self.register_buffer("code", levels.code, persistent=is_kept)
        self.register_buffer("level", levels.level, persistent=is_kept)
        self.register_buffer("mean_age", mean_age, persistent=is_kept)

    @classmethod
    def n_columns(cls, levels: Levels, n_scales: int, *, may_lack_age: bool = False) -> int:
        """P."""
        n_codes = int(levels.code.max()) + 1 if len(levels.code) else 0
        n_of_tokens = len(levels.code) * (cls.N_OF_TOKEN + n_scales)
        return cls.N_OF_RECORD + may_lack_age + n_of_tokens + n_codes * (cls.N_OF_LEVEL + n_scales)

    def entries(self, batch: Batch) -> Entries:
        """The columns of a batch's subjects."""
        everybody = torch.arange(len(batch.lengths), device=batch.token.device)
        token, of_token = self._of_tokens(batch)
        code, of_level = self._of_levels(batch)
        of_record = _of_record(batch, self.mean_age)
        first_token = of_record.shape[1]
        first_code = first_token + len(self.code) * of_token.shape[1]
        parts = (
            _entries(everybody, torch.zeros_like(everybody), of_record, start=0),
            _entries(batch.subject[token], batch.token[token], of_token, start=first_token),
            _entries(batch.subject[code], self.code[batch.token[code]], of_level, start=first_code),
        )
        return Entries(*map(torch.cat, zip(*parts, strict=True)))

    def owners(self, column: Tensor) -> tuple[Tensor, Tensor]:
        """Whose columns (E,) are: (E,) the token, and (E,) the code whose values are cut; -1 where it is not one's.

        Those of the record itself, such as the age, are of neither.
        """
        n_scales, n_tokens = len(self.scales_days), len(self.code)
        first_token = self.N_OF_RECORD + (self.mean_age is not None)
        first_code = first_token + n_tokens * (self.N_OF_TOKEN + n_scales)
        token = torch.div(column - first_token, self.N_OF_TOKEN + n_scales, rounding_mode="floor")
        code = torch.div(column - first_code, self.N_OF_LEVEL + n_scales, rounding_mode="floor")
        is_of_token = (column >= first_token) & (column < first_code)
        return torch.where(is_of_token, token, -1), torch.where(column >= first_code, code, -1)

    def _of_tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each token of each subject once: (U,) where it is last, (U, 2 + S) its columns."""
        groups = Groups.of(batch, torch.where(batch.token == CLS, -1, batch.token))
        days = _days(batch, groups.last)
        columns = torch.stack([torch.ones_like(days), groups.n_places.log()], dim=1)
        return groups.last, torch.cat([columns, torch.exp(-days[:, None] / self.scales_days)], dim=1)

    def _of_levels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each code with values of each subject once: (U,) where it is last, (U, 6 + S) its levels."""
        groups = Groups.of(batch, self.code[batch.token])
        level = self.level[batch.token[groups.place]]
        nothing = level.new_zeros(len(groups.last))
        first = torch.zeros_like(groups.last).scatter_reduce(0, groups.group, groups.place, "amin", include_self=False)
        mean = nothing.index_add(0, groups.group, level) / groups.n_places
        mean_square = nothing.index_add(0, groups.group, level**2) / groups.n_places
        columns = (
            self.level[batch.token[first]],
            self.level[batch.token[groups.last]],
            nothing.scatter_reduce(0, groups.group, level, "amin", include_self=False),
            nothing.scatter_reduce(0, groups.group, level, "amax", include_self=False),
            mean,
            (mean_square - mean**2).clamp(min=0).sqrt(),
        )
        days = _days(batch, groups.place)
        latest = nothing.scatter_reduce(0, groups.group, days, "amin", include_self=False)
        # Counted from the latest, whose weight is 1: all weights of what was long ago would be 0.
        weight = torch.exp((latest[groups.group] - days)[:, None] / self.scales_days)  # (N, S)
        total, weights = (
            nothing.new_zeros(len(nothing), len(self.scales_days)).index_add(0, groups.group, x)
            for x in (weight * level[:, None], weight)
        )
        return groups.last, torch.cat([torch.stack(columns, dim=1), total / weights], dim=1)


def bag(entries: Entries, table: Tensor, n_subjects: int) -> Tensor:
    """(B, R) the sum over each subject's entries of value times row of a table (P, R), without the (E, R) products."""
    order = entries.subject.argsort(stable=True)
    n_entries = torch.bincount(entries.subject, minlength=n_subjects)
    return F.embedding_bag(
        entries.column[order],
        table,
        n_entries.cumsum(0) - n_entries,
        mode="sum",
        per_sample_weights=entries.value[order].to(table.dtype),
    )


def _days(batch: Batch, place: Tensor) -> Tensor:
    """From places to the end of their records; static facts are always recent."""
    return batch.days_to_end[place].clamp(min=0).nan_to_num(posinf=0)


def _of_record(batch: Batch, mean_age: Tensor | None) -> Tensor:
    """(B, 4) age at the end in years, and log(1 + x) of the visits, of the days from first to last, and since then.

    Where ages may be unknown, (B, 5): these are the mean, and the last column says so.
    """
    is_dated = batch.days_to_end.isfinite() & (batch.token != CLS)
    visits = Groups.of(batch, torch.where(is_dated, batch.position, -1))
    subject, days = batch.subject[visits.place], batch.days_to_end[visits.place].clamp(min=0)
    nothing = days.new_zeros(len(batch.lengths))
    first = nothing.scatter_reduce(0, subject, days, "amax", include_self=False)
    last = nothing.scatter_reduce(0, subject, days, "amin", include_self=False)
    n_visits = torch.bincount(batch.subject[visits.last], minlength=len(batch.lengths)).to(days.dtype)
    counts = torch.stack([n_visits, first - last, last], dim=1).log1p()
    age = batch.age[batch.cls_positions]
    if mean_age is None:
        return torch.cat([age[:, None].to(days.dtype), counts], dim=1)
    is_unknown = age == UNKNOWN_AGE
    filled = torch.where(is_unknown, mean_age.to(days.dtype), age.to(days.dtype))
    return torch.cat([filled[:, None], counts, is_unknown[:, None].to(days.dtype)], dim=1)


def _entries(subject: Tensor, number: Tensor, values: Tensor, *, start: int) -> Entries:
    """Of values (U, N): the N columns of the thing with that number."""
    n_values = values.shape[1]
    column = start + number[:, None] * n_values + torch.arange(n_values, device=number.device)
    return Entries(subject.repeat_interleave(n_values), column.flatten(), values.flatten())
