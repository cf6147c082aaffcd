"""Settings of the training loop, of code embeddings, and of the negative controls that look for leakage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ehrtrack.section import Mark, Section


class TrainConfig(Section):
    """Settings of the training loop.

    Attributes
    ----------
    epochs : the most epochs
    batch_tokens : the token budget of a batch; ``auto`` is the number that suits the device
    accumulate : number of batches whose gradients are added up for one step of the optimiser
    recompute : whether the backward pass computes the activations inside each layer anew from the layer's input
        (gradient checkpointing), which takes a third more time and much less memory
    graph : whether a step, and the pass of a validation batch, is recorded as one CUDA graph for each shape of a batch,
        and replayed: batches are filled up to fixed shapes for it. ``auto`` records where it can (a CUDA device, one
        process, bfloat16, objectives ``mlm`` and ``survival``), and ``on`` refuses to train where it cannot. ``off``
        until it was measured on a GPU
    lr : the peak learning rate
    weight_decay : weight decay of AdamW
    patience : training stops after so many epochs without a better validation score, or without a newly selected epoch
    warmup_share : share of the training in which the learning rate rises linearly from 0
    clip_norm : the largest norm of the gradient of all trainable parameters together; inf is no limit

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
    graph: Annotated[Literal["auto", "off", "on"], Mark.ADDED_LATER] = "off"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    patience: int = Field(5, ge=1)
    warmup_share: float = Field(0.1, ge=0, lt=1)
    clip_norm: float = Field(1.0, gt=0, allow_inf_nan=True)


class NegativeControlsConfig(Section):
    """How large the negative controls of a run are.

    Attributes
    ----------
    n_subjects : how many subjects of the cohort are drawn at random for them; 0 is all
    epochs : epochs of the controls with permuted labels and with an exchanged future
    leak_epochs : epochs of the control with a planted leak, whose model is small and reads short records

    Examples
    --------
    >>> NegativeControlsConfig(n_subjects=500).leak_epochs
    12
    """

    n_subjects: int = Field(2000, ge=0)
    epochs: int = Field(5, ge=1)
    leak_epochs: int = Field(12, ge=1)


class SkipGramConfig(Section):
    """Settings of code embeddings by skip-gram over visits (`training.skip_gram`).

    Attributes
    ----------
    epochs : the fewest passes over all tokens
    min_steps : the fewest steps of the optimiser; where records are few, there are more epochs until it is reached
    window_visits : number of visits before and after a code's own visit that belong to its context; 0 is that visit
        alone
    contexts : number of contexts drawn for each token in an epoch
    negatives : number of random codes for each context, k of the loss
    lr : learning rate
    batch_pairs : pairs of a token and a context in a batch

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
