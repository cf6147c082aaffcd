"""Batches of fixed shapes, for what is recorded once and replayed: real subjects, and a few that only fill up.

A filler is a subject like any other, whose tokens are all [CLS]. Nothing sees it: no token attends beyond its own
subject, and the labels of fillers add nothing to a loss (`objectives.base.Objective.fillers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ehrtrack.data.batch import Batch, Batches
from ehrtrack.data.vocabulary import CLS

SHARES = (1.0, 0.5)
"""Shapes of a token budget, as shares of it; a batch goes by the smallest that holds it."""
MOST_FILLED = 0.5
"""Share of a shape's tokens that fillers may have."""
MULTIPLE = 64
"""Of which the tokens of a shape are one, as matrix units of GPUs work in blocks."""


@dataclass(frozen=True)
class Shape:
    """What batches are filled up to.

    Attributes
    ----------
    n_tokens : T, those of fillers included
    n_subjects : B, fillers included
    longest : tokens that a subject has at most
    n_targets : M, 0 where batches have none

    Examples
    --------
    >>> shape = Shape(n_tokens=64, n_subjects=8, longest=30)
    >>> shape.holds(lengths=(30, 12), n_targets=0), shape.holds(lengths=(10,), n_targets=0)
    (True, False)
    """

    n_tokens: int
    n_subjects: int
    longest: int
    n_targets: int = 0

    def holds(self, lengths: tuple[int, ...], n_targets: int) -> bool:
        """Whether a batch can be filled up to it, by one filler or more."""
        n_fillers, n_filled = self.n_subjects - len(lengths), self.n_tokens - sum(lengths)
        surplus = self.n_targets - n_targets
        if n_fillers < 1 or surplus < 0 or not n_fillers <= n_filled <= MOST_FILLED * self.n_tokens:
            return False
        return max(lengths) <= self.longest and max(n_filled, surplus) <= n_fillers * (self.longest - 2)


def shapes_of(batches: Batches, most_targets: Callable[[int], int]) -> list[Shape]:
    """The shapes for batches of a budget, the smallest first.

    They follow from the lengths of all records, and not from how an epoch shuffles them: a resumed run has the same.

    Parameters
    ----------
    most_targets : of a batch of so many tokens
    """
    lengths = batches.lengths_of(batches.rows)
    mean, deviation = float(lengths.mean()), float(lengths.std())
    shapes = []
    for share in sorted(SHARES):
        budget = int(share * batches.batch_tokens)
        # As many subjects as fill a budget of independent lengths, and four standard deviations more.
        n_subjects = math.ceil(budget / mean + 4 * deviation * math.sqrt(budget / mean**3)) + 1
        n_tokens = -(-(budget + n_subjects) // MULTIPLE) * MULTIPLE
        shapes.append(Shape(n_tokens, n_subjects, batches.max_tokens, most_targets(budget)))
    return shapes


def smallest(shapes: Iterable[Shape], batch: Batch) -> Shape | None:
    """The first of some shapes, of which the smallest come first, that holds a batch; None where none does."""
    n_targets = 0 if batch.target_positions is None else len(batch.target_positions)
    return next((shape for shape in shapes if shape.holds(batch.lengths, n_targets)), None)


def fill(batch: Batch, shape: Shape) -> Batch:
    """A batch filled up to a shape that holds it; its outcomes are left out.

    What is more than its tokens is shared out to the fillers, and surplus targets lie among theirs.
    """
    n_fillers, n_filled = shape.n_subjects - len(batch.lengths), shape.n_tokens - batch.n_tokens
    lengths = tuple(n_filled * (i + 1) // n_fillers - n_filled * i // n_fillers for i in range(n_fillers))
    of_tokens = {"token": CLS, "age": 0, "segment": 0, "position": 0, "gap": 0, "days_to_end": 0.0}
    filled: dict[str, Any] = {
        name: filled_up(getattr(batch, name), shape.n_tokens, value) for name, value in of_tokens.items()
    }
    if batch.hidden is not None:
        filled["hidden"] = filled_up(batch.hidden, shape.n_tokens, 0.0)
    if batch.target_positions is not None:
        surplus = shape.n_targets - len(batch.target_positions)
        spread = torch.arange(surplus, device=batch.token.device) * n_filled // max(surplus, 1)
        filled["target_positions"] = torch.cat([batch.target_positions, batch.n_tokens + spread])
    return replace(
        batch,
        **filled,
        rows=filled_up(batch.rows, shape.n_subjects, -1),
        lengths=batch.lengths + lengths,
        outcomes=None,
        targets=None,
        is_first=None,
    )


def filled_up(values: Tensor, n: int, value: float) -> Tensor:
    """(n, ...) the rows of a tensor, and a value in all rows after them.

    >>> filled_up(torch.tensor([3, 5]), 4, -1).tolist()
    [3, 5, -1, -1]
    """
    return F.pad(values, (0, 0) * (values.dim() - 1) + (0, n - len(values)), value=value)


@dataclass(frozen=True, kw_only=True)
class FixedBatch(Batch):
    """A batch of a fixed shape whose tensors are overwritten by the next: they alone tell where its subjects lie.

    Attributes
    ----------
    lengths : for each of the B subjects the most tokens that it may have
    offsets, subject : as those of `Batch`
    """

    offsets: Tensor = field()
    subject: Tensor = field()

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.token)

    @classmethod
    def over(cls, tensors: Mapping[str, Tensor], shape: Shape) -> FixedBatch:
        """The batch that reads those of some tensors that are named as its fields are."""
        lengths = (shape.longest,) * shape.n_subjects
        of_batch = {name: tensor for name, tensor in tensors.items() if name in cls.__dataclass_fields__}
        return cls(lengths=lengths, seed=0, **of_batch)  # type: ignore[arg-type]


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a filled batch by which `FixedBatch.over` is made."""
    names = [*Batch.__dataclass_fields__, "offsets", "subject"]
    found = {name: getattr(batch, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
