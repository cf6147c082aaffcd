"""An encoder without attention: [CLS] is a small network on summaries of the record, such as regressions read.

    x = sum over columns p of the record    value_p w_p      codes: how often, how recently; values: last, mean, ...
    x = gelu(norm(x + code embeddings of what is there))
    [CLS] = norm(x + fc2(gelu(fc1(norm(x)))))

The columns are those of a regression on single codes and values (`models.code_effects`), so that what such a regression
says lies one linear map away from the record, where a transformer has to find it among tokens. A step is a bag of
embeddings a record and two small products.
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


class Summaries(nn.Module):
    """Encoder of packed patient histories by what they hold, not in which order.

    The state of a record stands at each of its tokens, so that every head reads it. To keep the states of tokens, as is
    done of a frozen transformer, would cost more than to compute them again.

    Parameters
    ----------
    levels : of the vocabulary's values
    """

    has_token_states = False

    def __init__(
        self, config: ModelConfig, vocabulary_size: int, *, levels: Levels, may_lack_age: bool = False
    ) -> None:
        super().__init__()
        size = SIZES[config.size]
        self.width = size.width
        self.embeddings = Codes(size.width, vocabulary_size)
        scales_days = torch.tensor(config.readout_days)
        unknown_age = torch.tensor(0.0) if may_lack_age else None  # beside a column that says so
        self.reader = RecordColumns(levels, scales_days, unknown_age, is_kept=False)
        n_columns = RecordColumns.n_columns(levels, len(scales_days), may_lack_age=may_lack_age)
        self.column = nn.Parameter(0.05 * torch.randn(n_columns, size.width))
        self.read_norm = nn.LayerNorm(size.width)
        self.mlp_norm = nn.LayerNorm(size.width)
        self.fc1 = nn.Linear(size.width, size.mlp_width)
        self.fc2 = nn.Linear(size.mlp_width, size.width)
        self.norm = nn.LayerNorm(size.width)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList()
        self.recomputes = False

    def forward(self, batch: Batch, places: Tensor | None = None) -> Tensor:
        """Hidden states of the tokens at `places` (R,); of all T without: (R, D)."""
        x = self.dropout(self.activation(self.read_norm(self._read(batch))))  # (B, D)
        x = x + self.dropout(self.fc2(self.activation(self.fc1(self.mlp_norm(x)))))
        of_subject: Tensor = self.norm(x)
        return of_subject[batch.subject if places is None else batch.subject[places]]

    def _read(self, batch: Batch) -> Tensor:
        """(B, D) the sum of all columns' vectors, and of the codes that are there."""
        entries = self.reader.entries(batch)
        value = torch.where(entries.column == 0, entries.value / MAX_AGE_YEARS, entries.value)
        total = bag(entries._replace(value=self.dropout(value)), self.column, len(batch.lengths))
        codes = F.embedding_bag(batch.token, self.embeddings.code.weight, batch.offsets[:-1], mode="mean")
        return total + codes
