"""A lasso regression of the hazard in discrete time on single codes, when they were last written, and their values.

It is what a hazard head starts from where ``objective.lasso`` is set (`models.code_effects`), by itself: whether a
sequence model adds to it shows against this one.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ehrtrack.baselines._protocol import FloatArray, Labelled, Setting, TokenHistories, check_events, read_tokens, tune
from ehrtrack.baselines._sequences import histories_in_batches, labelled_batches
from ehrtrack.baselines._settings.lasso import Config as Config
from ehrtrack.data.batch import Batch, Outcomes
from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.models.code_effects import CodeEffects, Levels
from ehrtrack.objectives import survival
from ehrtrack.objectives._protocol import TrainingFacts
from ehrtrack.survival.curves import interpolate_survival
from ehrtrack.survival.time_grid import TimeGrid

BATCH_TOKENS = 65_536

read = read_tokens


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
class LassoModel:
    """A fitted regression.

    Attributes
    ----------
    facts : what `describe` says of the fit
    """

    regression: Regression
    grid: TimeGrid
    facts: dict[str, float | int | str]

    def survival(self, features: TokenHistories, times: npt.ArrayLike) -> FloatArray:
        """(B, M) S(t | x), by straight lines between the edges of the grid, and constant after the last.

        Raises
        ------
        DataError
            If the histories have another vocabulary's number of tokens.
        """
        n_codes = len(self.regression.codes.code)
        if len(features.vocabulary) != n_codes:
            raise DataError(
                f"histories in a vocabulary of {len(features.vocabulary)} tokens, and the model knows {n_codes}; make "
                "them with the vocabulary of the training run"
            )
        days = np.minimum(np.atleast_1d(np.asarray(times, dtype=np.float64)), self.grid.horizon_days)
        if not len(features):
            return np.zeros((0, len(days)))
        batches = histories_in_batches(features, BATCH_TOKENS)
        predicted = survival.predict(self.regression, batches, torch.device("cpu"))
        return interpolate_survival(predicted.survival, self.grid, days)

    def risk(self, features: TokenHistories, horizon_days: float) -> FloatArray:
        """(B,) probability of an event up to the horizon."""
        return 1 - self.survival(features, [horizon_days])[:, 0]

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log."""
        effect = self.regression.codes.effect
        return {"n_features": len(effect), "n_parameters": int(effect.count_nonzero()), **self.facts}

    def to_json(self) -> str:
        """The model as JSON text; effects are safetensors in base 64."""
        weights = {name: tensor.contiguous() for name, tensor in self.regression.state_dict().items()}
        encoded = base64.b64encode(safetensors.torch.save(weights)).decode()
        return json.dumps({"grid": self.grid.to_json(), "facts": self.facts, "weights": encoded})


def from_json(text: str) -> LassoModel:
    """The model back from `LassoModel.to_json`.

    Raises
    ------
    CheckpointError
        If the text is not such a model.
    """
    try:
        fields = json.loads(text)
        grid = TimeGrid.from_json(fields["grid"])
        weights = safetensors.torch.load(base64.b64decode(fields["weights"]))
        codes = CodeEffects.from_weights(weights, "codes.")
        if codes is None or weights["baseline"].shape != (grid.n_intervals,):
            raise ValueError(f"no effects, or a baseline that does not fit {grid.n_intervals} intervals")
        return LassoModel(Regression(codes, weights["baseline"]).eval(), grid, dict(fields["facts"]))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{text[:60]!r} is not a lasso regression ({error!r}); give what LassoModel.to_json wrote"
        ) from error


def fit(config: Config, train: Labelled[TokenHistories], validation: Labelled[TokenHistories]) -> LassoModel:
    """Fit one regression for each strength, and keep the one with the best validation C-index.

    Raises
    ------
    DataError
        If there is no training event, or no comparable validation pair.
    """
    check_events(train)
    histories = train.features

    def fit_one(setting: Setting) -> LassoModel:
        objective = survival.build(
            survival.Config(lasso=setting["strength"], n_intervals=config.n_intervals),
            TrainingFacts(
                token_counts=np.zeros(len(histories.vocabulary), dtype=np.int64),  # of no use to this objective
                outcomes=Outcomes(train.follow_up_days, train.is_event),
                horizon_days=float(train.follow_up_days.max()),
                records=labelled_batches(train, BATCH_TOKENS),
                levels=Levels.of(histories.vocabulary),
            ),
        )
        assert objective.codes is not None
        return LassoModel(Regression(objective.codes, objective.baseline_logits()).eval(), objective.grid, {})

    best = tune(config, {"strength": config.strengths}, fit_one, validation)
    best.model.facts.update(
        {**best.setting, "validation_c_index": best.validation_c_index, "n_candidates": best.n_candidates}
    )
    return best.model
