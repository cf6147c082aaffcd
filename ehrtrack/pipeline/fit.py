"""Train a model on records: its batches, the cached states of a frozen encoder, and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ehrtrack.arrays import Float32s, Ints
from ehrtrack.config import RunConfig
from ehrtrack.data.batch import Batches
from ehrtrack.data.events import fingerprint_of
from ehrtrack.data.features import FeatureStore, build_features
from ehrtrack.evaluation.metric_table import names_shown
from ehrtrack.models.behrt import EhrModel, encoder_weights
from ehrtrack.models.device import place
from ehrtrack.objectives.base import Objective, OutcomeObjective
from ehrtrack.pipeline.prepare import CohortRecords, Records
from ehrtrack.pipeline.run import Recorder
from ehrtrack.runlog import TRAINING, named
from ehrtrack.training.checkpoint import weights_fingerprint
from ehrtrack.training.loop import FitResult, fit
from ehrtrack.training.memory import find_batch_tokens
from ehrtrack.training.ranks import Ranks, multiplies_in_bf16
from ehrtrack.training.ridge_head import solve_head


@dataclass(frozen=True)
class Feed:
    """The batches of a run."""

    config: RunConfig
    records: Records
    batch_tokens: int
    features: FeatureStore | None = None

    def split(self, split: str) -> Batches:
        """Batches of the subjects of a split, in their order."""
        records = self.records
        return Batches(
            records.store,
            records.rows[split],
            self.batch_tokens,
            self.config.data.max_tokens,
            outcomes=records.outcomes if isinstance(records, CohortRecords) else None,
            features=self.features,
        )

    def epoch(self, epoch: int) -> Batches:
        """Batches of the shuffled training subjects; long records (pretraining) in windows at random places."""
        return replace(
            self.split("train"),
            shuffle_seed=self.config.runtime.seed * 100_003 + epoch,
            has_random_windows=not isinstance(self.records, CohortRecords),
        )


def set_up(model: EhrModel, config: RunConfig, ranks: Ranks) -> EhrModel:
    """Move the model to its device, with the precision and the memory settings of the configuration."""
    model.is_bf16 = multiplies_in_bf16(config.runtime.precision, ranks.device)
    model.encoder.recomputes = config.train.recompute
    return place(model, ranks.device)


def known_feed(config: RunConfig, records: Records) -> Feed:
    """The batches of a run before there is a model, with the configured token budget or that of the longest record."""
    budget = config.train.batch_tokens
    return Feed(config, records, config.data.max_tokens if budget == "auto" else budget)


def feed(config: RunConfig, records: Records, model: nn.Module, objective: Objective, ranks: Ranks) -> Feed:
    """The batches of a run; if the configuration sets no token budget, one that suits the device is measured."""
    known = known_feed(config, records)
    if config.train.batch_tokens != "auto":
        return known
    probe, per_step = known.epoch(1), ranks.count * config.train.accumulate
    budget = ranks.from_main(
        lambda: find_batch_tokens(model, objective, probe, ranks.device, batches_per_step=per_step)
    )
    return Feed(config, records, budget)


def with_features(batches: Feed, model: EhrModel, ranks: Ranks) -> Feed:
    """The same batches with the encoder's states, which are computed once and kept in the cache.

    They depend on the tokens, the encoder's weights, the longest record and the precision, and are cached by these.
    """
    store, longest = batches.records.store, batches.config.data.max_tokens
    fingerprint = fingerprint_of(
        "features", store.fingerprint, weights_fingerprint(encoder_weights(model)), longest, model.is_bf16
    )
    folder = batches.config.runtime.cache / "features" / fingerprint
    every = Batches(store, np.arange(len(store)), batches.batch_tokens, longest)
    lengths = every.lengths_of(every.rows)
    states = _states(model, every, ranks.device)
    features = ranks.main_first(lambda: build_features(folder, lengths, model.encoder.width, states))
    return replace(batches, features=features)


def _states(model: EhrModel, batches: Batches, device: torch.device) -> Iterator[tuple[Ints, Float32s]]:
    model.eval()
    with torch.no_grad():
        for batch in batches:
            yield batch.rows.numpy(), model.hidden(batch.to(device)).cpu().numpy()


def train(
    run: Recorder,
    model: nn.Module,
    objective: Objective,
    batches: Feed,
    ranks: Ranks,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    *,
    begin_epoch: Callable[[int], bool] = lambda epoch: False,
    beside: Callable[[int], Mapping[str, float]] = lambda epoch: {},
) -> FitResult:
    """Fit the model, and log how.

    Parameters
    ----------
    on_epoch : as `training.loop.fit` has it; where training is resumed, it is told the finished epochs again
    begin_epoch, beside : as `training.loop.fit` has them
    """
    config, n_truncated = run.config, batches.split("train").n_truncated

    def tell_again(history: list[dict[str, float]]) -> None:
        run.log_epochs_again(history)
        for epoch, metrics in enumerate(history, start=1):
            if on_epoch is not None:
                on_epoch(epoch, metrics)

    _tell_lengths(batches.split("train"))
    facts = {"data/truncated_subjects": float(n_truncated)}
    run.logger.log_metrics(named(TRAINING, {"batch_tokens": float(batches.batch_tokens)}) | facts, step=0)
    result = fit(
        model,
        objective,
        training=batches.epoch,
        validation=batches.split("validation"),
        config=config.train,
        ranks=ranks,
        folder=run.folder,
        logger=run.logger,
        on_epoch=on_epoch,
        snapshot_seconds=config.runtime.snapshot_minutes * 60,
        on_snapshot=run.keep_snapshot,
        on_go_on=tell_again,
        printed=names_shown("progress", {objective.task}),
        batches_between=config.runtime.log_batches,
        begin_epoch=begin_epoch,
        beside=beside,
    )
    run.log_training(result)
    return result


def solve(
    run: Recorder,
    model: EhrModel,
    objective: OutcomeObjective,
    batches: Feed,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Solve for the head of a model whose encoder stays, and log how: as `train`, with a single epoch."""
    training, validation = (batches.split(split) for split in ("train", "validation"))
    run.logger.log_metrics({"data/truncated_subjects": float(training.n_truncated)}, step=0)
    result = solve_head(model, objective, training=training, validation=validation)
    run.logger.log_metrics(result.kept, step=1)
    print(f"head {result.stop_reason}", flush=True)
    if on_epoch is not None:
        on_epoch(1, result.kept)
    run.log_training(result)
    return result


def _tell_lengths(training: Batches) -> None:
    """Print how many records are truncated, and how many exceed the token budget by themselves."""
    n_subjects = f"{len(training.rows):,} training records are longer than"
    if training.n_truncated:
        print(f"{training.n_truncated:,} of {n_subjects} data.max_tokens = {training.max_tokens} and are cut")
    if training.n_over_budget:
        print(
            f"{training.n_over_budget:,} of {n_subjects} the budget of {training.batch_tokens} tokens: each is a batch "
            "of its own, for how long a record is read does not depend on train.batch_tokens. Where memory is short, "
            "lower data.max_tokens in a new run"
        )
