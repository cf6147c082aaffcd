"""Sequence models as baselines: the tokens, embeddings, head, loss and training loop of the transformer."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ehrtrack.baselines._protocol import (
    FloatArray,
    Labelled,
    Setting,
    TokenHistories,
    check_events,
    seen_within,
    tune,
)
from ehrtrack.baselines._settings._shared import SequenceSettings as Settings
from ehrtrack.data.batch import Batches, Outcomes
from ehrtrack.errors import CheckpointError, DataError
from ehrtrack.models.code_embeddings import CodeEmbeddings
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.recurrent import MeanPool, Recurrent, SequenceModel
from ehrtrack.objectives import survival
from ehrtrack.objectives._protocol import TrainingFacts
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.survival.curves import interpolate_survival
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.training.loop import TrainConfig
from ehrtrack.training.loop import fit as train_model
from ehrtrack.training.memory import CPU_BATCH_TOKENS, find_batch_tokens
from ehrtrack.training.ranks import Ranks, join_ranks

ENCODERS: Mapping[str, Callable[[int, int, float], Recurrent | MeanPool]] = {
    "gru": lambda width, n_codes, dropout: Recurrent(nn.GRUCell, width, n_codes, dropout),
    "lstm": lambda width, n_codes, dropout: Recurrent(nn.LSTMCell, width, n_codes, dropout),
    "mean-pool": MeanPool,
}


@dataclass(frozen=True)
class FittedSequenceModel:
    """A trained sequence model.

    Attributes
    ----------
    shape : name, width and n_codes, from which the module is made again
    facts : what `describe` says beside the size
    """

    network: SequenceModel
    shape: dict[str, str | int]
    grid: TimeGrid
    facts: dict[str, float | int | str]

    def survival(self, features: TokenHistories, times: npt.ArrayLike) -> FloatArray:
        """(B, M) S(t | x), by straight lines between the edges of the grid, and constant after the last.

        Raises
        ------
        DataError
            If the histories have another vocabulary's number of tokens.
        """
        if len(features.vocabulary) != self.shape["n_codes"]:
            raise DataError(
                f"histories in a vocabulary of {len(features.vocabulary)} tokens, and the model knows "
                f"{self.shape['n_codes']}; make them with the vocabulary of the training run"
            )
        days = np.minimum(np.atleast_1d(np.asarray(times, dtype=np.float64)), self.grid.horizon_days)
        if not len(features):
            return np.zeros((0, len(days)))
        device = next(self.network.parameters()).device
        predicted = survival.predict(self.network, histories_in_batches(features, CPU_BATCH_TOKENS), device)
        return interpolate_survival(predicted.survival, self.grid, days)

    def risk(self, features: TokenHistories, horizon_days: float) -> FloatArray:
        """(B,) probability of an event up to the horizon."""
        return 1 - self.survival(features, [horizon_days])[:, 0]

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log."""
        n_parameters = sum(p.numel() for p in self.network.parameters())
        return {"n_features": self.shape["n_codes"], "n_parameters": n_parameters, **self.facts}

    def to_json(self) -> str:
        """The model as JSON text; weights are safetensors in base 64."""
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        encoded = base64.b64encode(safetensors.torch.save(weights)).decode()
        fields = {"shape": self.shape, "grid": self.grid.to_json(), "facts": self.facts, "weights": encoded}
        return json.dumps(fields)


def from_json(text: str) -> FittedSequenceModel:
    """The model back from `FittedSequenceModel.to_json`, on the CPU.

    Raises
    ------
    CheckpointError
        If the text is not such a model.
    """
    try:
        fields = json.loads(text)
        grid = TimeGrid.from_json(fields["grid"])
        weights = safetensors.torch.load(base64.b64decode(fields["weights"]))
        _check_shape(fields["shape"], grid, weights)
        head = HazardHead(int(fields["shape"]["width"]), torch.zeros(grid.n_intervals))
        network = _network(fields["shape"], head, dropout=0.0)
        network.load_state_dict(weights)
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{text[:60]!r} is not a sequence model ({error!r}); give what FittedSequenceModel.to_json wrote"
        ) from error
    return FittedSequenceModel(network.eval(), dict(fields["shape"]), grid, dict(fields["facts"]))


def fit(config: Settings, train: Labelled[TokenHistories], validation: Labelled[TokenHistories]) -> FittedSequenceModel:
    """`fit_sequences` from random weights."""
    return fit_sequences(config, train, validation)


