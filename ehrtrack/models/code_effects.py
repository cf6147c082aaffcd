"""What single codes and values add to a log-hazard: the wide part of a wide and deep model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class CodeEffects(nn.Module):
    """A fixed offset: a regression on single codes and values, fitted before the network, which fits the residual.

        intercept + r . (age, log of visits, of days with visits and of days since[, whether the age is unknown])
        + sum over tokens c that a subject has    u_c . (1, log n_c, exp(-days_c / s_1), ..., exp(-days_c / s_S))
        + sum over codes v whose values are cut   w_v . (first, last, lowest, highest, mean and spread of the levels,
                                                         and their means with weights exp(-days / s_1), ...)

    with n_c how often the record holds c, and days_c how long before its end it does last. A network needs many
    subjects to find what such a regression starts from (Cheng et al. 2016, "Wide & Deep Learning for Recommender
    Systems", arXiv:1606.07792, section 3). `objectives._code_effects` fits it; no gradient reaches it.

    Parameters
    ----------
    scales_days : (S,) of times, as those of `behrt.Readout`
    mean_age : () of the training subjects in years, which stands for an age that is unknown, and is told apart from it
        by a column of its own; None where every age is known, and there is no such column
    effect : (P, R) of the P columns on R outputs; r, u token after token, w code after code
    intercept : (R,)

    Raises
    ------
    ValueError
        If the effects are not as many as tokens, codes and scales ask for.
    """

    N_OF_RECORD = 4  # and one more where ages may be unknown
    N_OF_TOKEN = 2  # and the scales, as below
    N_OF_LEVEL = 6

    def __init__(
        self,
        levels: Levels,
        scales_days: Tensor,
        effect: Tensor,
        intercept: Tensor,
        mean_age: Tensor | None = None,
    ) -> None:
        super().__init__()
        n_columns = self.n_columns(levels, len(scales_days), may_lack_age=mean_age is not None)
        is_right = intercept.dim() == 1 and effect.shape == (n_columns, len(intercept))
        if not is_right or levels.code.shape != levels.level.shape:
            raise ValueError(f"effects of shape {tuple(effect.shape)}, and {n_columns} columns")
        self.scales_days: Tensor
        self.code: Tensor
        self.level: Tensor
        self.effect: Tensor
        self.intercept: Tensor
        self.register_buffer("scales_days", scales_days)
        self.register_buffer("code", levels.code)
        self.register_buffer("level", levels.level)
        self.register_buffer("effect", effect)
        self.register_buffer("intercept", intercept)
        self.mean_age: Tensor | None
        self.register_buffer("mean_age", mean_age)

    @classmethod
    def nothing(
        cls, levels: Levels, scales_days: Sequence[float], n_outputs: int, mean_age: float | None = None
    ) -> CodeEffects:
        """Effects of 0, to read columns with."""
        n_columns = cls.n_columns(levels, len(scales_days), may_lack_age=mean_age is not None)
        mean = None if mean_age is None else torch.tensor(mean_age)
        return cls(levels, torch.tensor(scales_days), torch.zeros(n_columns, n_outputs), torch.zeros(n_outputs), mean)

    @classmethod
    def n_columns(cls, levels: Levels, n_scales: int, *, may_lack_age: bool = False) -> int:
        """P."""
        n_codes = int(levels.code.max()) + 1 if len(levels.code) else 0
        n_of_tokens = len(levels.code) * (cls.N_OF_TOKEN + n_scales)
        return cls.N_OF_RECORD + may_lack_age + n_of_tokens + n_codes * (cls.N_OF_LEVEL + n_scales)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], prefix: str) -> CodeEffects | None:
        """Those among a model's tensors, or None where it has none.

        Raises
        ------
        KeyError, ValueError
            If some of them are missing, or do not fit each other.
        """
        if f"{prefix}effect" not in weights:
            return None
        names = ("code", "level", "scales_days", "effect", "intercept")
        code, level, scales_days, effect, intercept = (weights[prefix + name] for name in names)
        if code.dim() != 1 or scales_days.dim() != 1 or (code < -1).any() or not (scales_days > 0).all():
            raise ValueError("codes are numbered from 0, -1 for none, and scales of times are above 0")
        return cls(Levels(code, level), scales_days, effect, intercept, weights.get(f"{prefix}mean_age"))

    def with_effects(self, effect: Tensor, intercept: Tensor) -> CodeEffects:
        """Other effects of the same columns."""
        return CodeEffects(Levels(self.code, self.level), self.scales_days, effect, intercept, self.mean_age)

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

    def forward(self, batch: Batch) -> Tensor:
        """(B, R)"""
        subject, column, value = self.entries(batch)
        order = subject.argsort(stable=True)
        n_entries = torch.bincount(subject, minlength=len(batch.lengths))
        # A bag of embeddings is a weighted sum of rows, without the (E, R) products.
        total = F.embedding_bag(
            column[order], self.effect, n_entries.cumsum(0) - n_entries, mode="sum", per_sample_weights=value[order]
        )
        return total + self.intercept

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
