"""Heads: from the encoder's hidden states to what an objective scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch
from ehrtrack.models.dropout import Dropout


class TokenHead(nn.Module):
    """Logits over the vocabulary at the masked positions only, with BERT's transform and tied weights."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, hidden: Tensor, batch: Batch, code_embedding: Tensor) -> Tensor:
        assert batch.target_positions is not None, "a batch for pretraining has masked positions"
        x = self.norm(F.gelu(self.transform(hidden[batch.target_positions])))  # (M, D)
        return F.linear(x, code_embedding, self.bias)  # (M, V)


class HazardHead(nn.Module):
    """Hazard logits of K intervals, from the [CLS] state and attention-pooled states of a subject's record.

    Each of `N_POOLS` learned queries takes its own softmax-weighted mean over the record (attention pooling, Lee et al.
    2019, Set Transformer, section 3.2, with one query a pool and no projections). Masked pretraining shapes the states
    of code tokens, and [CLS] only in passing; a plain mean would drown the one code among hundreds that matters.
    """

    N_POOLS = 2

    def __init__(self, width: int, baseline_logits: Tensor) -> None:
        super().__init__()
        n_features = (1 + self.N_POOLS) * width
        self.score = nn.Linear(width, self.N_POOLS)
        self.norm = nn.LayerNorm(n_features)
        self.dropout = Dropout(0.1)
        self.out = nn.Linear(n_features, len(baseline_logits))
        nn.init.normal_(self.score.weight, std=0.02)
        nn.init.normal_(self.out.weight, std=0.01)
        with torch.no_grad():
            self.out.bias.copy_(baseline_logits)

    def forward(self, hidden: Tensor, batch: Batch, code_embedding: Tensor) -> Tensor:
        pooled = attention_pool(hidden, self.score(hidden), batch.offsets)  # (B, pools, D)
        features = torch.cat([hidden[batch.cls_positions], pooled.flatten(1)], dim=1)
        return self.out(self.dropout(self.norm(features)))  # type: ignore[no-any-return]  # (B, K)


def attention_pool(hidden: Tensor, scores: Tensor, offsets: Tensor) -> Tensor:
    """Softmax-weighted means of each subject's hidden states.

    Parameters
    ----------
    hidden : (T, D) packed states
    scores : (T, P) unnormalised weights, one column a pool
    offsets : (B + 1,) where each subject's tokens begin, and T

    Returns
    -------
    (B, P, D)
    """
    hidden, scores = hidden.float(), scores.float()
    lengths = offsets.diff()
    highest = torch.segment_reduce(scores.detach(), "max", lengths=lengths)  # (B, P)
    weights = (scores - highest.repeat_interleave(lengths, 0)).exp()  # (T, P), at most 1
    total = torch.segment_reduce(weights, "sum", lengths=lengths)
    # A bag of embeddings is a weighted sum of rows, in one kernel and without the (T, P, D) products.
    place = torch.arange(len(hidden), device=hidden.device)
    sums = [
        F.embedding_bag(place, hidden, offsets[:-1], mode="sum", per_sample_weights=weight)
        for weight in weights.unbind(1)
    ]
    return torch.stack(sums, dim=1) / total[:, :, None]
