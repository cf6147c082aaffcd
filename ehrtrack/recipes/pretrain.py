"""Pretraining: masked-token modelling on the whole records of the training subjects."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ehrtrack import plots, plugins
from ehrtrack.config import RunConfig
from ehrtrack.models.behrt import Behrt, EhrModel
from ehrtrack.objectives._protocol import TrainingFacts
from ehrtrack.recipes._model_folder import write_model_folder
from ehrtrack.recipes._prepare import Records, prepare_records, seed_everything
from ehrtrack.recipes._run import Run, describe, open_run
from ehrtrack.recipes._train import feed, set_up, train
from ehrtrack.strategies._protocol import parameter_table
from ehrtrack.training.loop import FitResult
from ehrtrack.training.ranks import join_ranks

SECTIONS = ("study", "data", "model", "objective", "train", "runtime")


def pretrain(config: RunConfig, *, resume: str = "") -> Run:
    """Pretrain an encoder and log it with its vocabulary.

    Parameters
    ----------
    resume : id of the run to go on with, from its last snapshot

    Raises
    ------
    EhrtrackError
        If the configuration, the data or the tracking server cannot be used.
    """
    ranks = join_ranks(config.runtime.device)
    seed_everything(config.runtime)
    records = ranks.main_first(lambda: prepare_records(config))
    objective = plugins.load("objectives", config.objective.name).build(
        config.objective, TrainingFacts(records.token_counts())
    )
    encoder = Behrt(config.model, len(records.vocabulary))
    model = set_up(EhrModel(encoder, objective.make_head(encoder.width)), config, ranks)

    with open_run(config, kind="pretrain", sections=SECTIONS, ranks=ranks, resume=resume) as run:
        fingerprints = records.fingerprints()
        run.log_fingerprints(fingerprints)
        run.log_parameters(parameter_table(model))
        run.logger.log_table(records.coverage, "vocabulary_coverage.csv")
        result = train(run, model, objective, feed(config, records, model, objective, ranks), ranks)
        with tempfile.TemporaryDirectory() as folder:
            write_model_folder(
                Path(folder),
                config=config,
                vocabulary=records.vocabulary,
                fingerprints=fingerprints,
                model=model,
            )
            run.log_model_folder(Path(folder))
        run.logger.log_figure(plots.mlm_loss(result.history, best_epoch=result.best_epoch), "plots/mlm.png")
        run.logger.set_description(_summary(config, records, result))
        return run.finished(result.best)


def _summary(config: RunConfig, records: Records, result: FitResult) -> str:
    loss, unigram = result.best["val/mlm_loss"], result.best["val/unigram_loss"]
    gain = 1 - loss / unigram
    verdict = f"learned: {gain:.0%} under the unigram predictor" if gain > 0.02 else "**did not learn**"
    return describe(
        f"Pretraining of a {config.model.size} encoder",
        {
            "validation loss of masked tokens": f"{loss:.3f}",
            "unigram predictor, same tokens": f"{unigram:.3f} ({verdict})",
            "accuracy on masked tokens": f"{result.best['val/mlm_accuracy']:.1%}",
            "subjects (train, validation)": f"{len(records.rows['train']):,}, {len(records.rows['validation']):,}",
            "tokens, vocabulary": f"{len(records.store.token):,}, {len(records.vocabulary):,}",
            "best epoch": f"{result.best_epoch} of {len(result.history)} ({result.stop_reason})",
        },
    )
