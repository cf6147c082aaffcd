"""The same model written the common way: every record padded to 512, logits everywhere, plain AdamW.

Parameters have the names of the packed model's, so that `load_state_dict` takes its weights: with dropout off both
give the same loss. Differences are the common habits, each of them in most published code for patient records:
all positions are computed and a mask hides the padding; the token head scores every position over the vocabulary
and `ignore_index` drops all but the targets; attention weights have dropout; AdamW is not fused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._ours import CLIP_NORM, LR, Training, masked, objective_loss
from benchmarks._workload import MAX_TOKENS
from ehrtrack.data.batch import MAX_POSITION, N_GAPS, Batch
from ehrtrack.data.visits import MAX_AGE_YEARS
from ehrtrack.data.vocabulary import PAD
from ehrtrack.models import behrt, heads
from ehrtrack.models.behrt import SIZES, ModelConfig, Recency, Size

IGNORED = -100


@dataclass(frozen=True)
class PaddedBatch:
    """B records of L = 512 tokens each.

    Attributes
    ----------
    fields : token, age, segment, position, gap and days_to_end, each (B, L)
    is_token : (B, L) bool, False at padding
    targets : (B, L) tokens to predict, `IGNORED` elsewhere
    last : (B,) place of [CLS]
    """

    fields: dict[str, Tensor]
    is_token: Tensor
    targets: Tensor
    last: Tensor
    n_real_tokens: int

    def to(self, device: str) -> PaddedBatch:
        """The batch on a device."""
        fields = {name: field.to(device) for name, field in self.fields.items()}
        return PaddedBatch(
            fields, self.is_token.to(device), self.targets.to(device), self.last.to(device), self.n_real_tokens
        )


def pad(batch: Batch, length: int = MAX_TOKENS) -> PaddedBatch:
    """A packed batch as padded rows."""
    lengths = torch.tensor(batch.lengths)
    is_token = torch.arange(length) < lengths[:, None]  # (B, L)

    def spread(values: Tensor, padding: int) -> Tensor:
        rows = torch.full(is_token.shape, padding, dtype=values.dtype)
        rows[is_token] = values
        return rows

    targets = torch.full_like(batch.token, IGNORED)
    if batch.target_positions is not None and batch.targets is not None:
        targets[batch.target_positions] = batch.targets
    names = ("token", "age", "segment", "position", "gap", "days_to_end")
    fields = {name: spread(getattr(batch, name), PAD) for name in names}
    return PaddedBatch(fields, is_token, spread(targets, IGNORED), lengths - 1, len(batch.token))


class Embeddings(nn.Module):
    def __init__(self, width: int, vocabulary_size: int, dropout: float) -> None:
        super().__init__()
        self.code = nn.Embedding(vocabulary_size, width)
        self.age = nn.Embedding(MAX_AGE_YEARS + 1, width)
        self.segment = nn.Embedding(3, width)
        self.position = nn.Embedding(MAX_POSITION + 1, width)
        self.gap = nn.Embedding(N_GAPS, width)
        self.recency = Recency(width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, fields: dict[str, Tensor]) -> Tensor:
        x = self.recency(self.code(fields["token"]), fields["days_to_end"])
        for name in ("age", "segment", "position", "gap"):
            x = x + getattr(self, name)(fields[name])
        return self.dropout(self.norm(x))  # type: ignore[no-any-return]  # (B, L, D)


class SelfAttention(nn.Module):
    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(2, (self.n_heads, -1)).transpose(1, 2)  # (B, heads, L, D / heads)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=is_token[:, None, None, :], dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, size: Size, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size.width)
        self.attention = SelfAttention(size.width, size.n_heads, dropout)
        self.mlp_norm = nn.LayerNorm(size.width)
        self.fc1 = nn.Linear(size.width, size.mlp_width)
        self.fc2 = nn.Linear(size.mlp_width, size.width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), is_token))
        return x + self.dropout(self.fc2(self.activation(self.fc1(self.mlp_norm(x)))))  # type: ignore[no-any-return]


class Readout(behrt.Readout):
    """The packed model's layers, read over padded rows."""

    def forward(self, x: Tensor, batch: PaddedBatch) -> Tensor:  # type: ignore[override]
        weights = self.weights(batch.fields["days_to_end"])  # (B, L, S)
        signals = F.relu(self.detect(self.norm(x)))[:, :, None] * weights[..., None]  # (B, L, S, D)
        largest = signals.masked_fill(~batch.is_token[:, :, None, None], 0).amax(dim=1).flatten(1)
        return self.dropout(self.fc2(self.activation(self.fc1(self.read_norm(largest)))))  # type: ignore[no-any-return]  # (B, D)


