"""What age and static facts add to a log-hazard: the floor that a network stands on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ehrtrack.data.batch import Batch
from ehrtrack.data.visits import UNKNOWN_AGE


class StaticEffects(nn.Module):
    """The effects of age at the end of the record, and of static facts such as sex, directly on the outcome.

        z u,    z = ((age[, whether it is unknown], static fact 1 or 0, ...) - mean) / scale

    Masked codes say little of age, so that pretrained states hardly tell it, and few labels do not teach a network to
    read it; yet much of the risk in most cohorts is age's. `objectives._floor` fits the effects before
    training, which then goes on with them.

    Parameters
    ----------
    token : (S,) int64, rising, which of the V tokens are static facts
    mean, scale : (P,) of the P columns in training
    effect : (P, R) on R outputs
    mean_age : () of the training subjects in years, which stands for an age that is unknown and is told apart from it
        by a column of its own; None where every age is known, and there is no such column

    Raises
    ------
    ValueError
        If the numbers of columns differ, tokens do not rise, or a scale is not above 0.
    """

    def __init__(
        self, token: Tensor, mean: Tensor, scale: Tensor, effect: Tensor, mean_age: Tensor | None = None
    ) -> None:
        super().__init__()
        n_columns = 1 + (mean_age is not None) + len(token)
        found = tuple(mean.shape), tuple(scale.shape), tuple(effect.shape[:1])
        if token.dim() != 1 or effect.dim() != 2 or any(shape != (n_columns,) for shape in found):
            raise ValueError(f"effects of shapes {found}, and {n_columns} columns")
        if (token.diff() <= 0).any() or (token < 0).any() or not (scale > 0).all():
            raise ValueError("static facts are rising tokens from 0 on, and scales are above 0")
        self.token: Tensor
        self.mean: Tensor
        self.scale: Tensor
        self.mean_age: Tensor | None
        self.register_buffer("token", token)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("mean_age", mean_age)
        self.effect = nn.Parameter(effect)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], prefix: str) -> StaticEffects | None:
        """Those among a model's tensors, or None where it has none, as models of before.

        Raises
        ------
        KeyError, ValueError
            If some of them are missing, or do not fit each other.
        """
        if f"{prefix}effect" not in weights:
            return None
        token, mean, scale, effect = (weights[prefix + name] for name in ("token", "mean", "scale", "effect"))
        return cls(token, mean, scale, effect.clone(), weights.get(f"{prefix}mean_age"))

    def forward(self, batch: Batch) -> Tensor:
        """(B, R)"""
        # A sum of products, as a matrix product would be one of halves under autocast.
        total: Tensor = (self.z(batch)[:, :, None] * self.effect).sum(dim=1)
        return total

    def z(self, batch: Batch) -> Tensor:
        """(B, P) the columns of a batch's subjects."""
        return (columns(batch, self.token, self.mean_age) - self.mean) / self.scale


def columns(batch: Batch, token: Tensor, mean_age: Tensor | None) -> Tensor:
    """(B, P) age in years at the end of the record, whether it is unknown where that may be, and each static fact."""
    age = batch.age[batch.cls_positions].to(torch.float32)
    of_age = [age] if mean_age is None else [torch.where(age == UNKNOWN_AGE, mean_age, age), age == UNKNOWN_AGE]
    facts = age.new_zeros(len(age), len(token))
    if len(token):
        column = torch.searchsorted(token, batch.token).clamp(max=len(token) - 1)
        is_there = ((token[column] == batch.token) & is_static(batch)).to(facts.dtype)
        facts = facts.index_put((batch.subject, column), is_there, accumulate=True).clamp(max=1)
    return torch.cat([torch.stack(of_age, dim=1).to(torch.float32), facts], dim=1)


def is_static(batch: Batch) -> Tensor:
    """(T,) bool, which tokens are of no time."""
    return torch.isinf(batch.days_to_end)
