"""Floating-point operations of a training step, counted from the shapes of a model and of a batch.

Counted are products of matrices, a multiplication and an addition as two operations, forward and backward, as is usual
for the utilisation of a device (Chowdhery et al. 2022, "PaLM", appendix B): what the model asks for. What recomputing
adds, fillers and everything else that a program does beside are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from torch import nn

from ehrtrack.models.behrt import Behrt, EhrModel, Layer
from ehrtrack.models.heads import HazardHead, Head, PartHeads, TokenHead


@dataclass(frozen=True)
class Work:
    """What a step's operations are proportional to.

    Attributes
    ----------
    tokens, subjects : T and B
    read : tokens whose states the head asks for
    pairs : of a token that attends and one that it attends to, in a layer
    read_pairs : those of the last layer, where the tokens that are read attend
    """

    tokens: float = 0
    subjects: float = 0
    read: float = 0
    pairs: float = 0
    read_pairs: float = 0


class StepFlops:
    """Operations of a step of a model, or of one that adapters wrap, by what learns when this is made.

    Examples
    --------
    A step on twice as many records takes twice the operations:

    >>> import torch
    >>> from ehrtrack.models.behrt import Behrt, ModelConfig
    >>> encoder = Behrt(ModelConfig(size="tiny"), 30)
    >>> flops = StepFlops.of(EhrModel(encoder, HazardHead(encoder.width, torch.zeros(5))))
    >>> flops([20, 30, 20, 30]) / flops([20, 30])
    2.0
    """

    def __init__(self, model: EhrModel, head: TokenHead | HazardHead) -> None:
        self._has_targets = isinstance(head, TokenHead)
        units = [Work(**{name: 1.0}) for name in Work.__dataclass_fields__]
        self._of_unit = {
            is_cached: [_Count(work).model(model, head, is_cached=is_cached) for work in units]
            for is_cached in (False, True)
        }

    @classmethod
    def of(cls, model: nn.Module) -> StepFlops | None:
        """None where the encoder is no transformer, or it is not known what the head reads."""
        whole = next((module for module in model.modules() if isinstance(module, EhrModel)), None)
        if whole is None or not isinstance(whole.encoder, Behrt):
            return None
        *_, head = (module for module in whole.head.modules() if isinstance(module, Head))  # peft keeps an original
        return cls(whole, head) if isinstance(head, TokenHead | HazardHead) and not _has_parts(whole.head) else None

    def __call__(self, lengths: Sequence[int], *, n_targets: int = 0, is_cached: bool = False) -> float:
        """The operations of a step on a batch.

        Parameters
        ----------
        lengths : (B,) tokens of each subject
        n_targets : M, tokens that a `TokenHead` predicts; they are taken to be spread evenly over subjects
        is_cached : the encoder's states were computed before, and the head alone is
        """
        n_tokens, pairs = sum(lengths), float(sum(n * n for n in lengths))
        read = n_targets if self._has_targets else n_tokens
        work = Work(n_tokens, len(lengths), read, pairs, pairs * read / n_tokens)
        return float(sum(n * of_one for n, of_one in zip(astuple(work), self._of_unit[is_cached], strict=True)))


def _has_parts(head: nn.Module) -> bool:
    return any(isinstance(module, PartHeads) for module in head.modules())


class _Count:
    """Operations of a pass through a model, from its inputs on.

    Attributes
    ----------
    has_learning : whether anything before this learns, so that the gradient goes on through the inputs of what follows
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.has_learning = False
        self.flops = 0.0

    def product(self, n: float, *, learns: bool) -> None:
        """A product of n multiplications, by a matrix that may learn."""
        self.flops += 2 * n * (1 + self.has_learning + learns)

    def linear(self, module: nn.Module, n_rows: float) -> None:
        """All linear maps in a module, each of so many rows; adapters' second maps follow the first."""
        before = self.has_learning
        for name, part in module.named_modules():
            if isinstance(part, nn.Linear) and "original_module" not in name:
                self.has_learning = before or "lora_B" in name
                self.product(n_rows * part.weight.numel(), learns=part.weight.requires_grad)
        self.has_learning = before or any(p.requires_grad for p in module.parameters())

    def model(self, model: EhrModel, head: TokenHead | HazardHead, *, is_cached: bool) -> float:
        """The whole model; returns the operations."""
        if not is_cached:
            self.encoder(model)
        is_of_tokens = isinstance(head, TokenHead)
        self.has_learning |= isinstance(head, HazardHead) and head.norm.weight.requires_grad
        self.linear(head, self.work.read if is_of_tokens else self.work.subjects)
        if is_of_tokens:
            code = model.encoder.embeddings.code.weight
            self.product(self.work.read * code.numel(), learns=code.requires_grad)
        return self.flops

    def encoder(self, model: EhrModel) -> None:
        encoder, work = model.encoder, self.work
        assert isinstance(encoder, Behrt), "others are not counted"
        recency = encoder.embeddings.recency
        for matrix in (recency.scale, recency.shift):
            self.product(work.tokens * matrix.numel(), learns=matrix.requires_grad)
        self.has_learning = any(p.requires_grad for p in encoder.embeddings.parameters())
        *layers, last = encoder.layers
        for layer in layers:
            self.layer(layer, work.tokens, work.pairs)
        readout = encoder.readout
        self.linear(readout.detect, work.tokens)
        for part in (readout.fc1, readout.fc2):
            self.linear(part, work.subjects)
        self.layer(last, work.read, work.read_pairs)

    def layer(self, layer: nn.Module, n_read: float, n_pairs: float) -> None:
        """A layer whose states are asked for at so many tokens."""
        assert isinstance(layer, Layer)
        attention, before = layer.attention, self.has_learning
        rows = {attention.q_proj: n_read, attention.k_proj: self.work.tokens, attention.v_proj: self.work.tokens}
        learning = []
        for projection, n_rows in rows.items():
            self.has_learning = before
            self.linear(projection, n_rows)
            learning.append(self.has_learning)
        self.has_learning = any(learning)
        width = attention.q_proj.in_features
        # Two products, of each of which both factors have a gradient where there is one.
        self.flops += 2 * 2 * n_pairs * width * (1 + 2 * self.has_learning)
        for part in (attention.out_proj, layer.fc1, layer.fc2):
            self.linear(part, n_read)
