"""Encoders that are older than the transformer, over the same packed tokens and the same embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from ehrtrack.data.batch import Batch
from ehrtrack.models.behrt import Embeddings


class Recurrent(nn.Module):
    """A GRU or LSTM that reads each subject's tokens in time order. Its last state is that of [CLS], at the cutoff.

    Parameters
    ----------
    layer : ``nn.GRU`` or ``nn.LSTM``
    width : D, of embeddings and states
    """

    def __init__(self, layer: type[nn.RNNBase], width: int, vocabulary_size: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.embeddings = Embeddings(width, vocabulary_size, dropout)
        make: Any = layer
        self.recurrent = make(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch) -> Tensor:
        """State after each token, (T, D)."""
        embedded = torch.split(self.embeddings(batch), list(batch.lengths))
        states, _ = self.recurrent(pack_sequence(list(embedded), enforce_sorted=False))
        return self.norm(torch.cat(unpack_sequence(states)))  # type: ignore[no-any-return]


class MeanPool(nn.Module):
    """The mean of a subject's embeddings, through one hidden layer: a bag of codes with ages and gaps, no order."""

    def __init__(self, width: int, vocabulary_size: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.embeddings = Embeddings(width, vocabulary_size, dropout)
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
