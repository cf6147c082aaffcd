"""Sequence models as baselines: the tokens, embeddings, head, loss and training loop of the transformer.

GRU (Cho et al. 2014, arXiv:1406.1078), LSTM (Hochreiter & Schmidhuber 1997, Neural Comput 9:1735-1780), and the mean of
Med2Vec embeddings with one hidden layer, each with the discrete-time hazard head.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ehrtrack.baselines._json import no_such_model
from ehrtrack.baselines._tokens import BROKEN_JSON, TokenModel, labelled_batches, outcome_objective, read_fields
from ehrtrack.baselines.base import (
    Baseline,
    Labelled,
    Setting,
    TokenHistories,
    seen_within,
    tune,
)
from ehrtrack.baselines.settings import MeanPoolConfig, SequenceSettings
from ehrtrack.models.code_embeddings import CodeEmbeddings
from ehrtrack.models.device import place
from ehrtrack.models.heads import HazardHead
from ehrtrack.models.recurrent import MeanPool, Recurrent, SequenceModel
from ehrtrack.objectives.classification import Classification
from ehrtrack.objectives.survival import Survival
from ehrtrack.runlog import MemoryRunLogger
from ehrtrack.survival.time_grid import TimeGrid
from ehrtrack.training.loop import TrainConfig
from ehrtrack.training.loop import fit as train_model
from ehrtrack.training.memory import find_batch_tokens
from ehrtrack.training.ranks import Ranks, join_ranks
from ehrtrack.training.skip_gram import fit_skip_gram

ENCODERS: Mapping[str, Callable[..., Recurrent | MeanPool]] = {
    "gru": partial(Recurrent, nn.GRUCell),
    "lstm": partial(Recurrent, nn.LSTMCell),
    "mean-pool": MeanPool,
}


@dataclass(frozen=True)
class FittedSequenceModel(TokenModel):
    """A trained sequence model.

    Attributes
    ----------
    shape : name, width and n_codes, and may_lack_age where that is so, from which the module is made again
    """

    network: SequenceModel
    shape: dict[str, str | int]
    grid: TimeGrid
    facts: dict[str, float | int | str]

    @property
    def n_codes(self) -> int:
        """V, tokens of the vocabulary."""
        return int(self.shape["n_codes"])

    def describe(self) -> dict[str, float | int | str]:
        """Facts to log."""
        n_parameters = sum(p.numel() for p in self.network.parameters())
        return {"n_features": self.shape["n_codes"], "n_parameters": n_parameters, **self.facts}

    def to_json(self) -> str:
        """The model as JSON text."""
        return json.dumps({"shape": self.shape, **self.fields()})


def from_json(text: str) -> FittedSequenceModel:
    """The model back from `FittedSequenceModel.to_json`, on the CPU.

    Raises
    ------
    CheckpointError
        If the text is not such a model.
    """
    try:
        fields, grid, weights = read_fields(text)
        _check_shape(fields["shape"], grid, weights)
        head = HazardHead(int(fields["shape"]["width"]), torch.zeros(grid.n_intervals))
        network = _network(fields["shape"], head, dropout=0.0)
        network.load_state_dict(weights)
        return FittedSequenceModel(network.eval(), dict(fields["shape"]), grid, dict(fields["facts"]))
    except BROKEN_JSON as error:
        raise no_such_model(text, "a sequence model", FittedSequenceModel, error) from error


class Sequence(Baseline[TokenHistories]):
    """A GRU, an LSTM, or the mean of a subject's embeddings, which knows no order, but ages and gaps.

    The mean starts from embeddings of codes that are fitted by skip-gram (Med2Vec) on the training subjects' histories,
    or were fitted before on more records (``init.embeddings``); whether they are trained further with the head is one
    of the settings tried.
    """

    Config = SequenceSettings
    config: SequenceSettings

    def read(self, histories: TokenHistories) -> TokenHistories:
        return histories

    def fit(self, train: Labelled[TokenHistories], validation: Labelled[TokenHistories]) -> FittedSequenceModel:
        """Train each candidate with early stopping as the transformer's; the best validation C-index is kept.

        Raises
        ------
        DataError
            If there is no training event, no comparable validation pair, or, for the mean, no two codes occur together.
        TrainingError
            If a loss is not finite.
        """
        config = self.config
        objective = outcome_objective(train, {"lambda_rank": config.lambda_rank, "n_intervals": config.n_intervals})
        ranks = join_ranks(train.features.device)
        stopping = seen_within(validation, objective.grid.horizon_days)
        start = _embeddings_of(config, train.features) if isinstance(config, MeanPoolConfig) else None
        best = tune(
            config,
            _space(config, train.features),
            lambda setting: _train(config, setting, objective, train, stopping, ranks, start),
            validation,
        )
        best.model.facts.update(best.facts())
        return best.model

    @classmethod
    def for_classes(cls) -> type[Sequence]:
        """Itself: `outcome_objective` is of the labels' kind."""
        return cls

    @classmethod
    def from_json(cls, text: str) -> FittedSequenceModel:
        return from_json(text)


