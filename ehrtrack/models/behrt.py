"""BEHRT (Li et al. 2020, "BEHRT: Transformer for Electronic Health Records", Sci Rep 10:7155) on packed tokens.

Four departures from the paper: layers normalise before attention and MLP (pre-norm); visits are counted back from the
index date, so that the last visit has the same position in a short and a long history; a token knows how long before
the index date it was written, as what is recent or long quiet is what outcomes depend on; and [CLS] reads, beside what
attention brings it, what was ever written, how recently and how long ago (`Readout`), which a weighted mean of tokens
does not tell.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ehrtrack.data.batch import MAX_POSITION, N_GAPS, Batch
from ehrtrack.data.visits import MAX_AGE_YEARS, UNKNOWN_AGE
from ehrtrack.models.attention import SelfAttention
from ehrtrack.models.heads import Head
from ehrtrack.models.pooling import subject_max
from ehrtrack.models.settings import SIZES as SIZES
from ehrtrack.models.settings import ModelConfig as ModelConfig
from ehrtrack.models.settings import Size as Size
from ehrtrack.models.summaries import Summaries


class Recency(nn.Module):
    """How long before the end of the record: linear maps of ``exp(-days / scale)``, from an hour to ten years.

    A map is smooth in time, where classes of time would each learn a vector of their own, and 0 for static facts. One
    scales what stands for the code, feature by feature, and one is added to it (FiLM, Perez et al. 2018, AAAI 32,
    section 2): a sum alone says "recent" and "heart failure", and leaves it to later layers to find that only recent
    heart failure matters. What is added is averaged over scales: all tokens share it, and the sum of twelve would
    drown the codes within a few steps.
    """

    SCALES_DAYS = tuple(np.geomspace(1 / 24, 3652.5, 12).tolist())

    def __init__(self, width: int) -> None:
        super().__init__()
        self.per_day: Tensor
        self.register_buffer("per_day", 1 / torch.tensor(self.SCALES_DAYS), persistent=False)
        self.scale = nn.Parameter(torch.zeros(width, len(self.SCALES_DAYS)))
        self.shift = nn.Parameter(torch.zeros(width, len(self.SCALES_DAYS)))

    def forward(self, code: Tensor, days_to_end: Tensor) -> Tensor:
        """Vectors of codes (T, D) at their times (T,)."""
        decay = torch.exp(-days_to_end.clamp(min=0)[..., None] * self.per_day)  # (T, scales)
        return code * (1 + F.linear(decay, self.scale)) + F.linear(decay / len(self.SCALES_DAYS), self.shift)


class Embeddings(nn.Module):
    """Sum of age, visit segment, position and time-gap embeddings and of the code's, which recency modulates.

    Parameters
    ----------
    may_lack_age : an age that is unknown has a row of its own
    """

    def __init__(self, width: int, vocabulary_size: int, dropout: float, *, may_lack_age: bool = False) -> None:
        super().__init__()
        self.code = nn.Embedding(vocabulary_size, width)
        self.age = nn.Embedding((UNKNOWN_AGE if may_lack_age else MAX_AGE_YEARS) + 1, width)
        self.segment = nn.Embedding(3, width)
        self.position = nn.Embedding(MAX_POSITION + 1, width)
        self.gap = nn.Embedding(N_GAPS, width)
        self.recency = Recency(width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.apply(_initialise)

    def forward(self, batch: Batch) -> Tensor:
        x = (
            self.recency(self.code(batch.token), batch.days_to_end)
            + self.age(batch.age)
            + self.segment(batch.segment)
            + self.position(batch.position)
            + self.gap(batch.gap)
        )
        return self.dropout(self.norm(x))  # type: ignore[no-any-return]  # (T, D)


class Layer(nn.Module):
    """Pre-norm transformer layer.

    Called with `places`, it computes the states of these tokens alone, which attend to all: for the last layer, of
    which a head reads few.
    """

    def __init__(self, size: Size, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size.width)
        self.attention = SelfAttention(size.width, size.n_heads)
        self.mlp_norm = nn.LayerNorm(size.width)
        self.fc1 = nn.Linear(size.width, size.mlp_width)
        self.fc2 = nn.Linear(size.mlp_width, size.width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, batch: Batch, places: Tensor | None = None) -> Tensor:
        attended = self.attention(self.attention_norm(x), batch, places)  # (R, D)
        x = (x if places is None else x[places]) + self.dropout(attended)
        return x + self.dropout(self.fc2(self.activation(self.fc1(self.mlp_norm(x)))))  # type: ignore[no-any-return]


class Readout(nn.Module):
    """What [CLS] reads of the record: how strongly, how recently and how long ago each of D detectors was set off.

        r_p   = max_t relu(w_p . x_t + b_p)
        r_pk  = max_t relu(w_p . x_t + b_p) exp(-days_t / scale_k)
        r'_pk = max_t relu(w_p . x_t + b_p) (1 - exp(-days_t / scale_k))

    Ratios of these are the times since a detector was last and first set off, whatever came in between: what gradient
    boosting is given by hand, and what recurrent networks decay towards (GRU-D, Che et al. 2018, Sci Rep 8:6085,
    eq. 10). One hidden layer sets times against each other (this before that, this soon after that). It starts as 0.

    Parameters
    ----------
    scales_days : of times; those of the data, which may be hours or years
    """

    def __init__(self, width: int, scales_days: tuple[float, ...], dropout: float) -> None:
        super().__init__()
        self.per_day: Tensor
        self.register_buffer("per_day", 1 / torch.tensor(scales_days), persistent=False)
        n_read = width * (1 + 2 * len(scales_days))
        self.norm = nn.LayerNorm(width)
        self.detect = nn.Linear(width, width)
        self.read_norm = nn.LayerNorm(n_read)
        self.fc1 = nn.Linear(n_read, width)
        self.fc2 = nn.Linear(width, width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """(B, D) what is added to the [CLS] states, of states (T, D)."""
        detected = F.relu(self.detect(self.norm(x))).float()  # (T, D)
        weights = self.weights(batch.days_to_end)  # (T, S)
        largest = subject_max(detected, batch.subject, batch.offsets, weights)  # (B, S D)
        return self.dropout(self.fc2(self.activation(self.fc1(self.read_norm(largest)))))  # type: ignore[no-any-return]

    def weights(self, days_to_end: Tensor) -> Tensor:
        """(..., S) 1, the decays and what is decayed, at times (...,); static facts are always recent."""
        days = days_to_end.clamp(min=0).nan_to_num(posinf=0)
        decay = torch.exp(-days[..., None] * self.per_day)
        return torch.cat([torch.ones_like(days)[..., None], decay, 1 - decay], dim=-1)


ADAPTED_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "detect")
"""Names of the linear layers that adapters wrap."""


class Behrt(nn.Module):
    """Encoder of packed patient histories.

    Attributes
    ----------
    has_token_states : whether each token has a state of its own
    recomputes : in training, keep only each layer's input and compute the rest again in the backward pass (Chen et
        al. 2016, "Training Deep Nets with Sublinear Memory Cost"): less memory, a third more time
    """

    has_token_states = True

    def __init__(self, config: ModelConfig, vocabulary_size: int, *, may_lack_age: bool = False) -> None:
        super().__init__()
        size = SIZES[config.size]
        self.width = size.width
        self.embeddings = Embeddings(size.width, vocabulary_size, config.dropout, may_lack_age=may_lack_age)
        self.layers = nn.ModuleList(Layer(size, config.dropout) for _ in range(size.n_layers))
        self.readout = Readout(size.width, config.readout_days, config.dropout)
        self.norm = nn.LayerNorm(size.width)
        self.recomputes = False
        self.layers.apply(_initialise)
        self.readout.apply(_initialise)

    def forward(self, batch: Batch, places: Tensor | None = None) -> Tensor:
        """Hidden states of the tokens at `places` (R,), which rise; of all T without: (R, D)."""
        x: Tensor = self.embeddings(batch)
        for layer in self.layers[:-1]:
            x = self._through(layer, x, batch)
        x = x.index_add(0, batch.cls_positions, self.readout(x, batch).to(x.dtype))
        return self.norm(self._through(self.layers[-1], x, batch, places))  # type: ignore[no-any-return]

    def _through(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return layer(*inputs)  # type: ignore[no-any-return]


class EhrModel(nn.Module):
    """An encoder and the head of an objective. This is the one forward path of every strategy.

    Attributes
    ----------
    is_bf16 : multiply matrices in bfloat16; weights, norms, softmax and losses stay in float32
    """

    def __init__(self, encoder: Behrt | Summaries, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.is_bf16 = False

    def forward(self, batch: Batch) -> Tensor:
        """What the head returns, in float32: hazard logits (B, K), or token logits (M, V)."""
        with self._precision():
            places = self.head.places(batch)
            if batch.hidden is None:
                hidden = self.encoder(batch, places)
            else:
                hidden = batch.hidden if places is None else batch.hidden[places]
            return self.head(hidden, batch, self.encoder.embeddings.code.weight).float()  # type: ignore[no-any-return]

    def hidden(self, batch: Batch) -> Tensor:
        """The encoder's states (T, D), in float32."""
        with self._precision():
            return self.encoder(batch).float()  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Refuse tensors that no part of the model takes, even where others pass over them.

        peft does: an adapter whose head adds the effects of codes would predict without them.
        """
        super()._load_from_state_dict(state_dict, prefix, *others)
        *_, error_messages = others
        there = {prefix + name for name in self.state_dict()}
        foreign = sorted(name for name in state_dict if name.startswith(prefix) and name not in there)
        if foreign:
            names = ", ".join(name.removeprefix(prefix) for name in foreign[:5])
            error_messages.append(
                f"{len(foreign)} of the tensors have no place in this model, such as {names}: it lacks a part of the "
                "one that they are of. Make the base of an adapter by ehrtrack.adapter_base"
            )

    def _precision(self) -> AbstractContextManager[object]:
        if not self.is_bf16:
            return nullcontext()
        device = self.encoder.embeddings.code.weight.device
        return torch.autocast(device.type, dtype=torch.bfloat16)


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation: normal with standard deviation 0.02, biases 0. What stands beside the codes begins at 0:
    a random vector for each age and position is noise on every code, which few subjects cannot average out.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, Embeddings):
        for context in (module.age, module.segment, module.position, module.gap):
            nn.init.zeros_(context.weight)
    if isinstance(module, Readout):
        width = module.detect.in_features
        nn.init.normal_(module.detect.weight, std=3 / width**0.5)  # of normalised states: each is set off by some
        nn.init.constant_(module.detect.bias, -1.0)
        nn.init.zeros_(module.fc2.weight)


def encoder_weights(model: nn.Module) -> dict[str, Tensor]:
    """The encoder's tensors of a plain (not adapted) model, by name."""
    prefix = "encoder."
    state: dict[str, Any] = model.state_dict()
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_encoder_weights(model: EhrModel, weights: dict[str, Tensor]) -> None:
    """Copy pretrained tensors into the encoder; shapes must agree exactly."""
    with torch.no_grad():
        model.encoder.load_state_dict(weights, strict=True)
