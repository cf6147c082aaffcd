"""Heads: from the encoder's hidden states to what an objective scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch
from ehrtrack.models.dropout import Dropout
from ehrtrack.models.pooling import attention_pool


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


class CodeHead(nn.Module):
    """K numbers a code, from the [CLS] states of a batch and the encoder's own embeddings of the codes.

    Each of the K has its own view of the state, and is its inner product with the code's embedding beside a bias, as in
    MOTOR (Steinberg et al. 2023, section 3.2). It begins at the bias.

    Parameters
    ----------
    codes : (C,) which of the V tokens
    baseline : (K, C) where it begins
    """

    def __init__(self, width: int, codes: Tensor, baseline: Tensor) -> None:
        super().__init__()
        self.codes = codes
        self.transform = nn.Linear(width, len(baseline) * width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(baseline.clone())

    def forward(self, hidden: Tensor, batch: Batch, code_embedding: Tensor) -> Tensor:
        views = self.transform(hidden[batch.cls_positions]).unflatten(1, (len(self.bias), -1))  # (B, K, D)
        x = self.norm(F.gelu(views)).to(hidden.dtype)
        # The bias is added in full precision: half of it would cost a rare code's rate its second digit.
        return F.linear(x, code_embedding[self.codes]).float() + self.bias  # (B, K, C)


class ProjectionHead(nn.Module):
    """The [CLS] states of a batch in the space in which views are compared (Chen et al. 2020, SimCLR, section 2)."""

    def __init__(self, width: int, projection: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, projection, bias=False)

    def forward(self, hidden: Tensor, batch: Batch, code_embedding: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(hidden[batch.cls_positions])))  # type: ignore[no-any-return]  # (B, E)


class PartHeads(nn.Module):
    """Several heads on one encoder; the batch says which of them reads it."""

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    def forward(self, hidden: Tensor, batch: Batch, code_embedding: Tensor) -> Tensor:
        return self.heads[batch.part](hidden, batch, code_embedding)  # type: ignore[no-any-return]


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
        pooled = attention_pool(hidden, self.score, batch.offsets)  # (B, pools, D)
        features = torch.cat([hidden[batch.cls_positions], pooled.flatten(1)], dim=1)
        return self.out(self.dropout(self.norm(features)))  # type: ignore[no-any-return]  # (B, K)
