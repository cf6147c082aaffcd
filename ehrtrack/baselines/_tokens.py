"""What baselines that read tokens share: batches of histories, the survival objective, prediction, and JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ehrtrack.arrays import Floats
from ehrtrack.baselines.base import Labelled, TokenHistories, check_events
from ehrtrack.data.batch import Batches
from ehrtrack.data.outcomes import Outcomes
from ehrtrack.data.store import mean_age
from ehrtrack.errors import DataError
from ehrtrack.files import BROKEN, parse_json
from ehrtrack.models.record_columns import Levels
from ehrtrack.models.settings import READOUT_DAYS
from ehrtrack.objectives.base import TrainingFacts
from ehrtrack.objectives.classification import Classification
from ehrtrack.objectives.settings import ClassificationConfig, SurvivalConfig
from ehrtrack.objectives.survival import Survival, predict
from ehrtrack.survival.interpolation import interpolate_survival
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.training.checkpoint import check_tensors
from ehrtrack.training.memory import CPU_BATCH_TOKENS

BROKEN_JSON = (*BROKEN, RuntimeError, SafetensorError)
"""What reading a model's JSON raises where the text is none."""


class TokenModel:
    """A model of token histories with hazards on a time grid.

    Attributes
    ----------
    network : from a batch to hazard logits (B, K)
    facts : what `describe` says of the fit
    """

    network: nn.Module
    grid: TimeGrid
    facts: dict[str, float | int | str]

    @property
    def n_codes(self) -> int:
        """V, tokens of the vocabulary."""
        raise NotImplementedError

    def survival(self, features: TokenHistories, times: npt.ArrayLike) -> Floats:
        """(B, M) S(t | x), by straight lines between the edges of the grid, and constant after the last.

        Raises
        ------
        DataError
            If the histories have another vocabulary's number of tokens.
        """
        if len(features.vocabulary) != self.n_codes:
            raise DataError(
                f"histories in a vocabulary of {len(features.vocabulary)} tokens, and the model knows {self.n_codes}; "
                "make them with the vocabulary of the training run"
            )
        days = np.minimum(np.atleast_1d(np.asarray(times, dtype=np.float64)), self.grid.horizon_days)
        if not len(features):
            return np.zeros((0, len(days)))
        device = next(iter(self.network.state_dict().values())).device
        predicted = predict(self.network, histories_in_batches(features, CPU_BATCH_TOKENS), device)
        return interpolate_survival(predicted.survival, self.grid, days)

    def risk(self, features: TokenHistories, horizon_days: float) -> Floats:
        """(B,) probability of an event up to the horizon."""
        return 1 - self.survival(features, [horizon_days])[:, 0]

    def fields(self) -> dict[str, Any]:
        """What JSON keeps of every such model, to be read by `read_fields`; weights are safetensors in base 64."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        encoded = base64.b64encode(safetensors.torch.save(weights)).decode()
        return {"grid": self.grid.to_json(), "facts": self.facts, "weights": encoded}


def read_fields(text: str) -> tuple[dict[str, Any], TimeGrid, dict[str, Tensor]]:
    """The fields of a model's JSON, and its grid and weights. Raises one of `BROKEN_JSON` where the text is none."""
    fields = parse_json(text)
    weights = safetensors.torch.load(base64.b64decode(fields["weights"]))
    check_tensors(weights)
    return fields, TimeGrid.from_json(fields["grid"]), weights


def outcome_objective(
    train: Labelled[TokenHistories], settings: Mapping[str, float], scales_days: tuple[float, ...] = READOUT_DAYS
) -> Survival | Classification:
    """The objective of the training subjects' labels: survival up to the longest follow-up, or of classes theirs.

    Parameters
    ----------
    settings : of either objective; what classification has no use for is left out

    Raises
    ------
    DataError
        If there is no training event.
    """
    check_events(train)
    histories = train.features
    vocabulary = histories.vocabulary
    facts = TrainingFacts(
        token_counts=np.zeros(len(vocabulary), dtype=np.int64),  # of no use to this objective
        outcomes=Outcomes(train.follow_up_days, train.is_event),
        horizon_days=float(train.follow_up_days.max()),
        records=labelled_batches(train, CPU_BATCH_TOKENS),
        levels=Levels.of(vocabulary),
        scales_days=scales_days,
        has_classes=train.has_classes,
        mean_age=mean_age(histories.store, histories.rows) if histories.may_lack_age else None,
    )
    settings = {"statics": False, **settings}  # as the models of before, which name no statics among their weights
    if train.has_classes:
        known = {name: value for name, value in settings.items() if name in ClassificationConfig.model_fields}
        return Classification(ClassificationConfig.model_validate({"name": "classification", **known}), facts)
    return Survival(SurvivalConfig.model_validate({"name": "survival", **settings}), facts)


def histories_in_batches(histories: TokenHistories, batch_tokens: int) -> Batches:
    """Batches of the histories in their order."""
    return Batches(histories.store, histories.rows, batch_tokens, histories.max_tokens)


def labelled_batches(subjects: Labelled[TokenHistories], batch_tokens: int, shuffle_seed: int | None = None) -> Batches:
    """Batches with outcomes, which lie row for row beside the store."""
    histories = subjects.features
    days, is_event = np.ones(len(histories.store)), np.zeros(len(histories.store), dtype=bool)
    days[histories.rows], is_event[histories.rows] = subjects.follow_up_days, subjects.is_event
    batches = histories_in_batches(histories, batch_tokens)
    outcomes = Outcomes(days, is_event, subject=np.asarray(histories.store.subject_ids))
    return replace(batches, outcomes=outcomes, shuffle_seed=shuffle_seed)
