"""A lasso regression of the hazard in discrete time on single codes, when they were last written, and their values.

It is what a hazard head starts from where ``objective.lasso`` is set (`models.code_effects`), by itself: whether a
sequence model from scratch adds to it shows against this one, with the same scales of times. A model with a pretrained
base may start from more: what that says of the onsets of codes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from torch import Tensor, nn

from ehrtrack.baselines._json import no_such_model
from ehrtrack.baselines._tokens import BROKEN_JSON, TokenModel, outcome_objective, read_fields
from ehrtrack.baselines.base import Baseline, Labelled, Setting, TokenHistories, tune
from ehrtrack.baselines.settings import LassoConfig
from ehrtrack.data.batch import Batch
from ehrtrack.models.code_effects import CodeEffects
from ehrtrack.survival.time_grid import TimeGrid


class Regression(nn.Module):
    """Hazard logits (B, K): the population's, and the effects of the codes."""

    def __init__(self, codes: CodeEffects, baseline: Tensor) -> None:
        super().__init__()
        self.codes = codes
        self.baseline: Tensor
        self.register_buffer("baseline", baseline)

    def forward(self, batch: Batch) -> Tensor:
        return self.codes(batch) + self.baseline  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LassoModel(TokenModel):
    """A fitted regression."""

    network: Regression
    grid: TimeGrid
    facts: dict[str, float | int | str]

    @property
    def n_codes(self) -> int:
        """V, tokens of the vocabulary."""
        return len(self.network.codes.code)

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log."""
        effect = self.network.codes.effect
        return {"n_features": len(effect), "n_parameters": int(effect.count_nonzero()), **self.facts}

    def to_json(self) -> str:
        """The model as JSON text."""
        return json.dumps(self.fields())


class Lasso(Baseline[TokenHistories]):
    """One regression for each strength of the penalty, of which the one with the best validation C-index is kept."""

    Config = LassoConfig
    config: LassoConfig

    def read(self, histories: TokenHistories) -> TokenHistories:
        return histories

    def fit(self, train: Labelled[TokenHistories], validation: Labelled[TokenHistories]) -> LassoModel:
        """Fit one regression for each strength, and keep the one with the best validation C-index.

        Raises
        ------
        DataError
            If there is no training event, or no comparable validation pair.
        """

        def fit_one(setting: Setting) -> LassoModel:
            shared = {"lasso": setting["strength"], "n_intervals": self.config.n_intervals}
            objective = outcome_objective(train, shared, scales_days=self.config.scales_days)
            assert objective.codes is not None
            return LassoModel(Regression(objective.codes, objective.baseline_logits()).eval(), objective.grid, {})

        best = tune(self.config, {"strength": self.config.strengths}, fit_one, validation)
        best.model.facts.update(best.facts())
        return best.model

    @classmethod
    def for_classes(cls) -> type[Lasso]:
        """Itself: `outcome_objective` is of the labels' kind."""
        return cls

    @classmethod
    def from_json(cls, text: str) -> LassoModel:
        """The model back from `LassoModel.to_json`.

        Raises
        ------
        CheckpointError
            If the text is not such a model.
        """
        try:
            fields, grid, weights = read_fields(text)
            codes = CodeEffects.from_weights(weights, "codes.")
            if codes is None or weights["baseline"].shape != (grid.n_intervals,):
                raise ValueError(f"no effects, or a baseline that does not fit {grid.n_intervals} intervals")
            return LassoModel(Regression(codes, weights["baseline"]).eval(), grid, dict(fields["facts"]))
        except BROKEN_JSON as error:
            raise no_such_model(text, "a lasso regression", LassoModel, error) from error
