"""Build a model that is ready to be fitted to an outcome: base, objective, head and strategy."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from ehrtrack.config import RunConfig
from ehrtrack.data.batch import Batches
from ehrtrack.data.store import mean_age
from ehrtrack.errors import ConfigError
from ehrtrack.models.behrt import SIZES, EhrModel, ModelConfig, encoder_weights, load_encoder_weights
from ehrtrack.models.device import place
from ehrtrack.models.encoders import new_encoder
from ehrtrack.models.record_columns import Levels
from ehrtrack.objectives.base import OutcomeObjective, TrainingFacts, outcome_objective
from ehrtrack.pipeline.embeddings import start_from_embeddings
from ehrtrack.pipeline.fit import known_feed, set_up
from ehrtrack.pipeline.model_folder import ModelFolder, read_model_folder
from ehrtrack.pipeline.prepare import CohortRecords
from ehrtrack.pipeline.report import Weights, encoder_matrices
from ehrtrack.pipeline.run import MODEL_FOLDER
from ehrtrack.strategies.base import Base, Strategy, strategy_of
from ehrtrack.tracking.client.queries import fetch_model, get_run, search_runs
from ehrtrack.training.checkpoint import weights_fingerprint
from ehrtrack.training.ranks import Ranks
from ehrtrack.training.ridge_head import check_solvable, start_at_solved_head
from ehrtrack.training.sanity import failed_checks, unlearned

FEW_SUBJECTS, MANY_SUBJECTS = 20, 100
"""In a step: by six a network told too few events (observed over expected 1.46), by thirty and by a hundred it did
not (docs/decisions.md, under Pretraining)."""
ENCODER_SHAPE = ("encoder", "size", "members", "readout_days")
"""Settings of the model that a pretrained encoder brings along."""


@dataclass(frozen=True)
class Adaptation:
    """A model on its device, before it is fitted.

    Attributes
    ----------
    objective : with a time grid that was fitted to the training subjects
    plain : the encoder with the objective's head, before the strategy touched it
    model : what trains
    start : the encoder's matrices as they are before training
    base : what the encoder is before training
    """

    strategy: Strategy
    objective: OutcomeObjective
    plain: EhrModel
    model: nn.Module
    start: Weights
    base: Base

    @property
    def keeps_states(self) -> bool:
        """Whether the states of all tokens are computed once and kept: none of what makes them learns."""
        return self.strategy.keeps_encoder and self.plain.encoder.has_token_states


def adapt(
    config: RunConfig, records: CohortRecords, base: ModelFolder | None, ranks: Ranks, *, is_to_train: bool = True
) -> Adaptation:
    """Put an encoder, new or pretrained, the objective's head and the strategy together.

    Parameters
    ----------
    is_to_train : whether a head at which training starts is solved for; what a step costs does not depend on it
    """
    strategy = strategy_of(config.strategy)
    facts = TrainingFacts(
        records.token_counts(),
        records.outcomes[records.rows["train"]],
        records.cohort.horizon_days,
        records=known_feed(config, records).split("train"),
        levels=Levels.of(records.vocabulary),
        scales_days=config.model.readout_days,
        mean_age=mean_age(records.store, records.rows["train"]) if config.data.may_lack_age else None,
        onsets=None if base is None else base.onset_effects(),
        has_classes=records.cohort.has_classes,
    )
    objective = outcome_objective(config.objective, facts)
    encoder = new_encoder(config.model, Levels.of(records.vocabulary), may_lack_age=config.data.may_lack_age)
    plain = EhrModel(encoder, objective.make_head(encoder.width))
    if strategy.solves_head:
        labelled = np.concatenate([records.rows["train"], records.rows["validation"]])
        check_solvable(plain.head, records.outcomes[labelled])
    elif strategy.starts_at_solved_head:
        check_solvable(plain.head, records.outcomes[records.rows["train"]])
    if base is not None:
        load_encoder_weights(plain, base.encoder_weights())
    else:
        start_from_embeddings(config, records, encoder.embeddings.code)
    start = encoder_matrices(plain)
    fingerprint = weights_fingerprint(encoder_weights(plain))
    begun = Base(
        kind="random" if base is None else "pretrained",
        uri="" if base is None else f"runs:/{config.init.run}/{MODEL_FOLDER}",
        fingerprint=fingerprint,
        objective=config.objective.name,
    )
    set_up(plain, config, ranks)
    if strategy.starts_at_solved_head and is_to_train:
        training = known_feed(config, records).split("train")
        start_at_solved_head(plain, objective, training)
        _tell_of_small_steps(config, training, ranks)
    model = place(strategy.apply(plain), ranks.device)
    return Adaptation(strategy, objective, plain, model, start, begun)


def _tell_of_small_steps(config: RunConfig, training: Batches, ranks: Ranks) -> None:
    """Say what it costs to learn on from a solved head by steps of few subjects, and what to set instead."""
    n_subjects = len(training.rows) / len(training) * config.train.accumulate * ranks.count
    if config.train.batch_tokens == "auto" or n_subjects >= FEW_SUBJECTS or len(training.rows) < FEW_SUBJECTS:
        return
    enough = math.ceil(MANY_SUBJECTS * training.n_tokens / len(training.rows) / 1000) * 1000
    print(
        f"a step has some {n_subjects:.0f} subjects: what learns on from a head that is solved for by steps of so few "
        f"loses its calibration; train.batch_tokens={enough} takes {MANY_SUBJECTS}",
        flush=True,
    )


def read_base(config: RunConfig) -> tuple[ModelFolder | None, RunConfig]:
    """The pretrained model that the configuration starts from, if any, and the configuration with its run and size.

    Raises
    ------
    ConfigError
        If there is no such run, or the strategy could not learn from this start.
    """
    strategy = strategy_of(config.strategy)
    if config.init.run and strategy.starts_anew:
        print(f"strategy {config.strategy.name} starts from random weights: init.run={config.init.run} is dropped")
        config = config.model_copy(update={"init": config.init.model_copy(update={"run": ""})})
    base, config = download_base(config)
    width = SIZES[config.model.size].width
    reason = strategy.refuse(is_pretrained=base is not None, width=width)
    if reason:
        raise ConfigError(reason)
    return base, config


def download_base(config: RunConfig) -> tuple[ModelFolder | None, RunConfig]:
    """Read the base as `read_base` does, without asking whether the strategy can use it."""
    if not config.init.run:
        return None, config
    if config.init.embeddings:
        raise ConfigError(
            f"init.run={config.init.run} and init.embeddings={config.init.embeddings}: a pretrained encoder has "
            "embeddings of its own. Give init.embeddings to the pretraining, or fine-tune with init.run=''"
        )
    reference = latest_pretrain(config.study) if config.init.run == "latest" else config.init.run
    with tempfile.TemporaryDirectory() as folder:
        fetched = fetch_model(reference, Path(folder))
        base = read_model_folder(fetched.folder)
    base = replace(base, failed_checks=failed_checks(get_run(fetched.run_id).tags))
    if base.failed_checks:
        print(f"warning: {unlearned(fetched.run_id, base.failed_checks)}", flush=True)
    return base, config.model_copy(
        update={
            "model": with_shape_of(base.config.model, config.model, config.init.run),
            "init": config.init.model_copy(update={"run": fetched.run_id}),
        }
    )


def with_shape_of(base: ModelConfig, asked: ModelConfig, run: str) -> ModelConfig:
    """The settings of a model that starts from a pretrained one: those of the configuration, with the encoder's shape.

    Raises
    ------
    ConfigError
        If another shape was asked for.
    """
    shape = {name: getattr(base, name) for name in ENCODER_SHAPE}
    for name, value in shape.items():
        if name in asked.model_fields_set and getattr(asked, name) != value:
            raise ConfigError(
                f"init.run {run} holds an encoder with model.{name}={value} and model.{name} is "
                f"{getattr(asked, name)}: leave model.{name} out, or name a pretrain run that has it"
            )
    return asked.model_copy(update=shape)


def latest_pretrain(study: str) -> str:
    """The run id of the study's last finished pretraining.

    Raises
    ------
    ConfigError
        If there is none.
    """
    runs = search_runs(study, kinds=["pretrain"])
    if not runs:
        raise ConfigError(
            f"init.run=latest, but study {study!r} has no finished pretrain run on this tracking server: "
            "run `ehrtrack pretrain` first, or set strategy.name=scratch and init.run=''"
        )
    return runs[-1].run_id
