"""Settings of the training loop, of code embeddings, and of the twins that look for leakage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ehrtrack.section import Section


class TrainConfig(Section):
    """Settings of the training loop.

    Attributes
    ----------
    batch_tokens : tokens that go through the model at once; ``auto`` is as many as the device is best with
    accumulate : batches whose gradients make one step
    recompute : keep only each layer's input for the backward pass and compute the rest anew: a third slower, and a
        large part of the memory less
    patience : epochs after which training stops if none has a better validation score, or came to be kept
    warmup_share : share of training in which the learning rate rises
    clip_norm : largest norm of the gradient of all trainable parameters together; inf is no limit

    Examples
    --------
    Gradients of four batches of 4,096 tokens make one step, so that about 16,384 tokens count in it:

    >>> train = TrainConfig(batch_tokens=4096, accumulate=4)
    >>> train.batch_tokens * train.accumulate
    16384
    """

    epochs: int = Field(20, ge=1)
    batch_tokens: Literal["auto"] | Annotated[int, Field(ge=8)] = "auto"
    accumulate: int = Field(1, ge=1)
    recompute: bool = False
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    patience: int = Field(5, ge=1)
    warmup_share: float = Field(0.1, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0, allow_inf_nan=True)


class CanaryConfig(Section):
    """How large the twins of a run are.

    Attributes
    ----------
    n_subjects : of the cohort, drawn at random; 0 takes all
    epochs : of the twins with permuted labels and with another future
    leak_epochs : of the twin with a planted leak, which is small and reads short records

    Examples
    --------
    >>> CanaryConfig(n_subjects=500).leak_epochs
    12
    """

    n_subjects: int = Field(2000, ge=0)
    epochs: int = Field(5, ge=1)
    leak_epochs: int = Field(12, ge=1)


class SkipGramConfig(Section):
    """Settings of code embeddings by skip-gram over visits (`training.skip_gram`).

    Attributes
    ----------
    epochs : times that each token is a centre, at least
    min_steps : steps at least, which few records reach in more epochs
    window_visits : visits before and after a code's own that count as its context; 0 is the visit alone
    contexts : contexts drawn for each token in an epoch
    negatives : random codes that weigh against a context

    Examples
    --------
    >>> SkipGramConfig(window_visits=0).contexts
    4
    """

    epochs: int = Field(5, ge=1)
    min_steps: int = Field(200, ge=1)
    window_visits: int = Field(1, ge=0)
    contexts: int = Field(4, ge=1)
    negatives: float = Field(5.0, gt=0)
    lr: float = Field(0.02, gt=0)
    batch_pairs: int = Field(8192, ge=1)
