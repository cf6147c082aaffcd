"""Hugging Face's BertForMaskedLM of the same shape, on batches of records of like length.

Records are sorted by length and cut into batches that are padded to their longest: the usual way to waste little.
BERT embeds code, visit segment and place alone (no age, no time gap), so it does a little less than our model.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from benchmarks._ours import CLIP_NORM, LR, Training, batch_of, masked
from benchmarks._workload import MAX_TOKENS
from benchmarks.peers.padded import PaddedBatch, pad
from ehrtrack.data.batch import Batch
from ehrtrack.data.store import TokenStore
from ehrtrack.models.behrt import SIZES


def length_buckets(store: TokenStore, batch_size: int, n_buckets: int) -> list[Batch]:
    """Some batches of like length out of a whole store, evenly spaced from the shortest to the longest.

    The store is many times larger than what is taken, as a cohort is: cut from a few subjects alone, buckets would
    be wide and the peer would pad far more than it does in use.
    """
    order = np.argsort(store.n_tokens, kind="stable")
    n_all = len(order) // batch_size
    chosen = ((np.arange(n_buckets) + 0.5) * n_all / n_buckets).astype(np.int64)
    return [batch_of(store, order[k * batch_size : (k + 1) * batch_size]) for k in chosen]


def inputs(batch: PaddedBatch) -> dict[str, Tensor]:
    """A padded batch in BERT's words."""
    return {
        "input_ids": batch.fields["token"],
        "token_type_ids": batch.fields["segment"],
        "attention_mask": batch.is_token.long(),
        "labels": batch.targets,
    }


class HuggingFaceTraining:
    """BertForMaskedLM with fused AdamW; in bf16 under autocast."""

    def __init__(
        self,
        size: str,
        vocabulary_size: int,
        *,
        precision: str,
        attention_dropout: float,
        device: str = "cpu",
        compiled_by: str = "",
    ) -> None:
        shape = SIZES[size]
        torch.manual_seed(0)
        self.precision = precision
        self.device = device
        self.model = BertForMaskedLM(
            BertConfig(
                vocab_size=vocabulary_size,
                hidden_size=shape.width,
                num_hidden_layers=shape.n_layers,
                num_attention_heads=shape.n_heads,
                intermediate_size=shape.mlp_width,
                max_position_embeddings=MAX_TOKENS,
                type_vocab_size=3,
                hidden_dropout_prob=0.1,
                attention_probs_dropout_prob=attention_dropout,
                attn_implementation="sdpa",  # type: ignore[call-arg]  # taken by the base class
            )
        ).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, fused=True)
        self.model.train()
        if compiled_by:  # for any length of a batch: buckets would each be compiled anew
            self.model.compile(backend=compiled_by, dynamic=True)

    def loss(self, batch: PaddedBatch) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model(**inputs(batch)).loss  # type: ignore[no-any-return]

    def step(self, batch: PaddedBatch) -> float:
        """One optimiser step; returns the real tokens of the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(batch).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        return float(batch.n_real_tokens)


def mlm_step(training: HuggingFaceTraining, twin: Training, batch: Batch) -> float:
    """Mask, pad to the longest and step."""
    return training.step(pad(masked(twin, batch, seed=0), max(batch.lengths)))
