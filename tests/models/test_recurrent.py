"""Recurrent encoders step through a packed row as PyTorch's own layers do through packed sequences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import random_store
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from ehrtrack.data.batch import Batch, collate
from ehrtrack.models.recurrent import Recurrent

VOCABULARY_SIZE = 40


def states_by_layer(encoder: Recurrent, layer: nn.RNNBase, batch: Batch) -> Tensor:
    """The encoder's states, by a layer of PyTorch that has the weights of its cell."""
    for name, weight in encoder.cell.named_parameters():
        setattr(layer, f"{name}_l0", weight)
    embedded = torch.split(encoder.embeddings(batch), list(batch.lengths))
    states, _ = layer(pack_sequence(list(embedded), enforce_sorted=False))
    return encoder.norm(torch.cat(unpack_sequence(states)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("cell", "layer"), [(nn.GRUCell, nn.GRU), (nn.LSTMCell, nn.LSTM)])
def test_states_and_gradients_are_those_of_the_layer_over_packed_sequences(
    cell: type[nn.GRUCell] | type[nn.LSTMCell], layer: type[nn.RNNBase]
) -> None:
    torch.manual_seed(0)
    encoder = Recurrent(cell, 16, VOCABULARY_SIZE, 0.0).double()  # in float32 processors differ in the fifth digit
    batch = collate(random_store(9, VOCABULARY_SIZE), np.arange(9), max_tokens=24)
    batch = replace(batch, days_to_end=batch.days_to_end.double())
    assert len(set(batch.lengths)) > 3
    states, expected = encoder(batch), states_by_layer(encoder, layer(16, 16).double(), batch)  # type: ignore[arg-type, call-arg]
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-12)
    towards = torch.randn_like(states)
    weights = [*encoder.embeddings.code.parameters(), *encoder.cell.parameters()]
    gradients = torch.autograd.grad((states * towards).sum(), weights)
    of_layer = torch.autograd.grad((expected * towards).sum(), weights)
    for ours, theirs in zip(gradients, of_layer, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
