"""What comes in a window of time before or after a cut: how often each code, and how high its values are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ehrtrack.data.batch import Batch
from ehrtrack.data.cuts import Cuts, draw_cuts
from ehrtrack.data.excerpts import ranges
from ehrtrack.data.vocabulary import SPECIAL_TOKENS
from ehrtrack.models.record_columns import Levels


@dataclass(frozen=True)
class Axis:
    """What is counted: C codes with levels, and after them the tokens that have none; N in all.

    Attributes
    ----------
    number : (V,) int64, place of a token among the N, or -1
    level : (V,) float32, of the tokens of the C codes
    n_codes, n_counted : C and N
    """

    number: Tensor
    level: Tensor
    n_codes: int
    n_counted: int

    @classmethod
    def of(cls, levels: Levels) -> Axis:
        """Of a vocabulary."""
        number = levels.code.clone()
        n_codes = int(number.max()) + 1
        others = torch.nonzero(number < 0).squeeze(1)
        others = others[others >= len(SPECIAL_TOKENS)]
        number[others] = n_codes + torch.arange(len(others))
        return cls(number, levels.level, n_codes, n_codes + len(others))

    def window(self, token: Tensor, cut: Tensor, n_cuts: int) -> Tensor:
        """(P, N + 3 C) log counts and mean, lowest and highest levels of the tokens of P cuts; NaN where none is."""
        number, level = self.number.to(token.device)[token], self.level.to(token.device)[token]
        is_counted, is_level = number >= 0, (number >= 0) & (number < self.n_codes)
        counts = torch.bincount(
            cut[is_counted] * self.n_counted + number[is_counted], minlength=n_cuts * self.n_counted
        ).reshape(n_cuts, -1)
        group, level = cut[is_level] * self.n_codes + number[is_level], level[is_level]
        nothing = level.new_zeros(n_cuts * self.n_codes)
        of_levels = [
            nothing.scatter_reduce(0, group, level, how, include_self=False).reshape(n_cuts, -1)
            for how in ("mean", "amin", "amax")
        ]
        is_missing = (counts[:, : self.n_codes] == 0).repeat(1, len(of_levels))
        levels = torch.cat(of_levels, dim=1).masked_fill(is_missing, torch.nan)
        return torch.cat([counts.log1p().to(levels.dtype), levels], dim=1)


def after(batch: Batch, cuts: Cuts, axis: Axis, window_days: float) -> Tensor:
    """(P, N + 3 C) of what comes after each cut and at most `window_days` later."""
    place, cut = ranges(cuts.stop, batch.cls_positions[cuts.subject])
    at_cut = batch.days_to_end[cuts.stop - 1]
    is_within = at_cut[cut] - batch.days_to_end[place] <= window_days
    return axis.window(batch.token[place[is_within]], cut[is_within], len(cuts))


def before(batch: Batch, cuts: Cuts, axis: Axis, window_days: float) -> Tensor:
    """(P, N + 3 C) of what came up to each cut and less than `window_days` before it."""
    place, cut = ranges(cuts.start, cuts.stop)
    at_cut = batch.days_to_end[cuts.stop - 1]
    is_within = batch.days_to_end[place] - at_cut[cut] < window_days
    return axis.window(batch.token[place[is_within]], cut[is_within], len(cuts))


def usual_window_days(batches: Iterable[Batch], n_cuts: int) -> float | None:
    """Half of what is left of a record at a cut, in the middle of `n_cuts` random cuts a subject; None without any."""
    left = [torch.zeros(0)]
    for batch in batches:
        cuts = draw_cuts(batch, n_cuts, batch.generator())
        if cuts is not None:
            left.append(batch.days_to_end[cuts.stop - 1])
    days = torch.cat(left)
    return float(days.median()) / 2 if len(days) else None
