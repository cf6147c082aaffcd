"""What single codes and values add to a log-hazard: the wide part of a wide and deep model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ehrtrack.data.batch import Batch
from ehrtrack.models.record_columns import Levels, RecordColumns, bag


class CodeEffects(RecordColumns):
    """A fixed offset: a regression on single codes and values, fitted before the network, which fits the residual.

        intercept + sum over columns p of the record (`record_columns`)    value_p effect_p

    A network needs many subjects to find what such a regression starts from (Cheng et al. 2016, "Wide & Deep Learning
    for Recommender Systems", arXiv:1606.07792, section 3). `objectives._code_effects` fits it; no gradient reaches it.

    Parameters
    ----------
    effect : (P, R) of the P columns on R outputs
    intercept : (R,)

    Raises
    ------
    ValueError
        If the effects are not as many as tokens, codes and scales ask for.
    """

    def __init__(
        self,
        levels: Levels,
        scales_days: Tensor,
        effect: Tensor,
        intercept: Tensor,
        mean_age: Tensor | None = None,
    ) -> None:
        super().__init__(levels, scales_days, mean_age)
        n_columns = self.n_columns(levels, len(scales_days), may_lack_age=mean_age is not None)
        is_right = intercept.dim() == 1 and effect.shape == (n_columns, len(intercept))
        if not is_right or levels.code.shape != levels.level.shape:
            raise ValueError(f"effects of shape {tuple(effect.shape)}, and {n_columns} columns")
        self.effect: Tensor
        self.intercept: Tensor
        self.register_buffer("effect", effect)
        self.register_buffer("intercept", intercept)

    @classmethod
    def nothing(
        cls, levels: Levels, scales_days: Sequence[float], n_outputs: int, mean_age: float | None = None
    ) -> CodeEffects:
        """Effects of 0, to read columns with."""
        n_columns = cls.n_columns(levels, len(scales_days), may_lack_age=mean_age is not None)
        mean = None if mean_age is None else torch.tensor(mean_age)
        return cls(levels, torch.tensor(scales_days), torch.zeros(n_columns, n_outputs), torch.zeros(n_outputs), mean)

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

    def forward(self, batch: Batch) -> Tensor:
        """(B, R)"""
        return bag(self.entries(batch), self.effect, len(batch.lengths)) + self.intercept
