"""Encoders that are older than the transformer, over the same packed tokens and the same embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ehrtrack.arrays import Ints
from ehrtrack.data.batch import Batch
from ehrtrack.models.behrt import Embeddings


class Recurrent(nn.Module):
    """A GRU or LSTM that reads each subject's tokens in time order. Its last state is that of [CLS], at the cutoff.

    It steps through the batch with a cell: on a CPU the backward pass of `nn.GRU` over packed sequences makes a
    gradient of the whole row's size at every step, and takes eleven times as long (8,000 tokens of 87 subjects).

    Parameters
    ----------
    cell : ``nn.GRUCell`` or ``nn.LSTMCell``
    width : D, of embeddings and states
    """

    def __init__(
        self,
        cell: type[nn.GRUCell] | type[nn.LSTMCell],
        width: int,
        vocabulary_size: int,
        dropout: float,
        *,
        may_lack_age: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.embeddings = Embeddings(width, vocabulary_size, dropout, may_lack_age=may_lack_age)
        self.cell = cell(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch) -> Tensor:
        """State after each token, (T, D)."""
        order, n_reading = _steps(np.array(batch.lengths))
        step_by_step = torch.from_numpy(order).to(batch.token.device)
        state: tuple[Tensor, ...] | None = None  # of the subjects that still read: h, and an LSTM's c
        states = []
        for tokens in torch.split(self.embeddings(batch)[step_by_step], n_reading):
            state = self._step(tokens, state)
            states.append(state[0])
        back = torch.empty_like(step_by_step)
        back[step_by_step] = torch.arange(len(back), device=back.device)
        return self.norm(torch.cat(states)[back])  # type: ignore[no-any-return]

    def _step(self, tokens: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """States of the first subjects of a step before, which are those that have one more token each."""
        before = None if state is None else tuple(part[: len(tokens)] for part in state)
        if isinstance(self.cell, nn.LSTMCell):
            return self.cell(tokens, before)  # type: ignore[no-any-return]
        return (self.cell(tokens, None if before is None else before[0]),)


def _steps(lengths: Ints) -> tuple[Ints, list[int]]:
    """Places of a packed row's T tokens in the order of reading: the first of each subject, then the second ...; and
    how many subjects read at each step. Long records come first, so that those who still read stand together.
    """
    rank = np.argsort(np.argsort(-lengths, kind="stable"))
    step = np.concatenate([np.arange(n) for n in lengths])  # (T,)
    return np.lexsort((np.repeat(rank, lengths), step)), np.bincount(step).tolist()


class MeanPool(nn.Module):
    """The mean of a subject's embeddings, through one hidden layer: a bag of codes with ages and gaps, no order."""

    def __init__(self, width: int, vocabulary_size: int, dropout: float, *, may_lack_age: bool = False) -> None:
        super().__init__()
        self.width = width
        self.embeddings = Embeddings(width, vocabulary_size, dropout, may_lack_age=may_lack_age)
        self.hidden = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch) -> Tensor:
        """(T, D): the same state for each token of a subject."""
        lengths = batch.offsets.diff()
        mean = torch.segment_reduce(self.embeddings(batch), "mean", lengths=lengths)  # (B, D)
        return self.norm(torch.relu(self.hidden(mean)))[batch.subject]  # type: ignore[no-any-return]


class SequenceModel(nn.Module):
    """An encoder and the head of an objective."""

    def __init__(self, encoder: Recurrent | MeanPool, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """What the head returns: hazard logits (B, K)."""
        return self.head(self.encoder(batch), batch, self.encoder.embeddings.code.weight)  # type: ignore[no-any-return]