class Encoder(nn.Module):
    def __init__(self, size: Size, vocabulary_size: int, dropout: float) -> None:
        super().__init__()
        self.embeddings = Embeddings(size.width, vocabulary_size, dropout)
        self.layers = nn.ModuleList(Layer(size, dropout) for _ in range(size.n_layers))
        self.readout = Readout(size.width, ModelConfig().readout_days, dropout)
        self.norm = nn.LayerNorm(size.width)

    def forward(self, batch: PaddedBatch) -> Tensor:
        x: Tensor = self.embeddings(batch.fields)
        for layer in self.layers[:-1]:
            x = layer(x, batch.is_token)
        subject = torch.arange(len(x), device=x.device)
        x = x.index_put((subject, batch.last), self.readout(x, batch).to(x.dtype), accumulate=True)
        return self.norm(self.layers[-1](x, batch.is_token))  # type: ignore[no-any-return]  # (B, L, D)


class TokenHead(nn.Module):
    """Logits over the vocabulary at every position."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, hidden: Tensor, batch: PaddedBatch, code_embedding: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.transform(hidden))), code_embedding, self.bias)  # (B, L, V)


class HazardHead(nn.Module):
    """Hazard logits from [CLS], a masked attention pool and the masked maximum, as the packed model's head."""

    def __init__(self, width: int, n_intervals: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.norm = nn.LayerNorm(3 * width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(3 * width, 2, bias=False)
        self.baseline = nn.Parameter(torch.zeros(n_intervals))

    def forward(self, hidden: Tensor, batch: PaddedBatch, code_embedding: Tensor) -> Tensor:
        is_padding = ~batch.is_token[:, :, None]
        weights = (hidden @ self.query)[:, :, None].masked_fill(is_padding, -torch.inf).softmax(1)  # (B, L, 1)
        mean, largest = (weights * hidden).sum(1), hidden.masked_fill(is_padding, -torch.inf).amax(1)
        cls = hidden[torch.arange(len(hidden), device=hidden.device), batch.last]
        effects = self.out(self.dropout(self.norm(torch.cat([cls, mean, largest], dim=1))))  # (B, 2)
        return (
            effects[:, :1]
            + effects[:, 1:] * torch.linspace(-1, 1, len(self.baseline), device=hidden.device)
            + self.baseline
        )  # type: ignore[no-any-return]


class PaddedModel(nn.Module):
    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, batch: PaddedBatch) -> Tensor:
        return self.head(self.encoder(batch), batch, self.encoder.embeddings.code.weight)  # type: ignore[no-any-return, union-attr]


class PaddedTraining:
    """The padded twin of a packed training: same weights at the start, same objective, the common step."""

    def __init__(self, twin: Training, size: str, *, dropout: float = 0.1) -> None:
        state = twin.model.state_dict()
        shape, vocabulary_size = SIZES[size], len(state["encoder.embeddings.code.weight"])
        head: nn.Module
        if "head.out.weight" in state:
            head = HazardHead(shape.width, len(state["head.baseline"]), heads.HazardHead.DROPOUT if dropout else 0.0)
        else:
            head = TokenHead(shape.width, vocabulary_size)
        self.model = PaddedModel(Encoder(shape, vocabulary_size, dropout), head)
        self.model.load_state_dict(state)
        self.device = next(twin.model.parameters()).device
        self.is_bf16 = bool(twin.model.is_bf16)
        self.model.to(self.device)
        self.objective = twin.objective
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, fused=False, foreach=False)
        self.model.train()

    def loss(self, batch: PaddedBatch, packed: Batch) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_bf16):
            logits = self.model(batch).float()
        if logits.dim() == 3:
            return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
        return objective_loss(self.objective, lambda _: logits, packed)

    def step(self, batch: PaddedBatch, packed: Batch) -> float:
        """One optimiser step; returns the real tokens of the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(batch, packed).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return float(batch.n_real_tokens)


def mlm_step(padded: PaddedTraining, twin: Training, batch: Batch) -> float:
    """Mask, pad and step, as a common data collator and loop do for every batch."""
    hidden = masked(twin, batch, seed=0)
    return padded.step(pad(hidden), hidden)