def _space(config: SequenceSettings, histories: TokenHistories) -> dict[str, tuple[float, ...]]:
    """The settings that are tuned, with the values of each."""
    space: dict[str, tuple[float, ...]] = {
        "lr": config.learning_rates,
        "dropout": config.dropouts,
        "width": config.widths,
        "weight_decay": config.weight_decays,
    }
    if isinstance(config, MeanPoolConfig):
        widths = config.widths if histories.embeddings is None else (histories.embeddings.width,)
        space |= {"width": widths, "trains_embeddings": config.trains_embeddings}
    return space


def _embeddings_of(config: MeanPoolConfig, histories: TokenHistories) -> Callable[[int], CodeEmbeddings]:
    """From a width to the embeddings of codes to start from: those that were fitted before, or the histories' own."""

    @cache
    def embeddings(width: int) -> CodeEmbeddings:
        if histories.embeddings is not None:
            return histories.embeddings
        vectors = fit_skip_gram(
            histories.store,
            histories.rows,
            n_codes=len(histories.vocabulary),
            width=width,
            config=config.skip_gram,
            seed=config.seed,
        )
        return CodeEmbeddings(histories.vocabulary, vectors, {})

    return embeddings


def _train(
    config: SequenceSettings,
    setting: Setting,
    objective: Survival | Classification,
    train: Labelled[TokenHistories],
    validation: Labelled[TokenHistories],
    ranks: Ranks,
    embeddings: Callable[[int], CodeEmbeddings] | None,
) -> FittedSequenceModel:
    """One candidate. `embeddings` : of a width, what the code embeddings start from, or None for random ones."""
    width = int(setting["width"])
    shape: dict[str, str | int] = {"name": config.name, "width": width, "n_codes": len(train.features.vocabulary)}
    if train.features.may_lack_age:
        shape["may_lack_age"] = True
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = objective.make_head(width)
        network = place(_network(shape, head, dropout=setting["dropout"]), ranks.device)
        if embeddings is not None:
            code = network.encoder.embeddings.code
            embeddings(width).initialise(code, train.features.vocabulary)
            code.requires_grad_(bool(setting["trains_embeddings"]))
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
    facts: dict[str, float | int | str] = {"kept_epoch": result.kept_epoch}
    return FittedSequenceModel(network.eval(), shape, objective.grid, facts)


def _check_shape(shape: Mapping[str, str | int], grid: TimeGrid, weights: Mapping[str, Tensor]) -> None:
    """Make sure, before memory is taken for a network, that it is no larger than the weights that are there."""
    stated = int(shape["n_codes"]), int(shape["width"]), grid.n_intervals
    n_codes, width = weights["encoder.embeddings.code.weight"].shape
    if stated != (n_codes, width, len(weights["head.baseline"])):
        raise ValueError(f"a shape of {stated} (codes, width, intervals) beside weights of another")


def _network(shape: Mapping[str, str | int], head: nn.Module, *, dropout: float) -> SequenceModel:
    sizes = int(shape["width"]), int(shape["n_codes"]), dropout
    encoder = ENCODERS[str(shape["name"])](*sizes, may_lack_age=bool(shape.get("may_lack_age", False)))
    return SequenceModel(encoder, head)
