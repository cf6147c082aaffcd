"""An encoder without attention: [CLS] is a small network on summaries of the record, such as regressions read.

    x = sum over columns p of the record    value_p w_p      codes: how often, how recently; values: last, mean, ...
    x = gelu(norm(x + code embeddings of what is there))
    [CLS] = norm(x + fc2(gelu(fc1(norm(x)))))

The columns are those of a regression on single codes and values (`models.code_effects`), so that what such a regression
says lies one linear map away from the record, where a transformer has to find it among tokens. A step is a bag of
embeddings a record and two small products.

Several members can be trained side by side (``model.members``), each with vectors and layers of its own, as in TabM
(Gorishniy et al. 2024). The state is theirs one after the other; an objective such as `forecast` that asks each of them
by itself makes an ensemble of them, which says more than one wide network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehrtrack.data.batch import Batch
from ehrtrack.data.visits import MAX_AGE_YEARS
from ehrtrack.models.record_columns import Levels, RecordColumns, bag
from ehrtrack.models.settings import SIZES, ModelConfig


class Codes(nn.Module):
    """The vectors of codes, where every encoder has them."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.code = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.code.weight, std=0.05)


class Member(nn.Module):
    """The layers that make a state of the sum of a record's vectors."""

    def __init__(self, width: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.read_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)
        self.norm = nn.LayerNorm(width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def state(self, total: Tensor) -> Tensor:
        """(B, D) of the sums (B, D)."""
        x = self.dropout(self.activation(self.read_norm(total)))
        x = x + self.dropout(self.fc2(self.activation(self.fc1(self.mlp_norm(x)))))
        of_subject: Tensor = self.norm(x)
        return of_subject


class Summaries(Member):
    """Encoder of packed patient histories by what they hold, not in which order.

    The state of a record stands at each of its tokens, so that every head reads it. To keep the states of tokens, as is
    done of a frozen transformer, would cost more than to compute them again. The layers of its first member are its
    own, those of the others are among `others`.

    Parameters
    ----------
    levels : of the vocabulary's values

    Attributes
    ----------
    width : of a state, which is that of the size times the number of members
    """

    has_token_states = False

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, *, levels: Levels, may_lack_age: bool = False
    ) -> None:
        size, scales_days = SIZES[config.size], torch.tensor(config.readout_days)
        width = config.members * size.width
        embeddings = Codes(width, vocabulary_size)
        n_columns = RecordColumns.n_columns(levels, len(scales_days), may_lack_age=may_lack_age)
        column = nn.Parameter(0.05 * torch.randn(n_columns, width))
        super().__init__(size.width, size.mlp_width, config.dropout)
        self.width, self.embeddings, self.column = width, embeddings, column
        unknown_age = torch.tensor(0.0) if may_lack_age else None  # beside a column that says so
        self.reader = RecordColumns(levels, scales_days, unknown_age, is_kept=False)
        others = [Member(size.width, size.mlp_width, config.dropout) for _ in range(1, config.members)]
        self.others = nn.ModuleList(others)
        self.layers = nn.ModuleList()
        self.recomputes = False

    def forward(self, batch: Batch, places: Tensor | None = None) -> Tensor:
        """Hidden states of the tokens at `places` (R,); of all T without: (R, D)."""
        totals = self._read(batch).chunk(1 + len(self.others), dim=1)  # of each member (B, D)
        members = [self, *self.others]
        of_subject = torch.cat([member.state(total) for member, total in zip(members, totals, strict=True)], dim=1)
        return of_subject[batch.subject if places is None else batch.subject[places]]

    def _read(self, batch: Batch) -> Tensor:
        """(B, D) the sum of all columns' vectors, and of the codes that are there."""
        entries = self.reader.entries(batch)
        value = torch.where(entries.column == 0, entries.value / MAX_AGE_YEARS, entries.value)
        total = bag(entries._replace(value=self.dropout(value)), self.column, len(batch.lengths))
        codes = F.embedding_bag(batch.token, self.embeddings.code.weight, batch.offsets[:-1], mode="mean")
        return total + codes