def fit_sequences(
    config: Settings,
    train: Labelled[TokenHistories],
    validation: Labelled[TokenHistories],
    *,
    embeddings: Callable[[int], CodeEmbeddings] | None = None,
    more_settings: Mapping[str, Sequence[Any]] | None = None,
) -> FittedSequenceModel:
    """Train each candidate with early stopping by validation IBS, and keep the one with the best C-index.

    Parameters
    ----------
    embeddings : of a width, what the code embeddings start from; ``trains_embeddings`` of a setting says whether they
        are trained further
    more_settings : values of further settings, by name, which the candidates also combine

    Raises
    ------
    DataError
        If there is no training event, or no comparable validation pair.
    TrainingError
        If a loss is not finite.
    """
    check_events(train)
    ranks = join_ranks(train.features.device)
    objective = survival.build(
        survival.Config(lambda_rank=config.lambda_rank, n_intervals=config.n_intervals),
        TrainingFacts(
            token_counts=np.zeros(len(train.features.vocabulary), dtype=np.int64),  # of no use to this objective
            outcomes=Outcomes(train.follow_up_days, train.is_event),
            horizon_days=float(train.follow_up_days.max()),
        ),
    )

    stopping = seen_within(validation, objective.grid.horizon_days)

    def fit_one(setting: Setting) -> FittedSequenceModel:
        return _train(config, setting, objective, train, stopping, ranks, embeddings)

    space = {
        "lr": config.learning_rates,
        "dropout": config.dropouts,
        "width": config.widths,
        "weight_decay": config.weight_decays,
        **(more_settings or {}),
    }
    best = tune(config, space, fit_one, validation)
    best.model.facts.update(
        {**best.setting, "validation_c_index": best.validation_c_index, "n_candidates": best.n_candidates}
    )
    return best.model


def _train(
    config: Settings,
    setting: Setting,
    objective: survival.Survival,
    train: Labelled[TokenHistories],
    validation: Labelled[TokenHistories],
    ranks: Ranks,
    embeddings: Callable[[int], CodeEmbeddings] | None,
) -> FittedSequenceModel:
    """One candidate."""
    shape = {"name": config.name, "width": setting["width"], "n_codes": len(train.features.vocabulary)}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = objective.make_head(setting["width"])
        network = _network(shape, head, dropout=setting["dropout"]).to(ranks.device)
        if embeddings is not None:
            code = network.encoder.embeddings.code
            embeddings(setting["width"]).initialise(code, train.features.vocabulary)
            code.requires_grad_(setting["trains_embeddings"])
        in_order = labelled_batches(train, config.batch_tokens or train.features.max_tokens)
        budget = config.batch_tokens or find_batch_tokens(network, objective, in_order, ranks.device)
        with tempfile.TemporaryDirectory() as folder:
            result = train_model(
                network,
                objective,
                training=lambda epoch: labelled_batches(train, budget, shuffle_seed=config.seed * 100_003 + epoch),
                validation=labelled_batches(validation, budget),
                config=TrainConfig(
                    epochs=config.epochs,
                    patience=config.patience,
                    lr=setting["lr"],
                    weight_decay=setting["weight_decay"],
                ),
                ranks=ranks,
                folder=Path(folder),
                logger=MemoryRunLogger(),
            )
    facts: dict[str, float | int | str] = {"best_epoch": result.best_epoch}
    return FittedSequenceModel(network.eval(), shape, objective.grid, facts)


def _check_shape(shape: Mapping[str, str | int], grid: TimeGrid, weights: Mapping[str, Tensor]) -> None:
    """Make sure, before memory is taken for a network, that it is no larger than the weights that are there."""
    stated = int(shape["n_codes"]), int(shape["width"]), grid.n_intervals
    n_codes, width = weights["encoder.embeddings.code.weight"].shape
    if stated != (n_codes, width, len(weights["head.baseline"])):
        raise ValueError(f"a shape of {stated} (codes, width, intervals) beside weights of another")


def _network(shape: Mapping[str, str | int], head: nn.Module, *, dropout: float) -> SequenceModel:
    encoder = ENCODERS[str(shape["name"])](int(shape["width"]), int(shape["n_codes"]), dropout)
    return SequenceModel(encoder, head)


def histories_in_batches(histories: TokenHistories, batch_tokens: int) -> Batches:
    """Batches of the histories in their order."""
    return Batches(histories.store, histories.rows, max(batch_tokens, histories.max_tokens), histories.max_tokens)


def labelled_batches(subjects: Labelled[TokenHistories], batch_tokens: int, shuffle_seed: int | None = None) -> Batches:
    """Batches with outcomes, which lie row for row beside the store."""
    histories = subjects.features
    days, is_event = np.ones(len(histories.store)), np.zeros(len(histories.store), dtype=bool)
    days[histories.rows], is_event[histories.rows] = subjects.follow_up_days, subjects.is_event
    return replace(
        histories_in_batches(histories, batch_tokens), outcomes=Outcomes(days, is_event), shuffle_seed=shuffle_seed
    )
